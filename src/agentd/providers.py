"""The ``[providers.NAME]`` and ``[routing]`` tables of the configuration."""

import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from attrs import evolve, field, frozen

from agent_orchestrator.configuration import ProviderOptions, check_settings
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.fields import specs
from agent_orchestrator.known_runners import (
    DEFAULT_PROVIDER,
    KNOWN_PROVIDERS,
    AgentDefaults,
    defaults_of,
)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@frozen
class ProviderSettings(ProviderOptions):
    """One way to run an agent, as configured.

    :param inherit: the daemon's variables that its agents get.
    :param set: further variables for its agents.
    :param options: settings that only its runner knows.
    """

    runner: str
    inherit: Literal["all", "none"] | tuple[str, ...] = field(default="all", kw_only=True)
    set: Mapping[str, str] = field(factory=dict, kw_only=True)
    options: Mapping[str, Any] = field(factory=dict, kw_only=True)


@frozen
class RoutingSettings:
    """The choice of providers for messages; see :class:`agent_orchestrator.engine.Routing`."""

    default: str
    fallback: Mapping[str, tuple[str, ...]] = field(factory=dict)
    prefer: tuple[str, ...] = ()
    """If not empty, the first of these that is ready when the daemon starts is the default."""


def read_providers(
    providers: Mapping[str, Any],
    routing: Mapping[str, Any],
    *,
    location: str,
    defaults: AgentDefaults,
    find_program: Callable[[str], str | None] = shutil.which,
) -> tuple[dict[str, ProviderSettings], RoutingSettings]:
    """Return the providers by name, and their routing.

    If none is configured, these are the known providers whose programs are installed, the default
    provider in any case, and ``demo``.

    :param location: the file's name for errors.
    :param defaults: options for providers that do not set them.
    :param find_program: returns the path of an installed program.
    :raises ConfigError: listing each invalid provider or route with its location in the file.
    """
    result: dict[str, ProviderSettings] = {}
    problems: list[str] = []
    for name, table in providers.items():
        try:
            result[name] = _provider(name, table, f"{location}: ")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    if not result:
        result = {
            name: ProviderSettings(known.runner, options=known.options)
            for name, known in KNOWN_PROVIDERS.items()
            if name == DEFAULT_PROVIDER or find_program(known.program)
        }
        found = tuple(result)
        if len(found) > 1 and not routing.keys() & {"default", "prefer"}:
            routing = {**routing, "prefer": list(found)}
        result["demo"] = ProviderSettings("demo")
    result = {
        name: evolve(
            provider, options={**defaults_of(provider.runner, defaults), **provider.options}
        )
        for name, provider in result.items()
    }
    return result, _routes(routing, result, f"{location}: ")


def _provider(name: str, table: Any, file: str) -> ProviderSettings:
    location = f"{file}providers.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{location}: a provider's name may have only letters, digits, '_', '.' and '-'"
        )
    if not isinstance(table, Mapping):
        raise ConfigError(f"{location}: must be a table")
    options = dict(table)
    runner = _text(options.pop("runner", None), f"{location}.runner")
    inherit, env_set = _environment(options.pop("env", {}), f"{location}.env")
    common_values = {name: options.pop(name) for name in specs(ProviderOptions) if name in options}
    common = check_settings(ProviderOptions, f"{location}.", common_values)
    return ProviderSettings(runner, inherit=inherit, set=env_set, options=options, **common)


def _environment(table: Any, location: str) -> tuple[Any, dict[str, str]]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{location}: must be a table with `inherit` and `set`")
    if unknown := table.keys() - {"inherit", "set"}:
        raise ConfigError(
            f"{location}.{min(unknown)}: unknown setting; choose from `inherit` and `set`"
        )
    inherit = table.get("inherit", "all")
    if isinstance(inherit, list) and all(isinstance(name, str) for name in inherit):
        inherit = tuple(inherit)
    elif inherit not in ("all", "none"):
        raise ConfigError(f"{location}.inherit: must be 'all', 'none' or a list of names")
    env_set = table.get("set", {})
    if not isinstance(env_set, Mapping) or not all(isinstance(v, str) for v in env_set.values()):
        raise ConfigError(f"{location}.set: must be a table of strings")
    return inherit, dict(env_set)


def _routes(
    table: Mapping[str, Any], providers: Mapping[str, ProviderSettings], file: str
) -> RoutingSettings:
    if unknown := table.keys() - {"default", "fallback", "prefer"}:
        raise ConfigError(
            f"{file}routing.{min(unknown)}: unknown setting; choose from `default`, `fallback` and `prefer`"
        )
    prefer = _preferred(table.get("prefer", []), providers, f"{file}routing.prefer")
    if prefer and "default" in table:
        raise ConfigError(f"{file}routing.prefer: cannot be combined with `default`")
    if "default" in table:
        default = _text(table["default"], f"{file}routing.default")
    elif prefer:
        default = prefer[0]
    elif DEFAULT_PROVIDER in providers:
        default = DEFAULT_PROVIDER
    elif len(providers) == 1:
        default = next(iter(providers))
    else:
        names = ", ".join(providers)
        raise ConfigError(
            f"{file}routing.default: is required, or `prefer`; the providers are {names}"
        )
    fallback = table.get("fallback", {})
    if not isinstance(fallback, Mapping):
        raise ConfigError(f"{file}routing.fallback: must be a table")
    routes: dict[str, tuple[str, ...]] = {}
    for name, targets in fallback.items():
        location = f"{file}routing.fallback.{name}"
        if not isinstance(targets, list) or not targets:
            raise ConfigError(f"{location}: must be a list of providers")
        routes[name] = tuple(_text(target, location) for target in targets)
    return RoutingSettings(default, routes, prefer)


def _preferred(
    names: Any, providers: Mapping[str, ProviderSettings], location: str
) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise ConfigError(f"{location}: must be a list of providers")
    for name in names:
        if _text(name, location) not in providers:
            raise ConfigError(f"{location}: unknown provider {name!r}")
    return tuple(dict.fromkeys(names))


def _text(value: Any, label: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{label}: must be a string" if value is not None else f"{label}: is required"
        )
    return value
