"""The settings of an engine and its providers, for ``agentd.toml`` and ``open_embedded``.

Settings are declared and checked like the fields of a call (:mod:`agent_orchestrator.fields`).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.model import Approvals
from agent_orchestrator.encoding import decode_for_display
from agent_orchestrator.fields import (
    HOST_PATTERN,
    MAX_HOST,
    MAX_LABELS,
    MAX_RETAIN_BYTES,
    MAX_RETAIN_DAYS,
    MAX_RETAIN_EVENTS,
    MAX_TREE_DEPTH,
    MAX_TREE_SIZE,
    FieldSpec,
    Limits,
    encoding_problem,
    has_many_digits,
    optional_name,
    optional_path,
    param,
    problem_of,
    specs,
)

MAX_CONCURRENCY: Final = 1_000
MAX_QUEUE: Final = 1_000_000
MAX_ATTEMPTS: Final = 3
MAX_WAIT_S: Final = 30 * 86_400

_MIN_TIMEOUT_S: Final = 0.001


@attrs.frozen(kw_only=True)
class TreeLimits:
    """Limits on the descendants of sessions. A limit of 0 means no children."""

    depth: int = param(
        "Maximum depth of descendants below a session without a parent.",
        default=5,
        minimum=0,
        maximum=MAX_TREE_DEPTH,
    )
    children: int = param(
        "Maximum number of active children of one run.",
        default=16,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )
    descendants: int = param(
        "Maximum number of active sessions of one tree.",
        default=64,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )


@attrs.frozen(kw_only=True, slots=False)
class EngineOptions:
    """Settings of an engine, embedded or in a daemon."""

    max_concurrency: int = param(
        "Maximum number of runs executed at once.", default=4, minimum=1, maximum=MAX_CONCURRENCY
    )
    max_queue: int = param(
        "Maximum number of queued runs, without manual ones. Beyond it new runs are refused.",
        default=1000,
        minimum=1,
        maximum=MAX_QUEUE,
    )
    parent_answer_s: float = param(
        "Seconds that a parent's agent has to answer its child before people are asked.",
        default=120.0,
        minimum=0,
        maximum=MAX_WAIT_S,
    )
    retain_days: int = param(
        "How many days the events of sessions are kept. A session can set another limit, here and in "
        "the next two. 0 keeps all.",
        default=0,
        minimum=0,
        maximum=MAX_RETAIN_DAYS,
    )
    retain_events: int = param(
        "Maximum number of events to keep of each session. 0 keeps all.",
        default=0,
        minimum=0,
        maximum=MAX_RETAIN_EVENTS,
    )
    retain_bytes: int = param(
        "Maximum size of the events to keep of each session, in bytes of their data. 0 keeps all.",
        default=0,
        minimum=0,
        maximum=MAX_RETAIN_BYTES,
    )
    park_after_s: float = param(
        "Seconds that a run waits for an answer before its agent is stopped; the answer starts it "
        "again. 0 stops it at once.",
        default=600.0,
        minimum=0,
        maximum=MAX_WAIT_S,
    )
    host_name: str | None = param(
        "The name of this machine or container in a store that several machines share. Sessions and their runs "
        "belong to it, so it must stay the same, and no other machine may have it. Default: a name made of the "
        "machine's id.",
        default=None,
        pattern=f"(?!local$){HOST_PATTERN}",  # that is the name without a setting
        max_length=MAX_HOST,
    )
    host_labels: tuple[str, ...] = param(
        "A label of this host, such as `gpu` or `region=eu`, by which sessions choose hosts; repeatable. Give all "
        "daemons of a host the same ones.",
        default=(),
        max_length=MAX_LABELS,
        flag="--host-label",
    )
    spawn_directory: str | None = optional_path(
        "The directory of this host in which children of agents of other hosts work. Without it, agents of other "
        "hosts cannot choose this one. Give all daemons of a host the same one."
    )


@attrs.frozen(kw_only=True, slots=False)
class ProviderOptions:
    """Settings of every provider."""

    model: str | None = optional_name("The model for sessions that set none.")
    on_crash: Literal["resume", "fail"] = param(
        "What to do with a run whose agent was working when the engine crashed. `resume` continues its "
        "conversation, or fails the run if the runner cannot resume. `fail` always fails it.",
        default="resume",
    )
    max_attempts: int = param(
        "Maximum number of attempts that crashes of the engine may interrupt, before the run fails.",
        default=MAX_ATTEMPTS,
        minimum=1,
        maximum=100,
    )
    run_timeout_s: float | None = param(
        "Maximum seconds of one attempt of a run, without the time it waits for answers. Default: no "
        "limit.",
        default=None,
        minimum=_MIN_TIMEOUT_S,
        maximum=MAX_WAIT_S,
    )
    silence_timeout_s: float | None = param(
        "Maximum seconds without output of its agent. At half of that, a warning is logged.",
        default=None,
        minimum=_MIN_TIMEOUT_S,
        maximum=MAX_WAIT_S,
    )
    approvals: Approvals | None = param(
        "Who decides the requests of its agents. A session may be stricter.", default=None
    )
    open_to_agents: bool = param(
        "Whether an agent in a sandbox may spawn a child with this provider even if the child may do "
        "more than the agent.",
        default=False,
    )


_TEXT: Final = r"[^\0]+"


def daemon_setting(default: Any, doc: str, *, secret: bool = False, **more: Any) -> Any:
    """Declare a setting that only the daemon has.

    :param secret: whether to leave it out of the ``repr``.
    :param more: ``env``, the environment variable if it does not follow from the name; and fields of
        :class:`agent_orchestrator.fields.Limits`.
    """
    sources = {"env": more.pop("env")} if "env" in more else {}
    limits = Limits(**{"doc": doc, "not_blank": True, "pattern": _TEXT, **more})
    metadata = {"limits": limits, "source": sources}
    return attrs.field(default=default, metadata=metadata, repr=not secret)


def check_setting(spec: FieldSpec, label: str, value: Any, *, is_secret: bool = False) -> Any:
    """Return the value of a setting, with an integer converted to float if the setting is one.

    :param label: the setting's name in an error.
    :param is_secret: True if errors must not repeat the value.
    :raises ConfigError: if the value is invalid.
    """
    if isinstance(value, str) and encoding_problem(value):
        raise ConfigError(
            f"{label}: is not UTF-8" + ("" if is_secret else f": {decode_for_display(value)}")
        )
    if problem := problem_of(spec, value):
        raise ConfigError(f"{label}: {problem}" + ("" if is_secret else _number_suffix(value)))
    return float(value) if float in spec.kinds and type(value) is int else value


def _number_suffix(value: Any) -> str:
    """Return the end of an error, with the value if it is a number that is not very long."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    return "" if isinstance(value, int) and has_many_digits(value) else f", is {value}"


def check_settings(kind: type, prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked values of some settings of a class.

    :param prefix: the prefix of their names in errors.
    :raises ConfigError: for the first invalid value.
    """
    known = specs(kind)
    return {
        name: check_setting(known[name], f"{prefix}{name}", value) for name, value in values.items()
    }
