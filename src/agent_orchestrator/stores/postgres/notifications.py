"""Notifications of the commits of other daemons."""

import json
import logging
from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
import psycopg

from agent_orchestrator.ports.store import ANY_TOPIC
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.daemons import CHANNEL

RETRY_S: Final = 0.5
"""Seconds between two attempts to connect."""

_log = logging.getLogger("agent_orchestrator.store")


class Listener:
    """Hears of the commits of other daemons, on a connection that does nothing else.

    :param url: where to connect.
    :param daemon_id: the daemon whose commits to leave out.
    :param notify: called with the topics of each commit.
    """

    def __init__(self, url: str, daemon_id: str, notify: Callable[[frozenset[str]], None]) -> None:
        self._url = url
        self._daemon_id = daemon_id
        self._notify = notify
        self._limiter = anyio.CapacityLimiter(1)
        self._connection: Connection | None = None

    def connect(self) -> None:
        """Begin to hear. Called in a thread.

        :raises psycopg.Error: if that fails.
        """
        connection = Connection(self._url)
        try:
            connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def run(self) -> None:
        """Receive until cancelled. After a lost connection, anything may have been missed."""
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
                await anyio.sleep(RETRY_S)
        finally:
            self.close()

    async def _receive(self) -> None:
        assert self._connection is not None
        pgconn = self._connection.pgconn
        while True:
            await anyio.wait_readable(pgconn.socket)
            pgconn.consume_input()
            while (notice := pgconn.notifies()) is not None:
                topics = topics_of(notice.extra, self._daemon_id)
                if topics:
                    self._notify(topics)


def topics_of(payload: bytes, daemon_id: str) -> frozenset[str]:
    """Return the topics of a notification; none if this daemon sent it.

    Anyone who may connect to the database can notify. What is not ours means that anything may have changed.
    """
    try:
        sender, *topics = json.loads(payload)
        return frozenset() if sender == daemon_id else frozenset(map(str, topics))
    except (ValueError, TypeError):
        return frozenset({ANY_TOPIC})
