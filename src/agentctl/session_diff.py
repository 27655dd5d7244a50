"""``agentctl session diff``: what changed in a session's directory since the session began."""

from datetime import UTC, datetime

from agent_orchestrator.operations.sessions import GET_DIFF, GET_SESSION, SessionDiff
from agentctl.connection import DaemonConnection
from agentctl.diffs import Change, diff_blocks
from agentctl.document import Block, Text
from agentctl.terminal import one_line
from agentctl.times import ago


async def show_diff(connection: DaemonConnection, session_id: str, *, whole: bool) -> None:
    """Print what was changed.

    :param whole: also show long changes in full.
    """
    session = (await connection.call(GET_SESSION, session_id=session_id)).session
    diff: SessionDiff = await connection.call(GET_DIFF, session_id=session.id)
    since = f"since {diff.base[:12]}" if diff.base else "according to its events"
    since = "since the first commit" if diff.source == "git" and not diff.base else since
    head = Text(f"{diff.cwd}, {since}, {ago(session.created_at, datetime.now(UTC))}", "dim")
    changes = [Change(one_line(one.path), one.kind, one.diff) for one in diff.changes]

    def view() -> list[Block]:
        cut: list[Block] = [Text("more was changed than is shown", "dim")]
        return [
            head,
            *(diff_blocks(changes, folded=not whole) or ["no changes"]),
            *(cut if diff.is_truncated else []),
        ]

    connection.output.answer(diff, view)
