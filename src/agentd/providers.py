"""The ``[providers.NAME]`` and ``[routing]`` tables of the configuration."""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from attrs import evolve, field, frozen

from agent_orchestrator.configuration import ProviderOptions, check_settings
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.fields import specs
from agent_orchestrator.known_runners import DEFAULT_PROVIDER, AgentDefaults, defaults_of

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@frozen
class ProviderSettings(ProviderOptions):
    """One way to run an agent, as configured.

    :param inherit: what of the daemon's environment its agents get.
    :param set: variables its agents get beside.
    :param options: what is the runner's own business.
    """

    runner: str
    inherit: Literal["all", "none"] | tuple[str, ...] = field(default="all", kw_only=True)
    set: Mapping[str, str] = field(factory=dict, kw_only=True)
    options: Mapping[str, Any] = field(factory=dict, kw_only=True)


@frozen
class RoutingSettings:
    """Where messages go; see :class:`agent_orchestrator.engine.Routing`."""

    default: str
    fallback: Mapping[str, tuple[str, ...]] = field(factory=dict)


def read_providers(
    providers: Mapping[str, Any],
    routing: Mapping[str, Any],
    *,
    place: str,
    defaults: AgentDefaults,
) -> tuple[dict[str, ProviderSettings], RoutingSettings]:
    """Return the providers by name and the routes between them.

    Without any there are the default one and ``demo``.

    :param place: what to call the file in errors.
    :param defaults: options for providers that do not set them.
    :raises ConfigError: naming the place of each provider, or route, that cannot be used.
    """
    found: dict[str, ProviderSettings] = {}
    problems: list[str] = []
    for name, table in providers.items():
        try:
            found[name] = _provider(name, table, f"{place}: ")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    if not found:
        found = {name: ProviderSettings(name) for name in (DEFAULT_PROVIDER, "demo")}
    found = {
        name: evolve(one, options={**defaults_of(one.runner, defaults), **one.options})
        for name, one in found.items()
    }
    return found, _routes(routing, found, f"{place}: ")


def _provider(name: str, table: Any, file: str) -> ProviderSettings:
    place = f"{file}providers.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{place}: a provider's name may have only letters, digits, '_', '.' and '-'"
        )
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place}: must be a table")
    options = dict(table)
    runner = _text(options.pop("runner", None), f"{place}.runner")
    inherit, added = _environment(options.pop("env", {}), f"{place}.env")
    given = {name: options.pop(name) for name in specs(ProviderOptions) if name in options}
    common = check_settings(ProviderOptions, f"{place}.", given)
    return ProviderSettings(runner, inherit=inherit, set=added, options=options, **common)


def _environment(table: Any, place: str) -> tuple[Any, dict[str, str]]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place}: must be a table with `inherit` and `set`")
    if unknown := table.keys() - {"inherit", "set"}:
        raise ConfigError(
            f"{place}.{min(unknown)}: unknown setting; choose from `inherit` and `set`"
        )
    inherit = table.get("inherit", "all")
    if isinstance(inherit, list) and all(isinstance(name, str) for name in inherit):
        inherit = tuple(inherit)
    elif inherit not in ("all", "none"):
        raise ConfigError(f"{place}.inherit: must be 'all', 'none' or a list of names")
    added = table.get("set", {})
    if not isinstance(added, Mapping) or not all(isinstance(v, str) for v in added.values()):
        raise ConfigError(f"{place}.set: must be a table of strings")
    return inherit, dict(added)


def _routes(
    table: Mapping[str, Any], providers: Mapping[str, ProviderSettings], file: str
) -> RoutingSettings:
    if unknown := table.keys() - {"default", "fallback"}:
        raise ConfigError(
            f"{file}routing.{min(unknown)}: unknown setting; choose from `default` and `fallback`"
        )
    if "default" in table:
        default = _text(table["default"], f"{file}routing.default")
    elif DEFAULT_PROVIDER in providers:
        default = DEFAULT_PROVIDER
    elif len(providers) == 1:
        default = next(iter(providers))
    else:
        names = ", ".join(providers)
        raise ConfigError(f"{file}routing.default: is required; the providers are {names}")
    fallback = table.get("fallback", {})
    if not isinstance(fallback, Mapping):
        raise ConfigError(f"{file}routing.fallback: must be a table")
    routes: dict[str, tuple[str, ...]] = {}
    for name, targets in fallback.items():
        place = f"{file}routing.fallback.{name}"
        if not isinstance(targets, list) or not targets:
            raise ConfigError(f"{place}: must be a list of providers")
        routes[name] = tuple(_text(target, place) for target in targets)
    return RoutingSettings(default, routes)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{place}: must be text" if value is not None else f"{place}: is required"
        )
    return value
