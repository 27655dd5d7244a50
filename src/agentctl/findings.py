"""Text of the findings of ``doctor``. No I/O."""

from collections.abc import Sequence
from typing import Final

from agent_orchestrator.operations.daemon import Finding
from agentctl.terminal import Style, one_line, wrapped

_MARKS: Final = {
    "error": ("✗", "x", ("red", "bold")),
    "warning": ("!", "!", ("yellow",)),
    "note": ("·", "-", ("dim",)),
    "ok": ("✓", "+", ("green",)),
}


def findings_list(findings: Sequence[Finding], style: Style) -> list[str]:
    """Return the lines of all findings with their hints, most severe first."""
    lines: list[str] = []
    for level, (rich, plain, styles) in _MARKS.items():
        for finding in findings:
            if finding.level != level:
                continue
            symbol = style.paint(style.symbol(rich, plain), *styles)
            text = f"{one_line(finding.about)}: {one_line(finding.message)}"
            first, *rest = _indented(text, style)
            lines += [f"{symbol} {first}", *(f"  {line}" for line in rest)]
            if finding.hint:
                hint = _indented(f"{style.symbol('→', '->')} {one_line(finding.hint)}", style)
                lines += [f"  {style.paint(line, 'dim')}" for line in hint]
    return lines or [style.paint("no findings", "dim")]


def _indented(text: str, style: Style) -> list[str]:
    return wrapped(text, None if style.columns is None else max(20, style.columns - 2))
