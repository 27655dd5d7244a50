"""The index of words in SQLite: a table of FTS5.

Its tokenizer only divides what :func:`agent_orchestrator.domain.search.words_of` has made: words of ASCII
letters and digits and of other characters, with spaces between them.
"""

from collections.abc import Sequence
from typing import Final

from agent_orchestrator.domain.search import Phrase
from agent_orchestrator.stores.sql.search import SearchDialect


def _expression(groups: Sequence[Sequence[Phrase]]) -> str:
    return " AND ".join(f"({' OR '.join(map(_phrase, group))})" for group in groups)


def _phrase(phrase: Phrase) -> str:
    # Quoted, so that no word is an operator. A word has no quote.
    return f'"{" ".join(phrase.words)}"{" *" if phrase.is_prefix else ""}'


WORDS: Final = SearchDialect(
    add="INSERT INTO search_index (rowid, words) VALUES (?, ?)",
    find=(
        "SELECT rowid FROM search_index WHERE search_index MATCH ? AND rowid < ?"
        " ORDER BY rowid DESC LIMIT ?"
    ),
    document=" ".join,
    expression=_expression,
)
