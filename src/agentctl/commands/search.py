"""``agentctl search``: words in titles, messages, answers and paths of files."""

from datetime import UTC, datetime
from typing import Any

import attrs
import click

from agent_orchestrator.operations.search import SEARCH, SearchPage, SearchSessions
from agentctl.call import Call
from agentctl.fields import SHOWN, options_of
from agentctl.options import Command


@click.command(
    cls=Command,
    examples="""
    agentctl search failing build
    agentctl search '"connection refused"' --kind answer
    agentctl search main.py 'retr*' --session-id ses_01k0 --format json
    """,
)
@click.argument("words", nargs=-1, required=True)
@options_of(
    SearchSessions,
    without=("q",),
    limit=f"Maximum number of hits.  [default: {SHOWN} on a terminal, otherwise all]",
)
def search(words: tuple[str, ...], limit: int | None, cursor: str | None, **filters: Any) -> None:
    """Search titles, messages, answers and paths of changed files, the newest first.

    A hit has all WORDS. Words in double quotes follow each other; quote them for the shell as well.
    A * after a word finds all words that begin with it.
    """
    call = Call.current()
    filters["q"] = " ".join(words)

    async def body(connection: Any) -> None:
        from agentctl.paging import pages
        from agentctl.views import search_hints, search_table

        if limit is None and cursor is None and call.output.for_people:
            reply = await _first(connection, SHOWN, filters)
        else:
            reply = await pages(connection, SEARCH, limit=limit, cursor=cursor, **filters)
        call.output.answer(reply, lambda: search_table(reply, datetime.now(UTC)))
        call.output.note_next_page(reply.next_cursor)
        if not reply.complete:
            call.output.note(
                "the index is not complete yet: texts from before the last update may be missing"
            )
        for line in search_hints(reply):
            call.output.hint(line)

    call.run(body)


async def _first(connection: Any, count: int, filters: dict[str, Any]) -> SearchPage:
    """Return the first hits. A page may have none although more follow."""
    page: SearchPage = await connection.call(SEARCH, limit=count, **filters)
    hits = page.hits
    while page.next_cursor is not None and len(hits) < count:
        page = await connection.call(
            SEARCH, limit=count - len(hits), cursor=page.next_cursor, **filters
        )
        hits += page.hits
    return attrs.evolve(page, hits=hits)
