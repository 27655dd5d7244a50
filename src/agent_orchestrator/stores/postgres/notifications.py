"""Notifications of the commits of other daemons."""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread
import psycopg

from agent_orchestrator.ports.store import ANY_TOPIC
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.daemons import CHANNEL

PROBE_S: Final = 60.0
"""Seconds between two probes of whether notifications arrive."""

PROBE_TIMEOUT_S: Final = 5.0
"""Maximum seconds until a probe arrives."""

POLL_S: Final = 2.5
"""Seconds between two reads of the database while notifications do not arrive."""

RETRY_S: Final = 0.5
"""Seconds between two attempts to connect."""

NO_NOTIFICATIONS: Final = (
    "notifications of other daemons do not arrive, so their changes are noticed some seconds late: the URL leads"
    " through a connection pooler in transaction mode, or the address in store_listen cannot be reached; set"
    " store_listen to the address of the server itself"
)

_log = logging.getLogger("agent_orchestrator.store")


class Listener:
    """Receives notifications of the commits of other daemons, on a separate connection.

    :param url: where to connect.
    :param daemon_id: the daemon whose commits to leave out.
    :param notify: called with the topics of each commit.
    """

    def __init__(self, url: str, daemon_id: str, notify: Callable[[frozenset[str]], None]) -> None:
        self._url = url
        self.daemon_id = daemon_id
        self._notify = notify
        self._limiter = anyio.CapacityLimiter(1)
        self._connection: Connection | None = None
        self._has_received = False
        """Whether anything arrived through the connection."""
        self._received = anyio.Event()
        self._lost = anyio.Event()
        self.misses_notifications = False
        """True if a probe did not arrive, because there is a connection pooler in transaction mode, or no
        connection."""

    def connect(self) -> None:
        """Subscribe to the notifications. Called in a thread.

        :raises psycopg.Error: if that fails.
        """
        self._connection = connection = Connection(self._url)
        self._has_received = False
        try:
            connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def give_up(self) -> None:
        """Let go of the connection: it waits for notifications, so nothing shows whether it is lost."""
        connection = self._connection
        if connection is not None:
            connection.give_up()

    async def run(self) -> None:
        """Receive until cancelled. After a lost connection, notify of everything, because something may have been missed."""
        try:
            while True:
                try:
                    if self._connection is None:
                        # A cancellation waits for it, so that no connection stays open.
                        await anyio.to_thread.run_sync(self.connect, limiter=self._limiter)
                        self._notify(frozenset({ANY_TOPIC}))
                    await self._receive()
                except (psycopg.Error, OSError) as error:
                    _log.debug("the connection for notifications was lost: %s", error)
                self.close()
                self._lost.set()
                await anyio.sleep(RETRY_S)
        finally:
            self.close()

    async def watch(self, send_probe: Callable[[], Awaitable[None]]) -> None:
        """Probe at intervals whether notifications arrive, until cancelled. While they do not, notify of everything.

        :param send_probe: sends a notification through the store's own connections. It may raise ``psycopg.Error``.
        """
        while True:
            connection = self._connection
            self._lost = anyio.Event()
            self._received = anyio.Event()
            try:
                await send_probe()
            except psycopg.Error:
                await anyio.sleep(POLL_S)  # the server is away, which others report
                continue
            with anyio.move_on_after(POLL_S if self.misses_notifications else PROBE_TIMEOUT_S):
                await self._received.wait()
            if self._connection is connection:
                self._note(misses_notifications=not self._received.is_set())
            if self.misses_notifications:
                if self._has_received:
                    self.give_up()  # they arrived before, so the connection is dead
                self._notify(frozenset({ANY_TOPIC}))
            else:
                with anyio.move_on_after(PROBE_S):
                    await self._lost.wait()

    def _note(self, *, misses_notifications: bool) -> None:
        if misses_notifications and not self.misses_notifications:
            _log.warning("%s", NO_NOTIFICATIONS)
        if self.misses_notifications and not misses_notifications:
            _log.warning("notifications of other daemons arrive again")
        self.misses_notifications = misses_notifications

    async def _receive(self) -> None:
        assert self._connection is not None
        pgconn = self._connection.pgconn
        while True:
            await anyio.wait_readable(pgconn.socket)
            pgconn.consume_input()
            while (notice := pgconn.notifies()) is not None:
                self._has_received = True
                self._received.set()
                topics = topics_of(notice.extra, self.daemon_id)
                if topics:
                    self._notify(topics)


def topics_of(payload: bytes, daemon_id: str) -> frozenset[str]:
    """Return the topics of a notification; none if this daemon sent it.

    Anyone who may connect to the database can notify. A payload in another format means that anything may have changed.
    """
    try:
        sender, *topics = json.loads(payload)
        return frozenset() if sender == daemon_id else frozenset(map(str, topics))
    except (ValueError, TypeError):
        return frozenset({ANY_TOPIC})
