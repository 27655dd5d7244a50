"""Base of runners that start an agent's supervisor in advance."""

from typing import Self

from agent_orchestrator.hosts import current_host


class UsesForkServer:
    """A runner that keeps its host's fork server ready while its engine is open: an agent then starts
    about 30 ms faster.

    It has no state, so one runner can serve several engines.
    """

    __slots__ = ()

    async def __aenter__(self) -> Self:
        await current_host().__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await current_host().__aexit__(*exc)
