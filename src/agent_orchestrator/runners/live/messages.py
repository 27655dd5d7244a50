"""Messages between a runner and an agent, in any protocol."""

from typing import Any, Final, Protocol

from attrs import frozen

from agent_orchestrator.runners.bulk import LONG_LINE, Text
from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.wire import strict_json

_SHORT_LINE: Final = 2_000
"""Bytes of a line that is never long. A value and its separator take two bytes, so it has few values."""


class RpcError(Exception):
    """The agent answered a request with an error.

    :param data: further data of the error; None if there is none.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@frozen
class Notification:
    """A message of the agent that needs no answer.

    :param size: bytes of its line.
    """

    method: str
    params: JsonObject
    size: int = 0

    @property
    def is_long(self) -> bool:
        """Whether it must be read in a worker thread: see :mod:`agent_orchestrator.runners.bulk`."""
        return _is_long(self.params, self.size)


@frozen
class AgentRequest:
    """A request of the agent. Answer it with :meth:`Peer.respond` or :meth:`Peer.refuse`."""

    id: str | int
    method: str
    params: JsonObject
    size: int = 0

    @property
    def is_long(self) -> bool:
        """Whether it must be read in a worker thread."""
        return _is_long(self.params, self.size)


def _is_long(params: JsonObject, size: int) -> bool:
    return size >= LONG_LINE or (size >= _SHORT_LINE and strict_json.is_long(params))


@frozen
class Malformed:
    """A line that is not a message, or one too large to be read."""

    text: Text


@frozen
class Answer:
    """The answer of the agent to the request with this number.

    :param error: None if the request succeeded.
    """

    number: int
    result: Any = None
    error: RpcError | None = None
    size: int = 0

    def value(self) -> Any:
        """Return the result.

        :raises RpcError: if the answer is an error.
        """
        if self.error is not None:
            raise self.error
        return self.result


Message = Notification | AgentRequest | Malformed
"""A message of an agent that is not an answer."""


class Dialect(Protocol):
    """Converts the messages of both sides to and from the JSON objects of a protocol, one per line."""

    def request(self, number: int, method: str, params: JsonObject) -> JsonObject:
        """Return a request. Its answer must contain the number, in any form."""
        ...

    def notification(self, method: str, params: JsonObject) -> JsonObject: ...

    def result(self, request: AgentRequest, result: Any) -> JsonObject:
        """Return the answer to a request of the agent."""
        ...

    def error(self, request: AgentRequest, code: int, message: str) -> JsonObject: ...

    def read(self, message: JsonObject, size: int) -> Notification | AgentRequest | Answer | None:
        """Return the message in an object of the agent; None if the protocol has no such message."""
        ...
