"""What an engine is told at its start."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from attrs import Factory, field, frozen

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.ids import IdSource, SortableIds
from agent_orchestrator.domain.model import MANUAL, Approvals
from agent_orchestrator.encoding import shown_bytes
from agent_orchestrator.engine.environment import is_tied
from agent_orchestrator.fields import MAX_DEPTH, MAX_TREE, encoding_problem
from agent_orchestrator.host import Host
from agent_orchestrator.operations import Finding
from agent_orchestrator.ports import MARK_VARIABLE, Clock, Observer, ProtectedPaths, Runner

MAX_CONCURRENCY = 1_000
MAX_QUEUE = 1_000_000
MAX_ATTEMPTS = 3
MAX_WAIT_S = 30 * 86_400


@frozen
class EnvPolicy:
    """What of the daemon's environment an agent gets.

    :param inherit: ``all`` of it (so that the user's agent and its keys work as in his shell) but for
        what ties a program to one directory or process (:mod:`agent_orchestrator.engine.environment`),
        ``none``, or the named variables. The daemon's own settings and tokens are never passed on.
    :param set: variables to add.
    """

    inherit: Literal["all", "none"] | tuple[str, ...] = "all"
    set: Mapping[str, str] = field(factory=dict)

    def apply(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment that follows from the daemon's."""
        if self.inherit == "none":
            kept: dict[str, str] = {}
        else:
            free = (name for name in environ if not is_tied(name))
            names = free if self.inherit == "all" else self.inherit
            kept = {
                name: environ[name]
                for name in names
                if name in environ
                and name != MARK_VARIABLE
                and not name.startswith(("AGENTD_", "AGENTCTL_"))
            }
        return kept | dict(self.set)


@frozen
class ProviderConfig:
    """A named way to run an agent.

    :param runner: what executes its runs.
    :param kind: the kind of runner, for the daemon's status.
    :param model: the model for sessions that name none.
    :param on_crash: what becomes of a run whose agent was at work when the engine was lost:
        ``resume`` goes on with its conversation where the runner can, else it fails, as with
        ``fail``.
    :param max_attempts: how often an engine may be lost with a run before it is not tried again.
    :param run_timeout_s: how long one attempt of a run may take, the time it waits for answers not
        counted; None is without a limit.
    :param silence_timeout_s: how long its agent may say nothing meanwhile; it is warned of at half
        the time.
    :param approvals: who decides what its agents ask for; a session may be stricter.
    :param open_to_agents: whether an agent in a sandbox may spawn a child with this provider though the
        child may do more.
    """

    runner: Runner
    kind: str
    model: str | None = None
    env: EnvPolicy = EnvPolicy()
    on_crash: Literal["resume", "fail"] = "resume"
    max_attempts: int = MAX_ATTEMPTS
    run_timeout_s: float | None = None
    silence_timeout_s: float | None = None
    approvals: Approvals | None = None
    open_to_agents: bool = False


@frozen
class Routing:
    """Which provider a message goes to.

    :param default: the provider of sessions and messages that name none.
    :param fallback: by provider, those to try in order when it is unavailable before anything ran.
    """

    default: str
    fallback: Mapping[str, tuple[str, ...]] = field(factory=dict)


@frozen
class TreeLimits:
    """How far sessions may spawn others; 0 of anything is no children at all.

    :param depth: generations below a session that has no parent.
    :param children: children of one run that have not ended.
    :param descendants: sessions of one tree that have not ended.
    """

    depth: int = 5
    children: int = 16
    descendants: int = 64


def _resolved(roots: Sequence[str], host: Host) -> tuple[str, ...]:
    try:
        found = tuple(host.configured_directory(root) for root in roots)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"workspace_roots: {error}") from None
    for root in found:
        _check_name("workspace_roots", root)
    return found


def _current_directory(config: "EngineConfig") -> str:
    return config.host.current_directory()


def _environment(config: "EngineConfig") -> Mapping[str, str]:
    return config.host.environment()


def _check_name(place: str, path: str) -> None:
    if encoding_problem(path):
        raise ConfigError(
            f"{place}: the name of {shown_bytes(path)} is not UTF-8: name another one"
        )


@frozen
class EngineConfig:
    """Settings of an engine.

    :param host: the machine its agents work on.
    :param max_concurrency: runs executed at once.
    :param max_queue: queued runs (manual ones aside) past which a new one is refused.
    :param limits: how far sessions may spawn others.
    :param parent_answer_s: seconds a parent's agent has to answer a request before people are asked.
    :param park_after_s: seconds a run waits for an answer before its agent is stopped, where it can go
        on with its conversation later; its process is freed. 0 is at once.
    :param cwd: where the agents of sessions that name no directory work.
    :param workspace_roots: directories of which one must hold whatever an agent works in; with none, it
        may work anywhere. Kept without symbolic links.
    :param environ: the environment agents' environments are made of.
    :raises ConfigError: if a route names a provider that is not there, a number is not positive, or the
        name of a directory is not UTF-8.
    """

    host: Host = field(kw_only=True)
    providers: Mapping[str, ProviderConfig]
    routing: Routing
    max_concurrency: int = 4
    max_queue: int = 1000
    limits: TreeLimits = TreeLimits()
    parent_answer_s: float = 120.0
    park_after_s: float = 600.0
    cwd: str = field(default=Factory(_current_directory, takes_self=True))
    workspace_roots: Sequence[str] = ()
    environ: Mapping[str, str] = field(default=Factory(_environment, takes_self=True))
    version: str = "0"
    url: str | None = None
    """Where agents reach the engine's daemon; they find it as ``AGENTCTL_URL``."""
    examine: Callable[[], Sequence[Finding]] | None = None
    """Tells what the host knows of itself, for its administrator. May block."""
    protected: Callable[[str], ProtectedPaths] = lambda _: ProtectedPaths()
    """Tells what an agent that works in a directory is kept from. Must be quick."""
    observers: Sequence[Observer] = ()
    """Told what the workers do."""
    clock: Clock = field(default=lambda: datetime.now(UTC))
    ids: IdSource = field(factory=SortableIds)

    def __attrs_post_init__(self) -> None:
        # The one field that is changed before the value is used: a converter does not see the host.
        object.__setattr__(self, "workspace_roots", _resolved(self.workspace_roots, self.host))
        _check_name("cwd", self.cwd)
        if MANUAL in self.providers:
            raise ConfigError(f"providers.{MANUAL}: the name is reserved for runs no worker takes")
        routes = {"routing.default": (self.routing.default,)} | {
            f"routing.fallback.{name}": (name, *targets)
            for name, targets in self.routing.fallback.items()
        }
        for place, names in routes.items():
            for name in names:
                if name not in self.providers and (place, name) != ("routing.default", MANUAL):
                    raise ConfigError(f"{place}: there is no provider {name!r}")
        for name, targets in self.routing.fallback.items():
            if name in targets:
                raise ConfigError(f"routing.fallback.{name}: names {name} itself")
        for place, number, least, most in (
            ("max_concurrency", self.max_concurrency, 1, MAX_CONCURRENCY),
            ("max_queue", self.max_queue, 1, MAX_QUEUE),
            ("limits.depth", self.limits.depth, 0, MAX_DEPTH),
            ("limits.children", self.limits.children, 0, MAX_TREE),
            ("limits.descendants", self.limits.descendants, 0, MAX_TREE),
        ):
            if not least <= number <= most:
                raise ConfigError(f"{place}: must be between {least} and {most:,}, is {number}")
        for place, seconds in (
            ("parent_answer_s", self.parent_answer_s),
            ("park_after_s", self.park_after_s),
        ):
            if not 0 <= seconds <= MAX_WAIT_S:
                raise ConfigError(f"{place}: must be between 0 and {MAX_WAIT_S:,}, is {seconds}")
