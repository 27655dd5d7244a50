"""Creates runners from the options of providers. A runner's module is imported only then. Other packages
register runners in the entry-point group :data:`GROUP`. The class is called with the options, and with
``name`` if it takes one. The fields of an attrs class define its options, which are checked strictly
(:mod:`agent_orchestrator.runners.options`).
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from typing import Any, Final

import attrs

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.known_runners import BUILT_IN
from agent_orchestrator.ports.runner import Runner
from agent_orchestrator.runners.options import arguments

GROUP: Final = "agent_orchestrator.runners"


def kinds() -> list[str]:
    """Return the names of all installed kinds of runners."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def build_runner(provider: str, kind: str, options: Mapping[str, Any]) -> Runner:
    """Return the runner of a provider.

    :param kind: the value of ``runner`` in the configuration.
    :param options: the provider's other options, as TOML values.
    :raises ConfigError: if there is no such kind, it cannot be imported, or an option is invalid.
        The message names ``providers.<provider>.<option>``.
    """
    location = f"providers.{provider}"
    factory = _factory(location, kind)
    values = dict(options)
    if isinstance(factory, type) and attrs.has(factory):
        problems: dict[str, str] = {}
        values = arguments(factory, options, location, problems, without=("name",))
        if problems:
            raise ConfigError(
                "; ".join(f"{where}: {problem}" for where, problem in problems.items())
            )
    values = _with_name(factory, provider, values, location)
    try:
        runner = factory(**values)
    except ConfigError as error:
        raise ConfigError(f"{location}.{error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in's constructor may raise anything, or call sys.exit
        reason = str(error) if isinstance(error, Exception) else repr(error)
        raise ConfigError(f"{location}: {reason}") from error
    if not isinstance(runner, Runner):
        raise ConfigError(
            f"{location}.runner: {kind!r} does not create a runner: it has no `name` or no `run`"
        )
    return runner


def _with_name(
    factory: Callable[..., Any], provider: str, options: Mapping[str, Any], location: str
) -> dict[str, Any]:
    """Return the arguments for a factory: the options, and ``name`` if it takes one.

    :raises ConfigError: naming the options that it does not take.
    """
    try:
        parameters = signature(factory).parameters.values()
    except (TypeError, ValueError):  # a class in C has none
        return {**options, "name": provider}
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    taken = {parameter.name for parameter in parameters if parameter.kind in by_name}
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return {**options, "name": provider}
    if unknown := sorted(options.keys() - (taken - {"name"})):
        known = ", ".join(sorted(taken - {"name"})) or "any"
        raise ConfigError(
            "; ".join(f"{location}.{option}: is not one of {known}" for option in unknown)
        )
    return {**options, "name": provider} if "name" in taken else dict(options)


def _factory(location: str, kind: str) -> Callable[..., Any]:
    try:
        if kind in BUILT_IN:
            module, _, name = BUILT_IN[kind].partition(":")
            factory: Callable[..., Any] = getattr(import_module(module), name)
            return factory
        points: list[EntryPoint] = list(entry_points(group=GROUP, name=kind))
        if points:
            loaded: Callable[..., Any] = points[0].load()
            return loaded
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in's module may raise anything, or call sys.exit
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ConfigError(f"{location}.runner: {kind!r} cannot be imported: {reason}") from error
    raise ConfigError(
        f"{location}.runner: unknown runner {kind!r}; choose from: {', '.join(kinds())}"
    )
