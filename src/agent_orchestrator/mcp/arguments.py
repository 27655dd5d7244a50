"""What each tool takes: checked field by field, and described to agents by a JSON schema."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from attrs import frozen

from agent_orchestrator.domain.model import NotifyParent, RequestKind
from agent_orchestrator.fields import (
    MAX_DEPTH,
    MAX_ID,
    MAX_NAME,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_TEXT,
    MAX_TREE,
    param,
    specs,
)
from agent_orchestrator.operations import (
    MAX_IGNORED,
    MAX_OPEN_S,
    MIN_OPEN_S,
    WhenBusy,
    effort_option,
    model_option,
    output_schema_option,
)
from agent_orchestrator.wire.schema import Schema, field_schema

HOLD_S: Final = 50.0
"""Seconds a call is held unless told otherwise: many clients cut a call after 60."""

MAX_HOLD_S: Final = 86_400

MAX_RUNS: Final = 32
"""Runs waited for in one call."""

ID_PATTERN: Final = rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{MAX_ID - 1}}}"
"""What an id from an agent may be; one that begins with ``-`` is an option to somebody."""


def _id(doc: str, **more: Any) -> Any:
    return param(doc, max_length=MAX_ID, pattern=ID_PATTERN, **more)


def _name(doc: str) -> Any:
    return param(doc, default=None, max_length=MAX_NAME, not_blank=True)


def _text(doc: str) -> Any:
    return param(doc, max_length=MAX_TEXT, not_blank=True)


def _most(doc: str, most: int) -> Any:
    return param(doc, default=None, minimum=0, maximum=most)


def _hold() -> Any:
    return param(
        "Seconds to hold this call. When they are over it answers `timed_out`, and nothing is lost:"
        " call again.",
        default=None,
        minimum=0,
        maximum=MAX_HOLD_S,
    )


def _key() -> Any:
    return _name("Names this call: the same call again with the same key does nothing twice.")


@frozen
class Spawn:
    task: str = _text(
        "Everything the child needs to know: it sees none of your conversation. Say what to do,"
        " where, and what to report."
    )
    provider: str | None = _name("Which agent does it; yours without one.")
    cwd: str | None = param(
        "Its working directory, an absolute path; yours without one.",
        default=None,
        max_length=4096,
        pattern=r"/[^\0]*",
    )
    title: str | None = _name("A short name for people.")
    notify_parent: NotifyParent = param(
        "`wake`: its outcome starts a new turn of yours when you are done, so that you need not"
        " wait for it. `record`: it is kept for you to look at.",
        default="record",
    )
    max_depth: int | None = _most("Generations of children it may have; 0: none.", MAX_DEPTH)
    max_children: int | None = _most("Children of it that may be at work at once.", MAX_TREE)
    max_descendants: int | None = _most("Agents below it that may be at work at once.", MAX_TREE)
    model: str | None = model_option()
    effort: str | None = effort_option("the task")
    output_schema: Mapping[str, Any] | None = output_schema_option()
    idempotency_key: str | None = _key()


@frozen
class Send:
    session_id: str = _id("The session whose agent to tell.")
    text: str = _text("What to tell it.")
    when_busy: WhenBusy = param(
        "While it is at work: `queue` for its next turn, `steer` its present one, `interrupt` it,"
        " or `reject` with an error.",
        default="queue",
    )
    model: str | None = model_option()
    effort: str | None = effort_option("this message")
    output_schema: Mapping[str, Any] | None = output_schema_option()
    idempotency_key: str | None = _key()


@frozen
class Wait:
    run_id: str | None = _id(
        "The run to wait for, from session_spawn or session_send.", default=None
    )
    run_ids: tuple[str, ...] | None = param(
        f"Several, at most {MAX_RUNS}: the first that ends or asks is answered.", default=None
    )
    until: Literal["terminal", "attention"] = param(
        "`attention`: also return when the run, or one below it, asks a question. `terminal`: only"
        " at its end, which leaves questions to people.",
        default="attention",
    )
    ignore: tuple[str, ...] | None = param(
        "Questions (request ids) not to return for: those you leave to a person.",
        default=None,
        max_length=MAX_IGNORED,
    )
    timeout_s: float | None = _hold()


@frozen
class ReplyParent:
    text: str | None = param(
        "What to tell, or to ask. For an approval: exactly what you are about to do. A question has"
        " at most 65,536 characters.",
        default=None,
        max_length=MAX_TEXT,
        not_blank=True,
    )
    request_kind: RequestKind | None = param(
        "Makes it a question: approval_request (may I do this?), permission_request (may I have"
        " access?), input_request (which, or what?).",
        default=None,
    )
    detail: Mapping[str, Any] | None = param(
        "Facts about what is asked, for whoever decides.", default=None
    )
    options: tuple[str, ...] | None = param(
        "The answers to choose from.",
        default=None,
        max_length=MAX_OPTIONS,
        item_length=MAX_OPTION,
    )
    expires_in_s: float = param(
        "Seconds until the question expires unanswered, which is a denial.",
        default=3600.0,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
    )
    wait: bool = param("Hold the call until a question is answered.", default=True)
    request_id: str | None = _id(
        "Go on waiting for the answer to this question of yours; then give nothing else but"
        " timeout_s.",
        default=None,
    )
    timeout_s: float | None = _hold()


@frozen
class List:
    limit: int = param("How many to return at most.", default=50, minimum=1, maximum=200)
    cursor: str | None = param(
        "`next_cursor` of the answer before, for those that follow.",
        default=None,
        max_length=MAX_NAME,
    )


@frozen
class Resolve:
    request_id: str = _id("The question, from session_wait.")
    decision: Literal["approve", "deny", "answer"] = param("`answer` needs a text.")
    text: str | None = param(
        "The answer, or the reason.", default=None, max_length=MAX_TEXT, not_blank=True
    )
    scope: Literal["once", "session"] | None = param(
        "How far an approval goes: this one time, or the rest of the child's session.", default=None
    )
    idempotency_key: str | None = _key()


def _told(default: str | float) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default).lower()


def input_schema(kind: type, hold_s: float = HOLD_S) -> Schema:
    """Return the JSON schema of a tool's arguments.

    An optional value is left out rather than null: not every client takes a list of types.

    :param hold_s: the default of ``timeout_s``.
    """
    properties = {}
    for spec in specs(kind).values():
        schema = field_schema(spec)
        if isinstance(schema["type"], list):
            (schema["type"],) = [name for name in schema["type"] if name != "null"]
        if None in schema.get("enum", ()):
            schema["enum"] = list(spec.choices)
        if spec.name == "timeout_s":
            schema["default"] = hold_s
        if "default" in schema:  # not every client hands that on
            schema["description"] += f" Default: {_told(schema['default'])}."
        properties[spec.name] = schema
    required = [spec.name for spec in specs(kind).values() if spec.required]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
