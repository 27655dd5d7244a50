"""The call that searches what sessions contain."""

from datetime import datetime
from typing import Final

from attrs import frozen

from agent_orchestrator.domain.search import MAX_PHRASES, SearchKind
from agent_orchestrator.fields import MAX_NAME, command, optional_identifier, param, required
from agent_orchestrator.operations.options import Page
from agent_orchestrator.operations.table import Operation


@command
class SearchSessions(Page):
    q: str = required(
        "What to look for: words, and phrases in double quotes. A hit has all of them, in any order. A "
        "`*` after a word finds all words that begin with it. Case and accents do not matter, and other "
        f"signs have no meaning. At most {MAX_PHRASES} words and phrases.",
        kw_only=False,
        max_length=MAX_NAME,
        not_blank=True,
    )
    kind: SearchKind | None = param(
        "Only titles, messages, what agents say, or the paths of changed files.", default=None
    )
    session_id: str | None = optional_identifier("Only in this session.")


@frozen
class Mark:
    """A place in a snippet, in characters (Unicode code points), not in bytes or UTF-16 units."""

    start: int
    end: int
    """After the last character."""


@frozen
class Snippet:
    text: str
    """One line of at most 160 characters around the first match. Control characters are spaces."""
    marks: tuple[Mark, ...]
    """The places in it that match, in order and without overlaps."""


@frozen
class SearchHit:
    """A text that matches a search. Only the first 32,000 characters of a text can be found."""

    kind: SearchKind
    """`title`: the present title of the session. `message`: what was said to its agent. `answer`: what its
    agent said. `file`: paths of changed files, one a line."""
    session_id: str
    session_title: str | None
    seq: int
    """The event with the text, in the log of the session."""
    run_id: str | None
    message_id: str | None
    """The message, if it was sent to the session."""
    created_at: datetime
    snippet: Snippet


@frozen
class SearchPage:
    """Hits, the newest first."""

    hits: tuple[SearchHit, ...]
    next_cursor: str | None
    """A search examines at most 2,000 texts a page, so a page may have few or no hits and a cursor."""
    complete: bool
    """False while the texts of a database of an earlier version are added to the index, which begins with
    the newest. Older ones are not found yet."""


SEARCH: Final = Operation(
    "search",
    "GET",
    "/search",
    SearchSessions,
    SearchPage,
    "Search titles, messages, answers and paths of changed files.",
    shared=True,
)
