"""What the parts of a running engine share."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from math import inf
from pathlib import PurePath
from typing import ClassVar, Protocol, TypeVar

import anyio
from anyio.to_thread import run_sync
from attrs import define, field

from agent_orchestrator.domain.approvals import strictest
from agent_orchestrator.domain.errors import InvalidRequest, Unavailable
from agent_orchestrator.domain.model import MANUAL, Approvals, Session
from agent_orchestrator.encoding import decode_for_display
from agent_orchestrator.engine.config import EngineConfig
from agent_orchestrator.engine.notifier import Notifier
from agent_orchestrator.fields import encoding_problem
from agent_orchestrator.operations import Problem
from agent_orchestrator.ports import CWD_MISSING, Store, Transaction, Transactions

Answer = TypeVar("Answer")

Change = Callable[[Transaction], Answer]
"""A change the store runs; the answer to the caller is what it returns."""

DRAIN_RETRY_S = 5
QUEUE_RETRY_S = 2

MAX_READ_ROWS = 1_000
"""How many of a session's queued runs are looked at; they are counted by ``max_queue``, too."""


class Workers(Protocol):
    """What calls want of the pool."""

    @property
    def alive_workers(self) -> int: ...

    @property
    def busy_workers(self) -> int:
        """How many of them execute a run that does not stand still; more may be at work for a while
        where several such runs go on at once.
        """
        ...

    @property
    def running(self) -> Mapping[str, object]:
        """The runs being executed in this process, by id."""
        ...

    def released(self, run_id: str) -> AbstractContextManager[None]:
        """Lend a run's worker to others while the run stands still in this scope."""
        ...

    async def transact(
        self, store: Transactions, change: Change[Answer], *, reserve: bool
    ) -> Answer:
        """Make a change; a run it queues may be handed to a free worker in the same commit."""
        ...


@define
class StopDeadline:
    """How long agents that are being stopped may take: for as long as their runner allows, but not
    beyond a moment that may still be set, or be put earlier.
    """

    ends_at: float = inf
    """By :func:`anyio.current_time`."""
    _moved: anyio.Event = field(factory=anyio.Event)

    def move_to(self, moment: float) -> None:
        """Have it end then, or when it was to end before."""
        if moment < self.ends_at:
            self.ends_at = moment
            self._moved.set()
            self._moved = anyio.Event()

    async def wait(self) -> None:
        """Return when it has ended."""
        while self.ends_at > anyio.current_time():
            with anyio.CancelScope(deadline=self.ends_at):
                await self._moved.wait()


MAX_REPEATS = 10_000
"""Kinds of calls that are counted; of more the oldest begin anew."""

MAX_VARIANTS = 100
"""Variants of one kind of call that are counted apart; all others are counted together."""


@define
class Repeats:
    """How often agents made the same call with the same outcome, while the engine runs."""

    _counts: OrderedDict[Hashable, dict[Hashable, int]] = field(factory=OrderedDict)
    """By kind, then by variant; None is for variants that are counted together."""

    def count_of(self, kind: Hashable, variant: Hashable = None) -> int:
        """Return how many calls of a kind and variant there were."""
        variants = self._counts.get(kind, {})
        return variants.get(_variant_key(variants, variant), 0)

    def count(self, kind: Hashable, variant: Hashable = None) -> int:
        """Count one more call of a kind and variant; return how many there were."""
        variants = self._counts[kind] = self._counts.pop(kind, {})
        name = _variant_key(variants, variant)
        times = variants[name] = variants.get(name, 0) + 1
        if len(self._counts) > MAX_REPEATS:
            self._counts.popitem(last=False)
        return times


def _variant_key(variants: Mapping[Hashable, int], variant: Hashable) -> Hashable:
    is_counted = variant in variants or len(variants) < MAX_VARIANTS
    return variant if is_counted else None


class _NoWorkers:
    alive_workers = 0
    busy_workers = 0
    running: ClassVar[Mapping[str, object]] = {}

    def released(self, run_id: str) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    async def transact(
        self, store: Transactions, change: Change[Answer], *, reserve: bool
    ) -> Answer:
        return await store.transact(change, reserve=reserve)


@define
class Core:
    """The store, the settings and the notifier, with the lookups that every call needs.

    :param instance: names this engine in ``worker_id`` among all that share the store.
    """

    store: Store
    config: EngineConfig
    instance: str
    started_at: datetime
    notifier: Notifier = field(factory=Notifier)
    workers: Workers = field(factory=_NoWorkers)
    stop_deadline: StopDeadline = field(factory=StopDeadline)
    """With agents that are being stopped."""
    repeats: Repeats = field(factory=Repeats)
    draining: bool = False
    recovery_problem: Problem | None = None
    """What keeps runs of a lost engine from being taken up, as long as something does."""
    process: int = field(init=False)
    """The id of the process that the engine belongs to."""

    def __attrs_post_init__(self) -> None:
        self.process = self.config.host.process_id()

    def require_own_process(self) -> None:
        """Refuse a call in a forked child: it has a copy of the engine, but none of the engine's tasks.

        :raises Unavailable: in a process that was forked from the engine's.
        """
        if self.config.host.process_id() != self.process:
            raise Unavailable(
                f"the engine belongs to process {self.process}, from which this one was forked: only"
                " that one can use it"
            )

    def now(self) -> datetime:
        return self.config.clock()

    def require_accepting(self) -> None:
        """Do nothing, or refuse.

        :raises Unavailable: if the engine is draining.
        """
        if self.draining:
            raise Unavailable("shutting down: try again shortly", retry_after_s=DRAIN_RETRY_S)

    def provider_for(self, session: Session, asked: str | None) -> str:
        """Return the provider of a message: its own, its session's, or the default route.

        :raises InvalidRequest: if there is no such provider.
        """
        return self.known_provider(asked or session.provider or self.config.routing.default)

    async def workspace(self, cwd: str) -> str:
        """Return a place to work: with no symbolic link left in it, where workspaces are confined.

        :raises InvalidRequest: naming ``cwd``, if it is not there or agents may not work there.
        """
        if self.config.workspace_roots:
            cwd = str(await self.real(cwd))
            if not self._is_within_roots(cwd):
                problem = f"is not in one of the daemon's workspace_roots: {cwd}"
                raise InvalidRequest.of({"cwd": problem})
        if not await run_sync(self.config.host.is_directory, cwd):
            raise InvalidRequest.of({"cwd": f"is not a directory: {cwd}"})
        return cwd

    async def cwd_problem(self, cwd: str) -> str | None:
        """Return why the agent of a run may not start in its session's directory; None if it may.

        The directory was checked when the session was made, and may have changed since.
        """
        if not await run_sync(self.config.host.is_directory, cwd):
            return f"{CWD_MISSING}: {cwd}"
        if not self.config.workspace_roots:
            return None
        try:
            is_in_place = str(await self.real(cwd)) == cwd and self._is_within_roots(cwd)
        except InvalidRequest:
            is_in_place = False
        if is_in_place:
            return None
        return f"{cwd} is not, or no longer, a place within the workspace_roots"

    async def real(self, cwd: str) -> PurePath:
        """Return a path with no symbolic link left in it.

        :raises InvalidRequest: naming ``cwd``, if its links lead in a circle, or to a name that is
            not UTF-8, which no answer could tell.
        """
        try:
            found = await run_sync(self.config.host.resolve, cwd)
        except (OSError, RuntimeError):  # which of them depends on the Python
            raise InvalidRequest.of({"cwd": f"leads nowhere: {cwd}"}) from None
        if encoding_problem(found):
            problem = f"leads to {decode_for_display(found)}, whose name is not UTF-8"
            raise InvalidRequest.of({"cwd": problem})
        return PurePath(found)

    def _is_within_roots(self, place: str) -> bool:
        return any(PurePath(place).is_relative_to(root) for root in self.config.workspace_roots)

    def model_of(self, session: Session, provider: str) -> str | None:
        """Return the model a run asks its provider for; None leaves it to the provider."""
        config = self.config.providers.get(provider)
        return session.model or (config.model if config else None)

    def approvals_of(self, session: Session, provider: str | None = None) -> Approvals:
        """Return who decides what a session's agents ask for.

        :param provider: whose agent it is; the one the session's messages go to without one.
        """
        name = provider or session.provider or self.config.routing.default
        config = self.config.providers.get(name)
        return strictest(session.approvals, config.approvals if config else None)

    def known_provider(self, name: str) -> str:
        """Return the name.

        :raises InvalidRequest: if there is no such provider.
        """
        if name != MANUAL and name not in self.config.providers:
            known = ", ".join(sorted(self.config.providers))
            raise InvalidRequest.of({"provider": f"there is no {name!r}; there are: {known}"})
        return name
