"""Watching for requests. Each is printed, with the terminal bell and an optional hook program."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from attrs import define, field, frozen

from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event, Request
from agent_orchestrator.operations.events import HEAD, CaughtUp, StreamItem, StreamPart
from agent_orchestrator.operations.requests import LIST_REQUESTS
from agent_orchestrator.wire import codec
from agentctl.connection import DaemonConnection
from agentctl.document import Text
from agentctl.output import Output, compact
from agentctl.paging import pages
from agentctl.questions import asked, expiring
from agentctl.terminal import is_terminal, put

TERMINAL_BELL: Final = "\a"

EventText = Callable[[Mapping[str, Any]], tuple[str, list[str]]]

HOOKS: Final = 8
"""Maximum number of hook programs that run at once."""

_REQUEST_EVENTS: Final = frozenset(
    {
        EventType.REQUEST_CREATED,
        EventType.REQUEST_UPDATED,
        EventType.REQUEST_EXPIRING,
        EventType.REQUEST_RESOLVED,
    }
)


@frozen
class Hook:
    """A program to run for each request."""

    argv: Sequence[str]
    output: Output
    _limiter: anyio.CapacityLimiter = field(factory=lambda: anyio.CapacityLimiter(HOOKS))

    async def run(self, request: Request) -> None:
        """Run the program. A failure is only reported."""
        settings = self.output.settings
        env = os.environ | {
            "AGENTCTL_URL": settings.url,
            **({"AGENTCTL_CA_FILE": settings.ca_file} if settings.ca_file else {}),
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
    connection: DaemonConnection, argv: Sequence[str] | None, *, every: bool, once: bool
) -> None:
    """Announce each open request once, now and in future.

    :param argv: a program to run for each.
    :param every: include requests that a parent's agent should answer.
    :param once: return after the first request.
    """
    output = connection.output
    hook = None if argv is None else Hook(argv, output)
    # None when the events that exist are over.
    sender, receiver = anyio.create_memory_object_stream[Event | None](math.inf)

    def take(item: StreamPart) -> bool:
        if isinstance(item, CaughtUp):
            sender.send_nowait(None)
        elif isinstance(item, StreamItem) and item.event.event_type in _REQUEST_EVENTS:
            sender.send_nowait(item.event)
        return False

    async def follow() -> None:
        await connection.stream((), HEAD, take, retry_s=None)

    async with anyio.create_task_group() as tasks, sender, receiver:
        tasks.start_soon(follow)
        watch = _Watch(connection, output, receiver, ("human", "parent") if every else ("human",))
        # A separate task group, so that running programs finish before the stream is cancelled.
        async with anyio.create_task_group() as hooks:
            async for request in watch.requests():
                if hook is not None:
                    hooks.start_soon(hook.run, request)
                if once:
                    break
        tasks.cancel_scope.cancel()


@define
class _Watch:
    _connection: DaemonConnection
    _output: Output
    _events: MemoryObjectReceiveStream[Event | None]
    _audiences: tuple[str, ...]
    _known: set[str] = field(factory=set)
    _listed: bool = False

    async def requests(self) -> Any:
        """Announce and yield each request once."""
        async for event in self._events:
            for request in await self._changed(event):
                if not request.is_open:
                    self._known.discard(request.id)
                elif self._is_new(request):
                    self._known.add(request.id)
                    self._announce(request)
                    yield request

    async def _changed(self, event: Event | None) -> list[Request]:
        """Return the requests that an event is about; at first, all that are open."""
        if event is None:
            if self._listed:
                return []
            self._listed = True
            # Listed after the stream was opened, so that no request is missed. Some come twice.
            return await self._pending()
        changed = _request_of(event)
        if changed is None:
            return []
        if event.event_type == EventType.REQUEST_EXPIRING and changed.id in self._known:
            self._write(changed, expiring, changed.warn_at or changed.created_at)
        if not (self._is_new(changed) and changed.is_open):
            return [changed]
        try:  # the request as it is now, unless it is closed or the caller may not resolve it
            pending = await self._pending(session_id=changed.session_id, resolvable=True)
        except NotFound:  # the session is no longer shared with the caller
            return []
        return [candidate for candidate in pending if candidate.id == changed.id]

    async def _pending(self, **narrower: Any) -> list[Request]:
        page = await pages(self._connection, LIST_REQUESTS, status="pending", **narrower)
        return list(page.requests)

    def _is_new(self, request: Request) -> bool:
        return request.audience in self._audiences and request.id not in self._known

    def _announce(self, request: Request) -> None:
        if self._output.structured:
            self._output.stream_item(request)
            _ring_terminal_bell()
        else:
            self._write(request, asked, request.created_at)

    def _write(self, request: Request, words: EventText, at: datetime) -> None:
        """Print a request. Programs get each request only once."""
        if self._output.structured:
            return
        text, more = words(codec.to_plain(request))
        first, *rest = f"{text}\nsession: {request.session_id}".split("\n") + more
        time = f"{at.astimezone():%H:%M:%S}"
        lines = [Text(f"{time}  ? {first}", "bold yellow", reveal=True)]
        self._output.show([*lines, *(Text(f"{'':10}  {line}", reveal=True) for line in rest)])
        _ring_terminal_bell()


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
