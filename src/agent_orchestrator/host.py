"""What an engine needs of the machine that its agents work on.

The engine itself imports nothing that reaches a process or a file: it asks its :class:`Host`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

from attrs import frozen

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.operations import ProcessView

ProcessState = Literal["gone", "alive", "unknown"]


@frozen
class Remains:
    """What became of the processes of an attempt whose engine is gone.

    :param state: ``gone`` is said only where that is certain. ``alive``: some could not be ended.
        ``unknown``: this host cannot say.
    :param ended: process ids that were alive and have been ended.
    :param alive: process ids that could not be ended.
    :param reason: why it is unknown, for people.
    """

    state: ProcessState = "gone"
    ended: tuple[int, ...] = ()
    alive: tuple[int, ...] = ()
    reason: str = ""


class Host(Protocol):
    """One machine. Its methods may block, except for those that are coroutines: call them in a thread."""

    @property
    def id(self) -> str:
        """The name that each attempt on this machine is recorded with. It outlives restarts."""
        ...

    def process_id(self) -> int:
        """Return the id of the calling process. Quick."""
        ...

    def process_start_id(self, pid: int) -> str | None:
        """Return what, together with its pid, no other process ever had; None if there is no such
        process. Quick.
        """
        ...

    def environment(self) -> dict[str, str]:
        """Return the environment of the calling process."""
        ...

    def current_directory(self) -> str:
        """Return the directory of the calling process."""
        ...

    def configured_directory(self, path: str) -> str:
        """Return a directory that settings name, absolute, with ``~`` and symbolic links resolved.

        :raises OSError: or ``RuntimeError``, if it does not exist.
        """
        ...

    def is_directory(self, path: str) -> bool:
        """Return whether there is a directory that this process may see. It never raises."""
        ...

    def resolve(self, path: str) -> str:
        """Return a path with its symbolic links resolved. It need not exist.

        :raises OSError: or ``RuntimeError``, if its links lead in a circle.
        """
        ...

    def common_directory(self, paths: Collection[str]) -> str:
        """Return the deepest directory that holds all of these, with symbolic links resolved."""
        ...

    def process_tree(self, pid: int, start_id: str | None, limit: int) -> Sequence[ProcessView]:
        """Return a process and its descendants, the process first; none if it is gone or is another
        process with the same id.

        :param limit: how many to return at most.
        """
        ...

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], Remains]:
        """End all processes of attempts whose engine is gone; return once they are gone, or do not go.

        The engine asks only about attempts that this host started.

        :return: by run and number of the attempt. A missing one is ``unknown``.
        """
        ...
