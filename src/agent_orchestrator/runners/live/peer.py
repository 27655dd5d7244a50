"""The runner's side of a connection to an agent, with requests from both sides."""

import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

import anyio
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.long_work import run_long
from agent_orchestrator.runners.bulk import Text, read, read_object, read_text
from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.runners.lines import Line
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Answer,
    Dialect,
    Malformed,
    Message,
)
from agent_orchestrator.wire import strict_json

METHOD_NOT_FOUND: Final = -32601

WRITE_TIMEOUT_S: Final = 30.0
"""Seconds for an agent to read a message. Agents normally read at once, even when they are busy."""

MAX_UNWRITTEN: Final = 64 * 2**20
"""Bytes, or characters of long messages, that may wait to be written before the agent counts as stuck."""


class PeerTimeout(Exception):
    """The agent does not read its input or answer in time."""


class Channel(Protocol):
    """The transport of lines to and from the agent."""

    def lines(self) -> AsyncIterator[Line]: ...

    async def write(self, data: bytes) -> None: ...


@define(eq=False)
class Peer:
    """The runner's side of a connection. Its user must run :meth:`read` and :meth:`write` as tasks.

    :param agent: the agent's name, for error messages.
    :param on_message: called with each message, in order. It must not wait for a run.
    """

    _agent: str
    _dialect: Dialect
    _channel: Channel
    _on_message: Callable[[Message], Awaitable[None]]
    _pending: dict[int, Callable[[Answer | None], None]] = field(factory=dict, init=False)
    _ids: "itertools.count[int]" = field(factory=lambda: itertools.count(1), init=False)
    _unwritten: deque[bytes | JsonObject] = field(factory=deque, init=False)
    _unwritten_size: int = field(default=0, init=False)
    _has_unwritten: anyio.Event = field(factory=anyio.Event, init=False)
    _failure: AgentFailed | None = field(default=None, init=False)

    async def request(self, method: str, params: JsonObject, *, timeout_s: float | None) -> Any:
        """Send a request and return the result.

        :param timeout_s: None for no limit.
        :raises RpcError: if the answer is an error.
        :raises PeerTimeout: if there is no answer in time.
        :raises AgentFailed: if the agent has ended; see :meth:`end`.
        """
        done = anyio.Event()
        answers: list[Answer | None] = []

        def store_answer(answer: Answer | None) -> None:
            answers.append(answer)
            done.set()

        number = self.submit(method, params, store_answer)
        try:
            with anyio.move_on_after(timeout_s):
                await done.wait()
        finally:
            self._pending.pop(number, None)
        if answers and (answer := answers[0]) is not None:
            return answer.value()
        self._check()
        raise PeerTimeout(f"{self._agent} did not answer {method} in {timeout_s:g} s")

    def submit(
        self, method: str, params: JsonObject, on_answer: Callable[[Answer | None], None]
    ) -> int:
        """Send a request and return its number.

        :param on_answer: called with the answer, in its order among the messages; with None if the
            agent has ended.
        :raises PeerTimeout: if the agent does not read.
        :raises AgentFailed: if it has ended.
        """
        self._check()
        number = next(self._ids)
        self._send(self._dialect.request(number, method, params))
        self._pending[number] = on_answer
        return number

    def notify(self, method: str, params: JsonObject) -> None:
        """Send a notification.

        :raises PeerTimeout: if the agent does not read, as for :meth:`respond` and :meth:`refuse`.
        """
        self._send(self._dialect.notification(method, params))

    def respond(self, request: AgentRequest, result: Any) -> None:
        """Answer a request."""
        self._send(self._dialect.result(request, result))

    def refuse(self, request: AgentRequest, message: str, code: int = METHOD_NOT_FOUND) -> None:
        """Answer a request with an error."""
        self._send(self._dialect.error(request, code, message))

    def end(self, failure: AgentFailed) -> None:
        """Fail all pending requests, and all later ones."""
        self._failure = failure
        calls, self._pending = self._pending, {}
        for on_answer in calls.values():
            on_answer(None)

    def _check(self) -> None:
        if self._failure is not None:
            raise AgentFailed(self._failure.code, self._failure.message)

    async def read(self) -> None:
        """Read messages until the agent closes its output."""
        async for line in self._channel.lines():
            incoming = await self._parse(line)
            del line  # frees a large line before the next one is read
            match incoming:
                case None:
                    pass
                case Answer(number):
                    # The request may have been canceled.
                    if (on_answer := self._pending.pop(number, None)) is not None:
                        on_answer(incoming)
                case _:
                    await self._on_message(incoming)

    async def _parse(self, line: Line) -> Message | Answer | None:
        """Return the message of a line; None for an empty line."""
        found = await read(line, read_object)
        if isinstance(found, Text):
            return Malformed(found) if found.text.strip() else None
        message = self._dialect.read(found, len(line.data))
        return Malformed(await read(line, read_text)) if message is None else message

    async def write(self) -> None:
        """Write queued messages until canceled.

        :raises PeerTimeout: if the agent does not read.
        :raises OSError: if it has ended.
        """
        while True:
            await self._has_unwritten.wait()
            self._has_unwritten = anyio.Event()
            while self._unwritten:
                messages = tuple(self._unwritten)
                self._unwritten.clear()
                self._unwritten_size = 0
                is_long = not all(isinstance(message, bytes) for message in messages)
                data = await run_long(_encode_all, messages) if is_long else _encode_all(messages)
                with anyio.move_on_after(WRITE_TIMEOUT_S) as time_limit:
                    await self._channel.write(data)
                if time_limit.cancelled_caught:
                    raise PeerTimeout(f"{self._agent} does not read its input")

    def _send(self, message: JsonObject) -> None:
        """Queue a message for :meth:`write`. Do nothing if the agent has ended."""
        if self._failure is not None:
            return
        # A long message is encoded when it is written, because it must be encoded in a worker thread.
        is_long = strict_json.is_long(message)
        entry = message if is_long else _encode_line(message)
        size = strict_json.text_length(entry) if is_long else len(entry)
        if self._unwritten_size + size > MAX_UNWRITTEN:
            raise PeerTimeout(f"{self._agent} does not read its input")
        self._unwritten.append(entry)
        self._unwritten_size += size
        self._has_unwritten.set()


def _encode_all(messages: Iterable[bytes | JsonObject]) -> bytes:
    return b"".join(
        message if isinstance(message, bytes) else _encode_line(message) for message in messages
    )


def _encode_line(message: JsonObject) -> bytes:
    return strict_json.encode_in_slices(message) + b"\n"
