"""Messages between a runner and an agent, whatever the protocol."""

from typing import Any, Protocol

from attrs import frozen

from agent_orchestrator.runners.bulk import LONG_LINE, Text
from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.wire import strict_json


class RpcError(Exception):
    """The agent answered a request with an error.

    :param data: further data of the error; None without.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@frozen
class Notification:
    """A message of the agent that takes no answer.

    :param size: bytes of its line.
    """

    method: str
    params: JsonObject
    size: int = 0

    @property
    def is_long(self) -> bool:
        """Whether reading it takes long: see :mod:`agent_orchestrator.runners.bulk`."""
        return self.size >= LONG_LINE or strict_json.is_long(self.params)


@frozen
class AgentRequest:
    """A request of the agent. Answer it with :meth:`Peer.respond` or :meth:`Peer.refuse`."""

    id: str | int
    method: str
    params: JsonObject
    size: int = 0

    @property
    def is_long(self) -> bool:
        """Whether reading it takes long."""
        return self.size >= LONG_LINE or strict_json.is_long(self.params)


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
"""What an agent says unasked."""


class Dialect(Protocol):
    """A protocol: its JSON objects, one per line, for the messages of both sides."""

    def request(self, number: int, method: str, params: JsonObject) -> JsonObject:
        """Return a request. Its answer must carry the number, in whatever form."""
        ...

    def notification(self, method: str, params: JsonObject) -> JsonObject: ...

    def result(self, request: AgentRequest, result: Any) -> JsonObject:
        """Return the answer to a request of the agent."""
        ...

    def error(self, request: AgentRequest, code: int, message: str) -> JsonObject: ...

    def read(self, message: JsonObject, size: int) -> Notification | AgentRequest | Answer | None:
        """Return what an object of the agent means; None if the protocol does not have it."""
        ...
