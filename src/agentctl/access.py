"""Who may do what, and who did what, as a person reads it. Pure."""

from collections.abc import Sequence

from agent_orchestrator.domain.audit import DONE, AuditEntry
from agentctl.tables import Cell, Column, table
from agentctl.terminal import Look, one_line
from agentctl.times import local


def audit_table(entries: Sequence[AuditEntry], look: Look) -> list[str]:
    columns = [
        Column("SEQ", align="right"),
        Column("WHEN"),
        Column("WHO"),
        Column("BY TOKEN", optional=True),
        Column("DID"),
        Column("DECISION"),
        Column("ON"),
        Column("DETAIL", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            str(entry.seq),
            f"{local(entry.at):%Y-%m-%d %H:%M:%S}",
            one_line(entry.principal),
            entry.token,
            entry.operation,
            Cell(entry.decision, () if entry.decision == DONE else ("red",)),
            one_line(entry.target or ""),
            one_line(" ".join(f"{name}={value}" for name, value in entry.detail.items() if value)),
        ]
        for entry in entries
    ]
    return table(columns, rows, look) or ["nothing on record"]
