"""The base class of runners whose agents stay alive between runs."""

from abc import abstractmethod
from typing import Any, Final, Self

from attrs import frozen

from agent_orchestrator.fields import runner_option
from agent_orchestrator.operations.options import MAX_OPEN_S, MIN_OPEN_S
from agent_orchestrator.runners.conversations import ConversationRunner
from agent_orchestrator.runners.live.pool import ProcessPool
from agent_orchestrator.runners.supervisor import UsesForkServer

MAX_INPUT: Final = 2**20
"""Maximum characters of a prompt, for agents that state no maximum. The longest message fits, so it only limits the
results of children that come in one turn. All agents that were tried took 900,000 characters."""


@frozen(kw_only=True, eq=False, slots=False)
class LiveRunner(ConversationRunner, UsesForkServer):
    """The base of runners of live agents: their common options, and the scope of their processes.

    An async context manager, for one engine at a time. Leaving it ends its processes. It must be the first
    base of a class, because it enters the scopes of the other bases.
    """

    approval_timeout_s: float = runner_option(
        # Within the bounds of a request's time: outside of them, every question would be declined.
        "Seconds after which an unanswered request is declined; at most 30 days.",
        default=3600.0,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
    )
    idle_s: float = runner_option(
        "Seconds after which a process without a run is stopped. The next run starts another.",
        default=300.0,
        minimum=0,
    )
    max_idle: int = runner_option(
        "Maximum number of processes without a run. Those longest without one are stopped.",
        default=8,
        minimum=0,
    )

    @property
    @abstractmethod
    def _pool(self) -> ProcessPool[Any]:
        """The pool of its processes, a field of the subclass."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            await self._pool.__aenter__()
        except BaseException:
            await super().__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._pool.__aexit__(*exc)
        finally:
            await super().__aexit__()
