"""The interface of a database to a copy, for both kinds of database."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Final, Self

from agent_orchestrator.store_copy.tables import Column, Key, Row, Table

BATCH_ROWS: Final = 1000
"""Maximum number of rows that are read and written at once."""

BATCH_BYTES: Final = 8 * 1024 * 1024
"""Maximum bytes of rows that are read at once. A longer row is read alone."""


class Database(ABC):
    """A database that this process holds, so that no daemon can use it.

    :ivar name: the database in messages, without secrets.
    """

    name: str

    @abstractmethod
    def __enter__(self) -> Self:
        """Open and hold the database.

        :raises StoreOpenError: if it cannot be used, or a daemon uses it.
        """

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""

    @abstractmethod
    def columns(self, table: Table) -> tuple[Column, ...]:
        """Return the columns of a table that are stored, not computed."""

    def count(self, table: Table) -> int:
        """Return the number of rows of a table."""
        [(count,)] = self.rows(f"SELECT count(*) FROM {table.name}")
        return int(count)

    def batches(
        self, table: Table, columns: Sequence[Column], after: Key | None = None
    ) -> Iterator[tuple[list[Row], Key]]:
        """Yield the rows of a table in the order of its key, in batches, with the key of the last row.

        :param after: the key after which to begin.
        """
        key = ", ".join(table.key)
        places = ", ".join("?" * len(table.key))
        size = " + ".join(
            f"coalesce(octet_length({one.name}), 0)" for one in columns if one.is_text
        )
        selected = ", ".join(one.name for one in columns)
        while True:
            beyond = "" if after is None else f"WHERE ({key}) > ({places}) "
            found = self.rows(
                f"SELECT {key}, {size or 0} FROM {table.name} {beyond}ORDER BY {key} LIMIT {BATCH_ROWS}",
                after or (),
            )
            if not found:
                return
            for last in _ends(found):
                bounds = f"({key}) <= ({places})"
                if after is not None:
                    bounds = f"({key}) > ({places}) AND {bounds}"
                values = (*(after or ()), *last)
                query = f"SELECT {selected} FROM {table.name} WHERE {bounds}"
                yield self.rows(query, values), last
                after = last


def _ends(found: Sequence[Row]) -> Iterator[Key]:
    """Yield the last keys of batches that are not too large, from rows of a key and a size."""
    total = 0
    previous: Key | None = None
    for *key, size in found:
        if previous is not None and total + size > BATCH_BYTES:
            yield previous
            total = 0
        total += size
        previous = tuple(key)
    if previous is not None:
        yield previous


class Source(Database):
    """The database that is copied. It is only read."""

    @abstractmethod
    def state(self) -> str:
        """Return a text that changes with each change of the database."""


class Target(Database):
    """The database that becomes the copy.

    While it is unfinished, no daemon can use it, and it records how far the copy is.
    """

    @abstractmethod
    def begin(self, state: str) -> bool:
        """Prepare for a copy of a source in this state. Return True if this continues an unfinished copy of it.

        An unfinished copy of another state is begun again.

        :raises CopyFailed: if the database already has content other than an unfinished copy.
        """

    def done(self, table: Table) -> Key | None:
        """Return the key of the last row that was copied of a table; None if none was."""
        recorded = self._recorded(table.name)
        return None if recorded is None else tuple(json.loads(recorded))

    @abstractmethod
    def _recorded(self, name: str) -> str | None:
        """Return the recorded text for a table, or for another name; None if there is none."""

    @abstractmethod
    def add(self, table: Table, columns: Sequence[Column], rows: Sequence[Row], last: Key) -> None:
        """Add rows, and record the last key, in one commit."""

    @abstractmethod
    def complete_tables(self) -> None:
        """Prepare for the check, after the last row."""

    @abstractmethod
    def discard(self) -> None:
        """Make the next attempt begin again."""

    @abstractmethod
    def finish(self) -> None:
        """Turn the unfinished copy into a database that daemons can use, in one step.

        :raises CopyFailed: if another program has created something in its place.
        """
