"""The settings of an engine."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from attrs import Factory, field, frozen

from agent_orchestrator.configuration import (
    EngineOptions,
    ProviderOptions,
    TreeLimits,
    check_settings,
)
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.ids import IdSource, SortableIds
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.encoding import decode_for_display
from agent_orchestrator.engine.environment import is_host_variable
from agent_orchestrator.fields import encoding_problem, values_of
from agent_orchestrator.host import Host
from agent_orchestrator.notice_settings import NotifyOptions
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.ports.channel import PushService, Target
from agent_orchestrator.ports.clock import Clock
from agent_orchestrator.ports.observer import Observer
from agent_orchestrator.ports.runner import TAG_VARIABLE, ProtectedPaths, Runner


@frozen
class EnvPolicy:
    """The environment variables of agents.

    :param inherit: variables from the daemon's environment: ``all`` (so that agents work as in the
        user's shell), except those that belong to one directory or process
        (:mod:`agent_orchestrator.engine.environment`); ``none``; or the named ones. The daemon's own
        settings and tokens are never passed on.
    :param set: variables to add.
    """

    inherit: Literal["all", "none"] | tuple[str, ...] = "all"
    set: Mapping[str, str] = field(factory=dict)

    def apply(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for agents, given the daemon's."""
        if self.inherit == "none":
            inherited: dict[str, str] = {}
        else:
            portable = (name for name in environ if not is_host_variable(name))
            names = portable if self.inherit == "all" else self.inherit
            inherited = {
                name: environ[name]
                for name in names
                if name in environ
                and name != TAG_VARIABLE
                and not name.startswith(("AGENTD_", "AGENTCTL_"))
            }
        return inherited | dict(self.set)


@frozen
class ProviderConfig(ProviderOptions):
    """A named way to run an agent.

    :param runner: the runner that executes its runs.
    :param kind: the runner's kind, for the daemon's status.
    """

    runner: Runner
    kind: str
    env: EnvPolicy = field(default=EnvPolicy(), kw_only=True)


@frozen
class Routing:
    """The choice of a message's provider.

    :param default: the provider of sessions and messages that name none.
    :param fallback: for each provider, those to try in order if it is unavailable.
    :param prefer: if not empty, the default is the first of these that is available when the engine starts;
        see :func:`~agent_orchestrator.engine.providers.with_default`. A new session then keeps the provider
        that was the default, because another start may choose another.
    """

    default: str
    fallback: Mapping[str, tuple[str, ...]] = field(factory=dict)
    prefer: tuple[str, ...] = ()


def _resolved(roots: Sequence[str], host: Host) -> tuple[str, ...]:
    value: object = roots  # an application may pass any type
    if not isinstance(value, list | tuple) or not all(isinstance(root, str) for root in value):
        raise ConfigError("workspace_roots: must be a list of strings")
    try:
        directories = tuple(host.configured_directory(root) for root in roots)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"workspace_roots: {error}") from None
    for root in directories:
        _check_name("workspace_roots", root)
    return directories


def _current_directory(config: "EngineConfig") -> str:
    try:
        return config.host.current_directory()
    except OSError as error:  # it was removed
        raise ConfigError(f"cwd: the current directory cannot be used: {error.strerror}") from None


def _environment(config: "EngineConfig") -> Mapping[str, str]:
    return config.host.environment()


def _check_name(setting: str, path: str) -> None:
    if encoding_problem(path):
        raise ConfigError(
            f"{setting}: the name of {decode_for_display(path)} is not UTF-8: choose another directory"
        )


@frozen
class EngineConfig(EngineOptions):
    """Settings of an engine.

    :param host: the machine that its agents work on.
    :param limits: limits on the descendants of sessions.
    :param cwd: the directory of sessions that name none.
    :param workspace_roots: directories in which agents may work; empty means anywhere. Stored without
        symbolic links.
    :param environ: the daemon's environment, from which agents inherit.
    :param version: the daemon's version, for its status.
    :raises ConfigError: if a setting is invalid: a route to an unknown provider, a number out of bounds,
        or a directory whose name is not UTF-8.
    """

    host: Host = field(kw_only=True)
    providers: Mapping[str, ProviderConfig]
    routing: Routing
    limits: TreeLimits = TreeLimits()
    cwd: str = field(default=Factory(_current_directory, takes_self=True))
    workspace_roots: Sequence[str] = ()
    environ: Mapping[str, str] = field(default=Factory(_environment, takes_self=True))
    version: str = "0"
    url: str | None = None
    """The daemon's URL for agents, passed to them as ``AGENTCTL_URL``."""
    findings: Callable[[], Sequence[Finding]] = tuple
    """Returns findings for the doctor besides those of the engine and its host. May block."""
    protected: Callable[[str], ProtectedPaths] = lambda _: ProtectedPaths()
    """Returns the paths that an agent in a directory is denied. Must be quick."""
    observers: Sequence[Observer] = ()
    notify: NotifyOptions = NotifyOptions()
    targets: Mapping[str, Target] = field(factory=dict)
    """The targets of notices, by name."""
    push: PushService | None = None
    """Sends notices to browsers. None if they cannot subscribe."""
    clock: Clock = field(default=lambda: datetime.now(UTC))
    ids: IdSource = field(factory=SortableIds)

    def agent_env(self, provider: ProviderConfig) -> dict[str, str]:
        """Return the environment that the agents of all runs of a provider have."""
        url = {} if self.url is None else {"AGENTCTL_URL": self.url}
        return provider.env.apply(self.environ) | url

    def __attrs_post_init__(self) -> None:
        # Not a converter, because mypy 2.3 does not support one with `takes_self`.
        object.__setattr__(self, "workspace_roots", _resolved(self.workspace_roots, self.host))
        _check_name("cwd", self.cwd)
        if MANUAL in self.providers:
            raise ConfigError(
                f"providers.{MANUAL}: this name is reserved for runs without an agent"
            )
        routes = {"routing.default": (self.routing.default,)} | {
            f"routing.fallback.{name}": (name, *targets)
            for name, targets in self.routing.fallback.items()
        }
        routes["routing.prefer"] = self.routing.prefer
        for setting, names in routes.items():
            for name in names:
                if name not in self.providers and (setting, name) != ("routing.default", MANUAL):
                    raise ConfigError(f"{setting}: unknown provider {name!r}")
        for name, targets in self.routing.fallback.items():
            if name in targets:
                raise ConfigError(f"routing.fallback.{name}: names {name} itself")
        check_settings(EngineOptions, "", values_of(EngineOptions, self))
        check_settings(TreeLimits, "limits.", values_of(TreeLimits, self.limits))
        for name, provider in self.providers.items():
            check_settings(
                ProviderOptions, f"providers.{name}.", values_of(ProviderOptions, provider)
            )
