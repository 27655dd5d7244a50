"""The index of words in PostgreSQL: a column of the type ``tsvector`` with an index of the type GIN.

The server's parsers and dictionaries are not used: they depend on its settings.
"""

from collections.abc import Sequence
from typing import Final

from agent_orchestrator.domain.search import Phrase
from agent_orchestrator.stores.sql.search import SearchDialect

_MAX_PLACES: Final = 255
"""Places of a word in a text that the type can tell. A phrase with a word is found at no later one."""


def _document(words: Sequence[str]) -> str:
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words, 1):
        places.setdefault(word, []).append(place)
    return " ".join(
        f"'{word}':{','.join(map(str, found[:_MAX_PLACES]))}" for word, found in places.items()
    )


def _expression(groups: Sequence[Sequence[Phrase]]) -> str:
    return " & ".join(f"({' | '.join(map(_phrase, group))})" for group in groups)


def _phrase(phrase: Phrase) -> str:
    words = " <-> ".join(f"'{word}'" for word in phrase.words)  # no word has a quote
    return f"({words}{':*' if phrase.is_prefix else ''})"


WORDS: Final = SearchDialect(
    add="INSERT INTO search_index (position, words) VALUES (?, ?::tsvector)",
    # Materialized: with a limit, the planner would test all texts from the last one on.
    find="""
        WITH found AS MATERIALIZED (
            SELECT position FROM search_index WHERE words @@ ?::tsquery AND position < ?)
        SELECT position FROM found ORDER BY position DESC LIMIT ?""",
    document=_document,
    expression=_expression,
)
