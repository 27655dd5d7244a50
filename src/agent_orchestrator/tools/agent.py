"""The agent that the tools act for."""

from typing import Protocol, TypeVar

from attrs import field, frozen

from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.transport import Transport
from agent_orchestrator.tools.arguments import HOLD_S
from agent_orchestrator.tools.undelivered import UndeliveredQuestions

Req = TypeVar("Req")
Res = TypeVar("Res")


class Call(Protocol):
    """A function that calls an operation of the engine with the permissions of one run."""

    async def __call__(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """Return the answer.

        :raises OrchestratorError: if the call is refused.
        :raises Unreachable: if there is no answer.
        """
        ...


def calls_over(transport: Transport) -> Call:
    """Return the function that calls operations over a transport."""

    async def call(operation: Operation[Req, Res], request: Req, /) -> Res:
        return (await transport.call(operation, request)).answer

    return call


@frozen
class Agent:
    """The run that the tools act for.

    :param call: calls operations. It decides what the run may do.
    :param hold_s: default seconds to hold a call.
    :param undelivered: the questions of this attempt, kept between calls.
    """

    call: Call
    run_id: str
    session_id: str
    hold_s: float = HOLD_S
    undelivered: UndeliveredQuestions = field(factory=UndeliveredQuestions)
