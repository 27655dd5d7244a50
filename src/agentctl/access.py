"""Text views of grants, tokens and the audit trail. No I/O."""

from collections.abc import Sequence
from datetime import datetime

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import DONE, AuditEntry
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.operations.access import NewToken
from agentctl.tables import Cell, Column, card, table
from agentctl.terminal import Style, one_line
from agentctl.times import ago, local


def audit_table(entries: Sequence[AuditEntry], style: Style) -> list[str]:
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
    return table(columns, rows, style) or ["no entries"]


def token_card(created: NewToken, style: Style) -> list[str]:
    token = created.token
    ends = None if token.expires_at is None else f"{local(token.expires_at):%Y-%m-%d %H:%M:%S}"
    return card(
        f"{style.paint('token', 'dim')} {style.paint(token.id, 'bold')}",
        [
            ("name", one_line(token.name)),
            ("principal", one_line(token.principal)),
            ("scopes", ", ".join(token.scopes)),
            ("ends", ends),
            ("secret", Cell(created.secret, ("bold",))),
            ("", "shown only once: store it where you set AGENTCTL_AUTH_TOKEN"),
        ],
        style,
    )


def token_table(tokens: Sequence[AccessToken], style: Style, now: datetime) -> list[str]:
    columns = [
        Column("TOKEN"),
        Column("STATE"),
        Column("PRINCIPAL"),
        Column("SCOPES"),
        Column("MADE", align="right"),
        Column("NAME", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            token.id,
            _state(token, now),
            one_line(token.principal),
            ",".join(token.scopes),
            ago(token.created_at, now),
            one_line(token.name),
        ]
        for token in tokens
    ]
    return table(columns, rows, style) or ["no tokens"]


def grant_table(grants: Sequence[Grant], style: Style) -> list[str]:
    columns = [Column("ROLE"), Column("PRINCIPAL", flexible=True)]
    rows: list[list[str | Cell]] = [[grant.role, one_line(grant.principal)] for grant in grants]
    return table(columns, rows, style) or ["not shared"]


def _state(token: AccessToken, now: datetime) -> Cell:
    if token.revoked_at is not None:
        return Cell("revoked", ("red",))
    if token.expires_at is None:
        return Cell("good", ("green",))
    if token.expires_at <= now:
        return Cell("expired", ("red",))
    return Cell(f"valid, expires {ago(token.expires_at, now)}", ("green",))
