"""The shared state of a running engine."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
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
from agent_orchestrator.engine.import_slots import Imports
from agent_orchestrator.engine.last_seen import LastSeen
from agent_orchestrator.engine.notifier import Notifier
from agent_orchestrator.engine.shared_reads import SharedReads
from agent_orchestrator.fields import encoding_problem
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.runner import CWD_MISSING
from agent_orchestrator.ports.store import Store, Transactions

Answer = TypeVar("Answer")
Found = TypeVar("Found")

Change = Callable[[Transaction], Answer]
"""A change that the store runs. It returns the answer to the caller."""

DRAIN_RETRY_S = 5
"""``Retry-After`` in seconds while the engine drains."""

QUEUE_RETRY_S = 2
"""``Retry-After`` in seconds when the queue, or the space for images, is full."""

MAX_READ_ROWS = 1_000
"""Maximum number of a session's queued runs, or other rows, that are read at once."""


MAX_LOOKS = 40
"""Maximum number of looks at directories at the same time: anyio's usual number of threads."""


class Workers(Protocol):
    """The part of the worker pool that calls use."""

    @property
    def alive_workers(self) -> int: ...

    @property
    def busy_workers(self) -> int:
        """The number of runs being executed that are not blocked. It can exceed ``alive_workers`` for a
        while if several blocked runs continue at once.
        """
        ...

    @property
    def running(self) -> Mapping[str, object]:
        """The runs being executed in this process, by id."""
        ...

    def has_used_token(self, run_id: str) -> bool:
        """Return whether something has authenticated with the token of a run's attempt."""
        ...

    def release(self, reason: str) -> object:
        """Release every active run to the queue."""
        ...

    def is_parking(self, run_id: str) -> bool:
        """Return whether a run's agent is being stopped because the run waits for an answer."""
        ...

    def released(self, run_id: str) -> AbstractContextManager[None]:
        """Release a run's slot while it is blocked within this scope."""
        ...

    async def transact(
        self, store: Transactions, change: Change[Answer], *, reserve: bool
    ) -> Answer:
        """Make a change. A run that it queues may be assigned to a free worker in the same commit."""
        ...


@define
class StopDeadline:
    """The time at which agents that are being stopped are killed. It can only be moved to an earlier time."""

    ends_at: float = inf
    """By :func:`anyio.current_time`."""
    _moved: anyio.Event = field(factory=anyio.Event)

    def move_to(self, moment: float) -> None:
        """Set the deadline, unless it is earlier already."""
        if moment < self.ends_at:
            self.ends_at = moment
            self._moved.set()
            self._moved = anyio.Event()

    async def wait(self) -> None:
        """Wait until the deadline has passed."""
        while self.ends_at > anyio.current_time():
            with anyio.CancelScope(deadline=self.ends_at):
                await self._moved.wait()


MAX_REPEATS = 10_000
"""Maximum number of kinds of calls that are counted. The oldest are forgotten."""

MAX_VARIANTS = 100
"""Maximum number of variants of a kind that are counted separately. The others share one count."""


@define
class Repeats:
    """Counts equal calls of agents with equal outcomes, since the engine's start."""

    _counts: OrderedDict[Hashable, dict[Hashable, int]] = field(factory=OrderedDict)
    """By kind, then by variant. The variant None is the shared count."""

    def count_of(self, kind: Hashable, variant: Hashable = None) -> int:
        """Return the number of calls of a kind and variant."""
        variants = self._counts.get(kind, {})
        return variants.get(_variant_key(variants, variant), 0)

    def count(self, kind: Hashable, variant: Hashable = None) -> int:
        """Count a call of a kind and variant, and return their number."""
        variants = self._counts[kind] = self._counts.pop(kind, {})
        key = _variant_key(variants, variant)
        count = variants[key] = variants.get(key, 0) + 1
        if len(self._counts) > MAX_REPEATS:
            self._counts.popitem(last=False)
        return count


def _variant_key(variants: Mapping[Hashable, int], variant: Hashable) -> Hashable:
    is_counted = variant in variants or len(variants) < MAX_VARIANTS
    return variant if is_counted else None


class _NoWorkers:
    alive_workers = 0
    busy_workers = 0
    running: ClassVar[Mapping[str, object]] = {}

    def has_used_token(self, run_id: str) -> bool:  # noqa: ARG002
        return False

    def release(self, reason: str) -> object:
        """Do nothing: no run is active."""

    def is_parking(self, run_id: str) -> bool:  # noqa: ARG002
        return False

    def released(self, run_id: str) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    async def transact(
        self, store: Transactions, change: Change[Answer], *, reserve: bool
    ) -> Answer:
        return await store.transact(change, reserve=reserve)


@define
class Core:
    """The store, the settings and the notifier of an engine, with checks that many calls need.

    :param own_id: the engine's id, if it shares the store with no other daemon.
    """

    store: Store
    config: EngineConfig
    own_id: str
    started_at: datetime
    notifier: Notifier = field(factory=Notifier)
    workers: Workers = field(factory=_NoWorkers)
    stop_deadline: StopDeadline = field(factory=StopDeadline)
    repeats: Repeats = field(factory=Repeats)
    last_seen: LastSeen = field(factory=LastSeen)
    imports: Imports = field(factory=Imports)
    shared_reads: SharedReads = field(init=False)
    _looks: anyio.CapacityLimiter = field(
        factory=lambda: anyio.CapacityLimiter(MAX_LOOKS), init=False
    )
    """Not the common limiter, so that directories that do not answer stop no other calls in threads."""
    draining: bool = False
    recovery_problem: Problem | None = None
    """Why some runs of an earlier engine are not recovered yet."""
    process: int = field(init=False)
    """The pid of the engine's process."""

    def __attrs_post_init__(self) -> None:
        self.process = self.config.host.process_id()
        self.shared_reads = SharedReads(self.store)

    @property
    def instance(self) -> str:
        """The id of this engine, the first part of ``worker_id``. It changes after a lost lease."""
        lease = self.store.lease
        return self.own_id if lease is None else lease.daemon_id

    def is_here(self, host: str | None) -> bool:
        """Return whether a session's or attempt's host is this one.

        Always if no other daemon can use the store: the machine may have got another name.
        """
        return self.store.lease is None or host in (None, self.config.host.id)

    def require_own_process(self) -> None:
        """Raise ``Unavailable`` in a forked process: it has a copy of the engine without its tasks."""
        if self.config.host.process_id() != self.process:
            raise Unavailable(
                f"the engine belongs to process {self.process}, from which this process was forked."
                " Only that process can use it"
            )

    def now(self) -> datetime:
        """Return the time of day. Daemons that share a store use the store's, as their clocks may differ."""
        now, lease = self.config.clock(), self.store.lease
        if lease is None or not lease.clock_offset_s:
            return now
        return now - timedelta(seconds=lease.clock_offset_s)

    def require_accepting(self) -> None:
        """Raise ``Unavailable`` if the engine is draining."""
        if self.draining:
            raise Unavailable(
                "the daemon is stopping: try again shortly", retry_after_s=DRAIN_RETRY_S
            )

    async def workspace(self, cwd: str) -> str:
        """Return the checked directory of a session, with symbolic links resolved if there are
        ``workspace_roots``.

        :raises InvalidRequest: naming ``cwd``, if it is not a directory, or outside ``workspace_roots``.
        """
        if self.config.workspace_roots:
            cwd = str(await self.resolve(cwd))
            if not self._is_within_roots(cwd):
                problem = f"is not in one of the daemon's workspace_roots: {cwd}"
                raise InvalidRequest.of({"cwd": problem})
        if not await self._look(self.config.host.is_directory, cwd):
            raise InvalidRequest.of({"cwd": f"is not a directory: {cwd}"})
        return cwd

    async def cwd_problem(self, cwd: str) -> str | None:
        """Return why an agent may not start in its session's directory; None if it may.

        The directory may have changed since the session was created.
        """
        if not await self._look(self.config.host.is_directory, cwd):
            return f"{CWD_MISSING}: {cwd}"
        if not self.config.workspace_roots:
            return None
        try:
            is_in_place = str(await self.resolve(cwd)) == cwd and self._is_within_roots(cwd)
        except InvalidRequest:
            is_in_place = False
        if is_in_place:
            return None
        return f"{cwd} is not, or no longer, a directory within the workspace_roots"

    async def resolve(self, cwd: str) -> PurePath:
        """Return a path with symbolic links resolved.

        :raises InvalidRequest: naming ``cwd``, if its links form a loop, or the result is not UTF-8, which
            JSON cannot express.
        """
        try:
            path = await self._look(self.config.host.resolve, cwd)
        except (OSError, RuntimeError):  # for a loop, Python 3.12 and older raise RuntimeError
            raise InvalidRequest.of({"cwd": f"does not exist: {cwd}"}) from None
        if encoding_problem(path):
            problem = f"resolves to {decode_for_display(path)}, whose name is not UTF-8"
            raise InvalidRequest.of({"cwd": problem})
        return PurePath(path)

    async def _look(self, function: Callable[[str], Found], cwd: str) -> Found:
        """Call a function about a directory, in a thread. A cancel does not wait for it: the directory may be on a
        server that does not answer.
        """
        return await run_sync(function, cwd, abandon_on_cancel=True, limiter=self._looks)

    def _is_within_roots(self, directory: str) -> bool:
        return any(PurePath(directory).is_relative_to(root) for root in self.config.workspace_roots)

    def model_of(self, session: Session, provider: str) -> str | None:
        """Return the model of a session's runs; None means the provider's own default."""
        config = self.config.providers.get(provider)
        return session.model or (config.model if config else None)

    def approvals_of(self, session: Session, provider: str | None = None) -> Approvals:
        """Return the approval policy for a session's agents: the stricter of session and provider.

        :param provider: the agent's provider; None means the session's.
        """
        name = provider or session.provider or self.config.routing.default
        config = self.config.providers.get(name)
        return strictest(session.approvals, config.approvals if config else None)

    def known_provider(self, name: str) -> str:
        """Return the name of a provider of this engine unchanged.

        :raises InvalidRequest: if there is no such provider.
        """
        if name != MANUAL and name not in self.config.providers:
            known = ", ".join(sorted(self.config.providers))
            raise InvalidRequest.of(
                {"provider": f"unknown provider {name!r}; choose from: {known}"}
            )
        return name
