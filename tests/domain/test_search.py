"""The words of texts, searches, and snippets."""

import random
import unicodedata

import pytest

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.search import (
    MAX_PHRASES,
    MAX_SEARCHED,
    MAX_SNIPPET,
    MAX_WORDS,
    Phrase,
    Search,
    phrases_of,
    searchable,
    snippet_of,
    words_of,
)

ALPHABET = "aB9é\u0301ßﬁＡ½が検한กा🙂_-.\"*() \n\t\0\x01\ud800\u202eİŉ㎧ﷺ'&|:\\"


def texts(count: int) -> list[str]:
    chosen = random.Random(7)
    return ["".join(chosen.choices(ALPHABET, k=chosen.randint(1, 40))) for _ in range(count)]


def test_words_can_be_written_in_every_language_of_searches() -> None:
    for text in texts(2_000):
        for word in words_of(text):
            assert word
            # Neither SQLite nor PostgreSQL sees a sign of its language, or divides a word.
            assert not any(sign in word for sign in "\"'*()&|:\\ \0_-.\n"), (text, word)
            assert word.encode()
            assert word == word.lower() or not word.isascii()


def test_every_character_gives_words_that_are_found_again() -> None:
    for code in range(0x30000):
        character = chr(code)
        for word in words_of(f"x{character}y {character}"):
            assert all(part.isalnum() or unicodedata.category(part)[0] == "M" for part in word), (
                hex(code)
            )
            assert word.isascii() is False or word.isalnum()


def test_a_text_is_found_by_its_own_words() -> None:
    for text in texts(2_000):
        if words := words_of(text):
            quoted = Phrase(tuple(words))
            assert Search((quoted,)).matches(text), text
            snippet, marks = snippet_of(text, (quoted,))
            [(start, end)] = marks
            assert words_of(snippet[start:end]) == words, text
            assert 1 <= len(phrases_of(text)) <= MAX_PHRASES
        else:
            with pytest.raises(InvalidRequest, match="no letter or digit"):
                phrases_of(text)


def test_ends_of_long_texts_are_not_searched() -> None:
    assert len(words_of("字" * 100_000)) == MAX_WORDS
    assert words_of("x" * 1_000) == ["x" * 64] == words_of("X" * 70)
    assert words_of("é" * 1_000) == ["e" * 64]
    found = searchable("agent.message", {"text": "word " * 100_000})
    assert found is not None
    assert len(found.text) == MAX_SEARCHED


@pytest.mark.parametrize("place", [0, 10, 5_000, 31_000])
def test_a_snippet_has_the_first_match(place: int) -> None:
    text = ("fill " * 10_000)[:place] + "\r\nthe NEEDLE\x1b[1m and a needle" + " fill" * 1_000
    snippet, marks = snippet_of(text, phrases_of("needle"))
    assert len(snippet) <= MAX_SNIPPET
    assert snippet.isprintable()
    assert [snippet[start:end] for start, end in marks] == ["NEEDLE", "needle"]


def test_marks_do_not_overlap() -> None:
    _, marks = snippet_of("a b c d", (Phrase(("a", "b", "c")), Phrase(("b",)), Phrase(("c", "d"))))
    assert marks == ((0, 7),)
