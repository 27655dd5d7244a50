"""Copies of a whole database, verified by reading both."""

from collections.abc import Callable, Sequence
from typing import Final

from attrs import evolve, frozen

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.store_copy.database import Source, Target
from agent_orchestrator.store_copy.errors import CopyFailed
from agent_orchestrator.store_copy.tables import DERIVED, TABLES, Column, Content, Table
from agent_orchestrator.stores.registry import POSTGRESQL, open_store
from agent_orchestrator.stores.urls import is_url

__all__ = ["CopyFailed", "CopyReport", "Progress", "copy_store"]

_QUICKER: Final = {
    True: "both are PostgreSQL: use pg_dump and pg_restore",
    False: "both are SQLite: use `agentctl daemon backup`, or copy the file while no daemon uses it",
}


@frozen
class Progress:
    """The progress of a copy.

    :param step: ``copying`` or ``checking``.
    :param table: the present table.
    :param rows: the rows that are done in this step.
    :param total: the rows of all tables.
    """

    step: str
    table: str
    rows: int
    total: int


@frozen
class CopiedTable:
    """A table that both databases have with the same content.

    :param sha256: the digest of the content, which does not depend on the order of the rows.
    """

    name: str
    rows: int
    sha256: str


@frozen
class CopyReport:
    """A finished copy.

    :param source: the database that was copied, without secrets.
    :param target: its copy, without secrets.
    :param rows: the rows of all tables.
    :param resumed: whether an unfinished copy was completed.
    :param tables: the tables, each read in both databases.
    """

    source: str
    target: str
    rows: int
    resumed: bool
    tables: tuple[CopiedTable, ...]


def copy_store(
    source: str, target: str, *, on_progress: Callable[[Progress], None] = lambda _: None
) -> CopyReport:
    """Copy all of a database into an empty one, check the copy, and return a report.

    The next call completes a copy that was interrupted. If its source has changed, it begins again.

    :param source: the path of a SQLite file, or ``postgresql://…``.
    :param target: the same. A SQLite file must not exist yet; a PostgreSQL database must not have content.
    :raises CopyFailed: if the target has content, or the copy differs from its source.
    :raises ConfigError: if a location cannot be used.
    :raises StoreOpenError: if a database cannot be opened, or a daemon uses it.
    :raises OSError: if the target cannot be written.
    """
    with _source(source, target) as copied, _target(target) as copy:
        is_resumed = copy.begin(copied.state())
        tables = [(table, _columns(table, copied, copy)) for table in TABLES]
        progress = Progress("copying", "", 0, sum(copied.count(table) for table in TABLES))
        for table, columns in tables:
            progress = evolve(progress, table=table.name)
            if (after := copy.done(table)) is not None:
                progress = evolve(progress, rows=progress.rows + copy.count(table))
            for rows, last in copied.batches(table, columns, after):
                on_progress(progress)
                copy.add(table, columns, rows, last)
                progress = evolve(progress, rows=progress.rows + len(rows))
        copy.complete_tables()
        report = _compared(copied, copy, tables, progress.total, on_progress)
        copy.finish()
    total = sum(table.rows for table in report)
    return CopyReport(copied.name, copy.name, total, is_resumed, report)


def _compared(
    source: Source,
    target: Target,
    tables: Sequence[tuple[Table, Sequence[Column]]],
    total: int,
    on_progress: Callable[[Progress], None],
) -> tuple[CopiedTable, ...]:
    """Read both databases.

    :raises CopyFailed: if they differ.
    """
    progress = Progress("checking", "", 0, 2 * total)
    report = []
    for table, columns in tables:
        contents = []
        for database in (source, target):
            content = Content()
            for rows, _ in database.batches(table, columns):
                content.add(rows)
                progress = evolve(progress, table=table.name, rows=progress.rows + len(rows))
                on_progress(progress)
            contents.append(content)
        expected, found = contents
        if expected != found:
            target.discard()
            raise CopyFailed(
                "copy_differs",
                f"the copy differs from its source: {table.name} has {found.rows} rows with the digest"
                f" {found.sha256[:12]}…, and {expected.rows} rows with {expected.sha256[:12]}… in the source;"
                " the next attempt begins again",
            )
        report.append(CopiedTable(table.name, expected.rows, expected.sha256))
    for table_name, query in DERIVED.items():
        if sorted(source.rows(query)) != sorted(target.rows(query)):
            target.discard()
            raise CopyFailed("copy_differs", f"the copy differs from its source: {table_name}")
    return tuple(report)


def _columns(table: Table, source: Source, target: Target) -> tuple[Column, ...]:
    """Return the columns to copy.

    :raises CopyFailed: if the databases have different ones.
    """
    expected, found = source.columns(table), target.columns(table)
    names = {column.name for column in found}
    differing = names ^ {column.name for column in expected}
    if differing - table.only_here:
        listed = ", ".join(sorted(differing - table.only_here))
        raise CopyFailed("not_copied", f"{table.name}: only one of the databases has {listed}")
    copied = [column for column in expected if column.name not in table.only_here]
    return tuple(sorted(copied, key=lambda column: column.name))  # the digests need the same order


def _source(location: str, target: str) -> Source:
    is_postgres = _is_postgres(location)
    if is_postgres == _is_postgres(target):
        raise ConfigError(_QUICKER[is_postgres])
    if is_postgres:
        from agent_orchestrator.store_copy.postgres import PostgresSource

        return PostgresSource(location)
    from agent_orchestrator.store_copy.sqlite import SqliteSource

    return SqliteSource(location)


def _target(location: str) -> Target:
    if _is_postgres(location):
        from agent_orchestrator.store_copy.postgres import PostgresTarget

        return PostgresTarget(location)
    from agent_orchestrator.store_copy.sqlite import SqliteTarget

    return SqliteTarget(location)


def _is_postgres(location: str) -> bool:
    """Return whether a location is a PostgreSQL database, and not a SQLite file.

    :raises ConfigError: if it is neither, or if what PostgreSQL needs is not installed.
    """
    if not is_url(location):
        if location == ":memory:":
            raise ConfigError(":memory: is not a database that can be copied")
        return False
    scheme = location.partition("://")[0]
    if scheme not in POSTGRESQL:
        raise ConfigError(f"{scheme}:// cannot be copied: give a SQLite file or postgresql://…")
    open_store(location)  # raises if the URL cannot be read, or the extra is not installed
    return True
