"""The settings of an engine and of its providers: for ``agentd.toml`` as for ``open_embedded``.

A setting is a field that is declared and checked as those of a call are
(:mod:`agent_orchestrator.fields`).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.model import Approvals
from agent_orchestrator.encoding import decode_for_display
from agent_orchestrator.fields import (
    MAX_TREE_DEPTH,
    MAX_TREE_SIZE,
    FieldSpec,
    encoding_problem,
    has_many_digits,
    optional_name,
    param,
    problem_of,
    specs,
)

MAX_CONCURRENCY: Final = 1_000
MAX_QUEUE: Final = 1_000_000
MAX_ATTEMPTS: Final = 3
MAX_WAIT_S: Final = 30 * 86_400

_MIN_TIMEOUT_S: Final = 0.001


@attrs.frozen
class TreeLimits:
    """How far sessions may spawn others; 0 of anything is no children at all."""

    depth: int = param(
        "Generations of children below a session that has no parent.",
        default=5,
        kw_only=False,
        minimum=0,
        maximum=MAX_TREE_DEPTH,
    )
    children: int = param(
        "Children of one run that may be at work.",
        default=16,
        kw_only=False,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )
    descendants: int = param(
        "Sessions of one tree that may be at work.",
        default=64,
        kw_only=False,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )


@attrs.frozen(kw_only=True, slots=False)
class EngineOptions:
    """Settings of an engine that a daemon's user sets, too."""

    max_concurrency: int = param(
        "Runs executed at once.", default=4, minimum=1, maximum=MAX_CONCURRENCY
    )
    max_queue: int = param(
        "Queued runs past which a new one is refused; manual ones aside.",
        default=1000,
        minimum=1,
        maximum=MAX_QUEUE,
    )
    parent_answer_s: float = param(
        "Seconds a parent's agent has to answer its child before people are asked.",
        default=120.0,
        minimum=0,
        maximum=MAX_WAIT_S,
    )
    park_after_s: float = param(
        "Seconds a run waits for an answer before its agent is stopped, to go on when the answer is "
        "there; 0 is at once.",
        default=600.0,
        minimum=0,
        maximum=MAX_WAIT_S,
    )


@attrs.frozen(kw_only=True, slots=False)
class ProviderOptions:
    """Settings that providers of every kind have."""

    model: str | None = optional_name("The model for sessions that name none.")
    on_crash: Literal["resume", "fail"] = param(
        "What becomes of a run whose agent was at work when the engine was lost: `resume` goes on with "
        "its conversation where the runner can, else it fails, as with `fail`.",
        default="resume",
    )
    max_attempts: int = param(
        "How often an engine may be lost with a run before it is not tried again.",
        default=MAX_ATTEMPTS,
        minimum=1,
        maximum=100,
    )
    run_timeout_s: float | None = param(
        "Seconds one attempt of a run may take, the time it waits for answers not counted; no limit "
        "without one.",
        default=None,
        minimum=_MIN_TIMEOUT_S,
        maximum=MAX_WAIT_S,
    )
    silence_timeout_s: float | None = param(
        "Seconds its agent may say nothing meanwhile; it is warned of at half the time.",
        default=None,
        minimum=_MIN_TIMEOUT_S,
        maximum=MAX_WAIT_S,
    )
    approvals: Approvals | None = param(
        "Who decides what its agents ask for; a session may be stricter.", default=None
    )
    open_to_agents: bool = param(
        "Whether an agent in a sandbox may spawn a child with this provider though the child may do "
        "more.",
        default=False,
    )


def check_setting(spec: FieldSpec, place: str, value: Any, *, is_secret: bool = False) -> Any:
    """Return the value of a setting; an integer for a number becomes one.

    :param place: what the setting is named by in the error.
    :param is_secret: True if errors must not repeat the value.
    :raises ConfigError: if it cannot be used.
    """
    if isinstance(value, str) and encoding_problem(value):
        raise ConfigError(
            f"{place}: is not UTF-8" + ("" if is_secret else f": {decode_for_display(value)}")
        )
    if problem := problem_of(spec, value):
        raise ConfigError(f"{place}: {problem}" + ("" if is_secret else _said(value)))
    return float(value) if float in spec.kinds and type(value) is int else value


def _said(value: Any) -> str:
    """Return the end of an error that repeats a number. A very long one is left out."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    return "" if isinstance(value, int) and has_many_digits(value) else f", is {value}"


def check_settings(kind: type, place: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of some of the settings of a class.

    :param place: what stands before their names in errors.
    :raises ConfigError: naming the first that cannot be used.
    """
    known = specs(kind)
    return {
        name: check_setting(known[name], f"{place}{name}", value) for name, value in given.items()
    }
