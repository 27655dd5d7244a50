"""The translation of statements in SQLite's SQL to PostgreSQL's."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Final

from attrs import frozen

_REPLACED: Final = (
    # Hints for SQLite's planner.
    (re.compile(r" INDEXED BY \w+"), ""),
    (re.compile(r"\bCROSS JOIN(?! LATERAL)"), "JOIN"),
    (re.compile(r"\+(?=[a-z])"), ""),
    # Its other names for the same things.
    (re.compile(r"\bIS \?"), "IS NOT DISTINCT FROM ?"),
    (re.compile(r"\bwarned = 0\b"), "NOT warned"),
    # The runs before a run in its session. By statistics of a moment without queued runs, each claim would read all
    # that are queued now. A value that the planner does not know prevents that. Running and waiting runs come after it,
    # and exclude the run anyway.
    (re.compile(r"\bq\.status = 'queued'"), "q.status >= (SELECT 'queued')"),
    # The first part of a recursive query decides how its texts are compared.
    (re.compile(r"\bVALUES \(\?\) UNION\b"), 'SELECT ?::text COLLATE "C" UNION'),
    (re.compile(r"\bsubstr\((\w+), 1, \?\)"), r"left(\1, ?::integer)"),
)

_PARAMETER: Final = re.compile(r"\?(\d*)")
_READS: Final = ("SELECT", "WITH")
_CONTROLS: Final = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


@frozen
class Translated:
    """A statement in PostgreSQL's SQL.

    :param writes: whether it changes rows.
    :param returns: whether it returns rows.
    :param is_control: whether it begins or ends a transaction or a part of one.
    """

    sql: bytes
    writes: bool
    returns: bool
    is_control: bool


@cache
def translated(sql: str) -> Translated:
    """Translate a statement. There are some hundred different ones."""
    for pattern, replacement in _REPLACED:
        sql = pattern.sub(replacement, sql)
    is_control = sql.startswith(_CONTROLS)
    writes = not is_control and not sql.lstrip().startswith(_READS)
    returns = not writes or "RETURNING" in sql
    return Translated("".join(_numbered(sql)).encode(), writes, returns, is_control)


def _numbered(sql: str) -> Iterator[str]:
    """Yield the parts of a statement, with ``$1`` for ``?1``, and numbers for those without one."""
    place = last = 0
    for match in _PARAMETER.finditer(sql):
        number = int(match[1]) if match[1] else last + 1
        last = max(last, number)
        yield f"{sql[place : match.start()]}${number}"
        place = match.end()
    yield sql[place:]
