"""The findings of an examination as lines. Pure."""

from collections.abc import Sequence
from typing import Final

from agent_orchestrator.operations import Finding
from agentctl.terminal import Look, one_line, wrapped

_MARKS: Final = {
    "error": ("✗", "x", ("red", "bold")),
    "warning": ("!", "!", ("yellow",)),
    "note": ("·", "-", ("dim",)),
    "ok": ("✓", "+", ("green",)),
}


def findings_list(findings: Sequence[Finding], look: Look) -> list[str]:
    """Return the findings, the worst first, each with what to do."""
    lines: list[str] = []
    for level, (rich, plain, styles) in _MARKS.items():
        for one in findings:
            if one.level != level:
                continue
            mark = look.paint(look.symbol(rich, plain), *styles)
            text = f"{one_line(one.about)}: {one_line(one.message)}"
            first, *rest = _indented(text, look)
            lines += [f"{mark} {first}", *(f"  {line}" for line in rest)]
            if one.hint:
                hint = _indented(f"{look.symbol('→', '->')} {one_line(one.hint)}", look)
                lines += [f"  {look.paint(line, 'dim')}" for line in hint]
    return lines or [look.paint("nothing to tell", "dim")]


def _indented(text: str, look: Look) -> list[str]:
    return wrapped(text, None if look.columns is None else max(20, look.columns - 2))
