"""``agentctl store``: work on databases that no daemon uses."""

from typing import TYPE_CHECKING, Any

import click

from agentctl.call import Call
from agentctl.failures import CONFLICT, Failure, usage_failure
from agentctl.options import Group

if TYPE_CHECKING:
    from agent_orchestrator.store_copy import CopyReport, Progress


@click.group(
    cls=Group,
    examples="""
    agentctl store copy agents.db postgresql://agents@localhost/agents
    """,
)
def store() -> None:
    """Copy a database between SQLite and PostgreSQL."""


@store.command(
    examples="""
    agentctl store copy agents.db postgresql://agents@localhost/agents
    agentctl store copy postgresql://agents@localhost/agents agents.db
    """
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(*, source: str, target: str) -> None:
    """Copy the whole database FROM into the empty one TO: from a SQLite file to PostgreSQL, or back.

    Stop agentd first: the copy refuses databases that a daemon uses. Both databases are read at the
    end and compared, table by table. If the copy is interrupted, give the same command again to
    complete it. TO must be a file that does not exist, or a PostgreSQL database without content.
    Give a password in ~/.pgpass or PGPASSWORD: others can see a command's arguments.
    """
    call = Call.current(uses_daemon=False)
    from agent_orchestrator.domain.errors import ConfigError, StoreLocked, StoreOpenError
    from agent_orchestrator.store_copy import CopyFailed, copy_store
    from agentctl.progress import waiting

    line = "opening the databases"

    def note(progress: "Progress") -> None:
        nonlocal line
        line = f"{progress.step} {progress.table}: {progress.rows:,} of {progress.total:,} rows"

    try:
        with waiting(call.output, lambda: line):
            report = copy_store(source, target, on_progress=note)
    except ConfigError as error:
        raise usage_failure(str(error)) from None
    except CopyFailed as error:
        raise Failure(error.code, str(error), exit_code=CONFLICT) from None
    except StoreLocked as error:
        raise Failure("store_in_use", str(error), exit_code=CONFLICT) from None
    except StoreOpenError as error:
        raise Failure("unusable_store", str(error)) from None
    call.output.answer(report, lambda: _view(report))


def _view(report: "CopyReport") -> list[Any]:
    from agentctl.document import Column, Table
    from agentctl.times import counted

    columns = [
        Column("TABLE", lambda one: one.name),
        Column("ROWS", lambda one: f"{one.rows:,}", right=True),
        Column("SHA256", lambda one: one.sha256[:12]),
    ]
    done = "completed" if report.resumed else "copied"
    return [
        Table(columns, [table for table in report.tables if table.rows]),
        f"{done} {report.source} to {report.target}: {counted(report.rows, 'row')}, each read in both",
    ]
