"""The engine's interface to the machine that its agents work on.

The engine imports no module that accesses processes or files. It uses its :class:`Host` instead.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

from attrs import frozen

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.operations import ProcessView

ProcessState = Literal["gone", "alive", "unknown"]


@frozen
class Remains:
    """The state of the processes of an attempt whose engine has ended.

    :param state: ``gone`` if certainly all have ended, ``alive`` if some could not be ended, ``unknown``
        if this host cannot find out.
    :param ended: ids of the processes that were ended now.
    :param alive: ids of the processes that could not be ended.
    :param reason: why the state is unknown, for people.
    """

    state: ProcessState = "gone"
    ended: tuple[int, ...] = ()
    alive: tuple[int, ...] = ()
    reason: str = ""


class Host(Protocol):
    """One machine. Methods that are not coroutines may block: call them in a thread."""

    @property
    def id(self) -> str:
        """The machine's name in the records of attempts. It stays the same after a restart."""
        ...

    def process_id(self) -> int:
        """Return the id of the calling process. Never blocks."""
        ...

    def process_start_id(self, pid: int) -> str | None:
        """Return a text that identifies a process together with its pid; None if it does not exist.

        Never blocks.
        """
        ...

    def environment(self) -> dict[str, str]:
        """Return the environment of the calling process."""
        ...

    def current_directory(self) -> str:
        """Return the directory of the calling process."""
        ...

    def configured_directory(self, path: str) -> str:
        """Return a directory from the settings as an absolute path, with ``~`` and symbolic links resolved.

        :raises OSError: or ``RuntimeError``, if it does not exist.
        """
        ...

    def is_directory(self, path: str) -> bool:
        """Return True if the path is a directory that this process may see. Never raises."""
        ...

    def resolve(self, path: str) -> str:
        """Return a path with its symbolic links resolved. It need not exist.

        :raises OSError: or ``RuntimeError``, if its links form a loop.
        """
        ...

    def common_directory(self, paths: Collection[str]) -> str:
        """Return the deepest common directory of the paths, with symbolic links resolved."""
        ...

    def process_tree(self, pid: int, start_id: str | None, limit: int) -> Sequence[ProcessView]:
        """Return a process and its descendants, the process first.

        Return none if it has ended, or if the pid now belongs to another process.

        :param limit: maximum number of processes.
        """
        ...

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], Remains]:
        """End all processes of attempts whose engine has ended, and wait for that.

        The engine passes only attempts that this host started.

        :return: by run id and number of the attempt. A missing one is ``unknown``.
        """
        ...
