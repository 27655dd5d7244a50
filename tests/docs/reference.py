"""The parts of the reference that are made from the code.

``python tests/docs/reference.py`` writes them into docs/api-contract.md.
"""

import re
from collections.abc import Callable
from pathlib import Path

from agent_orchestrator.domain.lifecycle import diagram
from agent_orchestrator.fields import FieldSpec, specs
from agent_orchestrator.mcp.tools import TOOLS
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.wire.problems import STATUSES

PAGE = Path(__file__).parents[2] / "docs" / "api-contract.md"


def calls() -> str:
    """Return a section for every operation with its fields."""
    parts = []
    for operation in OPERATIONS:
        statuses = " or ".join(str(status) for status in operation.statuses)
        parts.append(f"### `{operation.method} {operation.path}`\n\n{operation.summary}")
        answer = ", ".join(f"`{name}`" for name in operation.answer.__annotations__)
        parts.append(
            f"Client: `{operation.name}`. Scope: `{operation.scope}`. Answer: {statuses}, {answer}."
        )
        rows = [_row(spec, operation.path_fields) for spec in specs(operation.request).values()]
        if rows:
            parts.append("\n".join(["| field | type | default | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _row(spec: FieldSpec, path_fields: tuple[str, ...]) -> str:
    kind = " or ".join(f"`{choice}`" for choice in spec.choices)
    kind = kind or " or ".join(_KINDS[one] for one in spec.kinds)
    default = "in the path" if spec.name in path_fields else "required" if spec.required else ""
    if not default:
        default = f"`{spec.default}`" if isinstance(spec.default, str | int | float) else ""
    limits = spec.limits
    bounds = [limits.doc]
    if limits.max_length is not None and str in spec.kinds and not spec.choices:
        bounds.append(f"At most {limits.max_length:,} characters.")
    if limits.maximum is not None and limits.minimum is not None:
        bounds.append(f"{limits.minimum:,} to {limits.maximum:,}.")
    return f"| `{spec.name}` | {kind} | {default} | {' '.join(bounds)} |"


_KINDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "list",
}


def errors() -> str:
    """Return the table of errors."""
    rows = [f"| {status} | `{kind.code}` |" for kind, status in STATUSES.items()]
    return "\n".join(["| status | code |", "|---|---|", *rows])


def tools() -> str:
    """Return a section for every tool with its arguments."""
    parts = []
    for tool in TOOLS.values():
        parts.append(f"### `{tool.name}`\n\n{tool.description}")
        rows = [_row(spec, ()) for spec in specs(tool.arguments).values()]
        if rows:
            parts.append("\n".join(["| argument | type | default | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def lifecycle() -> str:
    """Return the diagram of a run's states."""
    return f"```mermaid\n{diagram()}\n```"


SECTIONS: dict[str, Callable[[], str]] = {
    "calls": calls,
    "errors": errors,
    "lifecycle": lifecycle,
    "tools": tools,
}


def rendered(page: str) -> str:
    """Return the page with its made parts as the code says them now."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- made: {name} -->", "<!-- end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        made = f"{begin}\n\n{make()}\n\n{end}"
        page, count = pattern.subn(lambda _, made=made: made, page)  # type: ignore[misc]
        assert count == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
