"""The arguments of the tools, and their JSON schemas.

A tool for an operation takes that operation's fields, except those that are not for agents.
"""

from collections.abc import Sequence
from typing import Final, Literal

from agent_orchestrator.fields import (
    ID_PATTERN,
    MAX_ID,
    MAX_TEXT,
    FieldSpec,
    command,
    param,
    specs,
)
from agent_orchestrator.operations.options import (
    MAX_IGNORED,
    Keyed,
    OfRequest,
    Page,
    QuestionOptions,
    ResolveOptions,
)
from agent_orchestrator.wire.schema import Schema, field_schema

HOLD_S: Final = 50.0
"""Default seconds to hold a call. Many clients time out after 60."""

MAX_HOLD_S: Final = 86_400

MAX_RUNS: Final = 32
"""Maximum number of runs to wait for in one call."""


@command
class Held:
    timeout_s: float | None = param(
        "Maximum seconds that this call waits. After that it returns `timed_out`. "
        "Nothing is lost: call again.",
        default=None,
        minimum=0,
        maximum=MAX_HOLD_S,
    )


@command
class WaitArguments(Held):
    run_id: str | None = param(
        "The run to wait for. session_spawn and session_send return it.",
        default=None,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
    )
    run_ids: Sequence[str] | None = param(
        f"Several, at most {MAX_RUNS}: the first that ends or asks is answered.", default=None
    )
    until: Literal["terminal", "attention"] = param(
        "`attention`: also return when the run or a descendant asks a question. "
        "`terminal`: return only at the end of the run, and leave questions to "
        "people.",
        default="attention",
    )
    ignore: Sequence[str] | None = param(
        "Questions (request ids) that do not end the wait, because you leave them to a person.",
        default=None,
        max_length=MAX_IGNORED,
    )


@command
class ReplyParentArguments(QuestionOptions, Held):
    text: str | None = param(
        "The message or the question. For an approval, say exactly what you are "
        "about to do. A question has at most 65,536 characters.",
        default=None,
        max_length=MAX_TEXT,
        not_blank=True,
    )
    wait: bool = param("Wait until the question is answered.", default=True)
    request_id: str | None = param(
        "Continue to wait for the answer to this question of yours. Give no other "
        "argument except timeout_s.",
        default=None,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
    )


@command
class ListArguments(Page):
    limit: int = param("Maximum number of entries to return.", default=50, minimum=1, maximum=200)


@command
class ResolveArguments(ResolveOptions, Keyed, OfRequest):
    pass


def fields(kind: type) -> list[FieldSpec]:
    """Return the fields that agents may set."""
    return [spec for spec in specs(kind).values() if spec.limits.for_agents]


def _described_default(default: str | float) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default).lower()


def input_schema(kind: type, hold_s: float = HOLD_S) -> Schema:
    """Return the JSON schema of a tool's arguments.

    Optional values are omitted instead of null, because not every client supports lists of types.

    :param hold_s: the default of ``timeout_s``.
    """
    properties = {}
    for spec in fields(kind):
        schema = field_schema(spec)
        schema["description"] = spec.limits.tool_doc or spec.limits.doc
        if isinstance(schema["type"], list):
            (schema["type"],) = [name for name in schema["type"] if name != "null"]
        if None in schema.get("enum", ()):
            schema["enum"] = list(spec.choices)
        if spec.name == "timeout_s":
            schema["default"] = hold_s
        if "default" in schema:  # not every client forwards it to the model
            schema["description"] += f" Default: {_described_default(schema['default'])}."
        properties[spec.name] = schema
    return {
        "type": "object",
        "properties": properties,
        "required": [spec.name for spec in fields(kind) if spec.required],
        "additionalProperties": False,
    }
