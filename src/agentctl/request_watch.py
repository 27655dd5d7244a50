"""Watching for requests. Each is printed, with the terminal bell and an optional hook program."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import field, frozen

from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event, Request
from agent_orchestrator.operations.events import HEAD, CaughtUp, StreamItem, StreamPart
from agent_orchestrator.operations.requests import LIST_REQUESTS
from agent_orchestrator.wire import codec
from agentctl.connection import DaemonConnection
from agentctl.output import Output, compact
from agentctl.paging import pages
from agentctl.questions import asked, expiring
from agentctl.terminal import is_terminal, one_line, put
from agentctl.times import local

TERMINAL_BELL: Final = "\a"

EventText = Callable[[Mapping[str, Any]], tuple[str, list[str]]]

HOOKS: Final = 8
"""Maximum number of hook programs that run at once."""

_OPENING_EVENTS: Final = frozenset({EventType.REQUEST_CREATED, EventType.REQUEST_UPDATED})
_REQUEST_EVENTS: Final = _OPENING_EVENTS | {EventType.REQUEST_EXPIRING, EventType.REQUEST_RESOLVED}


@frozen
class Hook:
    """A program to run for each request.

    :param url: the daemon's URL, passed as ``AGENTCTL_URL``.
    """

    argv: Sequence[str]
    url: str
    output: Output
    ca_file: str | None = None
    _limiter: anyio.CapacityLimiter = field(factory=lambda: anyio.CapacityLimiter(HOOKS))

    async def run(self, request: Request) -> None:
        """Run the program. A failure is only reported."""
        env = os.environ | {
            "AGENTCTL_URL": self.url,
            **({"AGENTCTL_CA_FILE": self.ca_file} if self.ca_file else {}),
            "AGENTCTL_REQUEST_ID": request.id,
            "AGENTCTL_REQUEST_KIND": request.kind,
            "AGENTCTL_REQUEST_SESSION_ID": request.session_id,
            "AGENTCTL_REQUEST_RUN_ID": request.run_id,
        }
        document = compact(codec.to_plain(request)) + "\n"
        async with self._limiter:
            try:
                done = await anyio.run_process(
                    self.argv,
                    input=document.encode(),
                    stdout=sys.stderr.fileno(),
                    stderr=None,
                    check=False,
                    env=env,
                )
            except (OSError, subprocess.SubprocessError) as error:
                self.output.announce(f"agentctl: {self.argv[0]} cannot be run: {error}")
                return
        if done.returncode:
            self.output.announce(
                f"agentctl: {self.argv[0]} ended with {done.returncode} for {request.id}"
            )


async def watch_requests(
    connection: DaemonConnection, output: Output, hook: Hook | None, *, every: bool, once: bool
) -> None:
    """Announce each open request once, now and in future.

    :param every: include requests that a parent's agent should answer.
    :param once: return after the first request.
    """
    sender, receiver = anyio.create_memory_object_stream[Event | None](math.inf)
    async with anyio.create_task_group() as tasks, sender, receiver:
        tasks.start_soon(_follow, connection, sender)
        watch = _Watch(connection, output, hook, receiver, every=every, once=once)
        # A separate task group, so that running programs finish before the stream is cancelled.
        async with anyio.create_task_group() as hooks:
            await watch.run(hooks)
        tasks.cancel_scope.cancel()


async def _follow(
    connection: DaemonConnection, sender: MemoryObjectSendStream[Event | None]
) -> None:
    """Send request events, and None when the existing events are over."""

    def take(item: StreamPart) -> bool:
        if isinstance(item, CaughtUp):
            sender.send_nowait(None)
        elif isinstance(item, StreamItem) and item.event.event_type in _REQUEST_EVENTS:
            sender.send_nowait(item.event)
        return False

    await connection.stream((), HEAD, take, retry_s=None)


class _Watch:
    def __init__(
        self,
        connection: DaemonConnection,
        output: Output,
        hook: Hook | None,
        events: MemoryObjectReceiveStream[Event | None],
        *,
        every: bool,
        once: bool,
    ) -> None:
        self._connection = connection
        self._output = output
        self._hook = hook
        self._events = events
        self._every = every
        self._once = once
        self._known: set[str] = set()
        self._listed = False

    async def run(self, hooks: anyio.abc.TaskGroup) -> None:
        async for event in self._events:
            if event is not None:
                changed = _request_of(event)
                if changed is not None and event.event_type == EventType.REQUEST_EXPIRING:
                    self._remind(changed)
                requests = [] if changed is None else [changed]
                if changed is not None and self._is_new(changed) and changed.is_open:
                    requests = await self._current_request(changed)
            elif not self._listed:
                self._listed = True
                # Listed after the stream was opened, so that no request is missed. Some come twice.
                requests = await self._pending()
            else:
                continue
            for request in requests:
                if not request.is_open:
                    self._known.discard(request.id)
                elif self._is_new(request):
                    self._known.add(request.id)
                    self._announce(request)
                    if self._hook is not None:
                        hooks.start_soon(self._hook.run, request)
                    if self._once:
                        return

    async def _pending(self, **narrower: Any) -> list[Request]:
        page = await pages(
            self._connection,
            LIST_REQUESTS,
            "requests",
            limit=None,
            cursor=None,
            status="pending",
            **narrower,
        )
        return list(page.requests)

    async def _current_request(self, request: Request) -> list[Request]:
        """Return the request in a list; empty if it is closed or the caller may not resolve it."""
        try:
            pending = await self._pending(session_id=request.session_id, resolvable=True)
        except NotFound:  # the session is no longer shared with the caller
            return []
        return [candidate for candidate in pending if candidate.id == request.id]

    def _is_new(self, request: Request) -> bool:
        audiences = ("human", "parent") if self._every else ("human",)
        return request.audience in audiences and request.id not in self._known

    def _announce(self, request: Request) -> None:
        if self._output.structured:
            self._output.stream_item(request)
        else:
            self._write(request, asked, request.created_at)
        _ring_terminal_bell()

    def _remind(self, request: Request) -> None:
        """Announce that a known request expires soon. Programs get each request only once."""
        if request.id in self._known and not self._output.structured:
            self._write(request, expiring, request.warn_at or request.created_at)
            _ring_terminal_bell()

    def _write(self, request: Request, words: EventText, at: datetime) -> None:
        style = self._output.style
        text, more = words(codec.to_plain(request))
        time = style.paint(local(at).strftime("%H:%M:%S"), "dim")
        lines = f"{text}\nsession: {one_line(request.session_id)}".split("\n") + more
        symbol = style.paint("?", "yellow", "bold")
        self._output.lines([f"{time}  {symbol} {style.paint(lines[0], 'yellow', 'bold')}"])
        self._output.lines(f"{'':10}  {line}" for line in lines[1:])


def _ring_terminal_bell() -> None:
    """Ring the terminal's bell, if there is a terminal."""
    for stream in (sys.stdout, sys.stderr):
        if is_terminal(stream):
            put(stream, TERMINAL_BELL)
            return


def _request_of(event: Event) -> Request | None:
    """Return the request in an event; None for copies of the event in ancestors' logs."""
    if event.data.get("session_id") != event.session_id:
        return None
    request: Request = codec.from_plain(Request, dict[str, Any](event.data))
    return request
