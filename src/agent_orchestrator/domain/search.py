"""The searchable texts of a session, their words, and searches for words.

All stores find the same, because this module splits texts and searches into words, not a database. A word is
letters and digits, without case and accents. In languages without spaces between words, each character is a
word. So a search finds any part of a sentence: the characters of a search word must follow each other, like
the words of a phrase.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from attrs import frozen

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.events import EventType

SearchKind = Literal["title", "message", "answer", "file"]

MAX_SEARCHED: Final = 32_000
"""Maximum characters of a text that are searched. The rest cannot be found."""

MAX_WORDS: Final = 16_000
"""Maximum words of a text that are searched. PostgreSQL stores the positions of no more."""

MAX_PHRASES: Final = 32
"""Maximum number of words and phrases of a search."""

MAX_SNIPPET: Final = 160
"""Maximum characters of a snippet."""

_MAX_WORD: Final = 64
"""Maximum characters of a word. The rest of a longer one is ignored, in texts and in searches."""

_MIN_PREFIX: Final = 2
"""Minimum characters before a ``*``. A shorter prefix would match a large part of all words."""

_BEFORE: Final = 40
"""Maximum characters of a snippet before the first match."""

REPEATS_WITHIN: Final = 20
"""Number of events before the end of a run that are compared with its result. A result that repeats a message is not
found twice."""

_SINGLE: Final = (  # written without spaces, or with words that have endings
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # Korean
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
)
_ACCENTS: Final = "\u0300-\u036f"
_WORD: Final = re.compile(
    rf"(?:(?=[^\W_])[{_SINGLE}])[\u3099\u309a]?|(?:[^\W_{_SINGLE}]|(?<=[^\W_])[{_ACCENTS}])+"
)
_ASCII_WORD: Final = re.compile(r"[a-z0-9]+")
_QUOTED: Final = re.compile(r'"([^"]*)("|$)|[^\s"]+')
_CONTROLS: Final = {**dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ")}


class _Folded(dict[int, str]):
    """The normalized form of each character, in which texts are compared."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = _folded(chr(code))
        return folded


def _folded(character: str) -> str:
    if "\u0300" <= character <= "\u036f":
        return ""
    plain = unicodedata.normalize("NFKC", character).casefold()
    parts = unicodedata.normalize("NFKD", plain)
    folded = "".join(part for part in parts if not "\u0300" <= part <= "\u036f")
    folded = unicodedata.normalize("NFC", folded)
    return folded if folded.isalnum() else character


_FOLDED: Final = _Folded()


def words_of(text: str) -> list[str]:
    """Return the words of a text in their order, in the form in which they are compared."""
    if text.isascii():
        words = _ASCII_WORD.findall(text.lower())
    else:
        words = [word for found in _WORD.findall(text) if (word := _fold(found))]
    if len(text) > _MAX_WORD:
        return [word[:_MAX_WORD] for word in words[:MAX_WORDS]]
    return words


def _fold(word: str) -> str:
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFC", word).translate(_FOLDED)


@frozen
class Searchable:
    """The searchable text of an event.

    :param text: the beginning of the text; for files, their paths, one a line.
    """

    kind: SearchKind
    text: str


def _title(data: Mapping[str, Any]) -> Any:
    return data.get("title")


def _text(data: Mapping[str, Any]) -> Any:
    return data.get("text")


def _result(data: Mapping[str, Any]) -> Any:
    result = data.get("result")
    return result.get("text") if isinstance(result, Mapping) else None


def _paths(data: Mapping[str, Any]) -> str:
    changes = data.get("changes")
    if not isinstance(changes, (list, tuple)):
        return ""
    paths: list[str] = []
    size = 0
    for change in changes:
        path = change.get("path") if isinstance(change, Mapping) else None
        if isinstance(path, str):
            paths.append(path)
            size += len(path) + 1
            if size > MAX_SEARCHED:
                break
    return "\n".join(paths)


_TEXTS: Final[Mapping[str, tuple[SearchKind, Any]]] = {
    EventType.SESSION_CREATED: ("title", _title),
    EventType.SESSION_UPDATED: ("title", _title),
    EventType.SESSION_CLOSED: ("title", _title),
    EventType.MESSAGE_CREATED: ("message", _text),
    EventType.USER_MESSAGE: ("message", _text),
    EventType.AGENT_MESSAGE: ("answer", _text),
    EventType.SUBAGENT_MESSAGE: ("answer", _text),
    EventType.RUN_COMPLETED: ("answer", _result),
    EventType.FILE_CHANGED: ("file", _paths),
}

SEARCHED_EVENTS: Final = tuple(str(name) for name in _TEXTS)
"""The types of events whose texts can be searched."""


def kind_of(event_type: str) -> SearchKind:
    """Return the kind of the texts of one of :data:`SEARCHED_EVENTS`."""
    return _TEXTS[event_type][0]


def searchable(event_type: str, data: Mapping[str, Any]) -> Searchable | None:
    """Return the searchable text of an event; None if it has none. Its data is untrusted: an agent may have written it."""
    if (entry := _TEXTS.get(event_type)) is None:
        return None
    kind, text_of = entry
    text = text_of(data)
    if not isinstance(text, str) or not text:
        return None
    return Searchable(kind, text[:MAX_SEARCHED])


@frozen
class Phrase:
    """Words that must follow each other.

    :param is_prefix: whether the last of them is the beginning of a word.
    """

    words: tuple[str, ...]
    is_prefix: bool = False

    def ends_at(self, words: Sequence[str]) -> bool:
        """Return whether a list of words ends with the phrase."""
        last = len(self.words)
        found = words[-last:]
        if len(found) < last or tuple(found[:-1]) != self.words[:-1]:
            return False
        return (
            found[-1].startswith(self.words[-1]) if self.is_prefix else found[-1] == self.words[-1]
        )


@frozen
class Search:
    """A search for texts that contain all the phrases.

    :param kind: only texts of this kind.
    :param session_id: only texts of this session.
    """

    phrases: tuple[Phrase, ...]
    kind: SearchKind | None = None
    session_id: str | None = None

    def matches(self, text: str) -> bool:
        """Return whether a text has all the phrases."""
        missing = set(self.phrases)
        for _, _, found in _occurrences(text, self.phrases):
            missing.discard(found)
            if not missing:
                return True
        return False


@frozen
class FoundText:
    """A match of a search.

    :param cursor: its place in the results.
    :param seq: of its event in the log of the session.
    """

    cursor: str
    kind: SearchKind
    text: str
    session_id: str
    session_title: str | None
    seq: int
    run_id: str | None
    message_id: str | None
    created_at: datetime


def phrases_of(text: str) -> tuple[Phrase, ...]:
    """Parse a search of a person into phrases.

    Each word is a phrase, and so are words in double quotes. A ``*`` at the end of either means that its
    last word is the beginning of one. There is no other syntax.

    :raises InvalidRequest: if it has no words, or too many.
    """
    phrases: dict[Phrase, None] = {}
    for match in _QUOTED.finditer(text):
        quoted = match[1]
        said = match[0] if quoted is None else quoted
        is_prefix = said.endswith("*") or (quoted is not None and text[match.end() :][:1] == "*")
        if words := words_of(said):
            is_long = len(words[-1]) >= _MIN_PREFIX
            phrases[Phrase(tuple(words), is_prefix and is_long)] = None
    if not phrases:
        raise InvalidRequest.of({"q": "has no letter or digit to look for"})
    if len(phrases) > MAX_PHRASES:
        raise InvalidRequest.of(
            {"q": f"has {len(phrases)} words; at most {MAX_PHRASES} can be searched"}
        )
    return tuple(phrases)


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the place of each word of a text, and the word."""
    for match in _WORD.finditer(text):
        if word := _fold(match[0]):  # accents alone are no word
            yield match.start(), match.end(), word[:_MAX_WORD]


def _occurrences(text: str, phrases: Sequence[Phrase]) -> Iterator[tuple[int, int, Phrase]]:
    """Yield the places of phrases in a text, in order of their ends."""
    lasts = {phrase.words[-1] for phrase in phrases if not phrase.is_prefix}
    prefixes = tuple(phrase.words[-1] for phrase in phrases if phrase.is_prefix)
    longest = max(len(phrase.words) for phrase in phrases)
    starts: list[int] = []
    words: list[str] = []
    for start, end, word in _spans(text):
        starts.append(start)
        words.append(word)
        if word in lasts or (prefixes and word.startswith(prefixes)):
            recent = words[-longest:]
            for phrase in phrases:
                if phrase.ends_at(recent):
                    yield starts[-len(phrase.words)], end, phrase


def snippet_of(text: str, phrases: Sequence[Phrase]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the part of a text around the first phrase that is in it, and the places of phrases in that part.

    The part is one line of at most :data:`MAX_SNIPPET` characters. The places do not overlap.
    """
    found = _occurrences(text, phrases)
    first = next(found, None)
    begin = 0 if first is None else _beginning(text, first[0])
    end = min(len(text), begin + MAX_SNIPPET)
    marks: list[tuple[int, int]] = []
    if first is not None:
        for start, stop, _ in _until(first, found, end):
            place = max(start, begin) - begin, min(stop, end) - begin
            if marks and place[0] <= marks[-1][1] - 1:
                marks[-1] = min(place[0], marks[-1][0]), max(place[1], marks[-1][1])
            else:
                marks.append(place)
    return text[begin:end].translate(_CONTROLS), tuple(marks)


def _until(
    first: tuple[int, int, Phrase], others: Iterator[tuple[int, int, Phrase]], end: int
) -> Iterator[tuple[int, int, Phrase]]:
    yield first
    for one in others:
        if one[0] >= end:
            return
        yield one


def _beginning(text: str, place: int) -> int:
    """Return where a snippet begins: before a place, at the start of a line or a word if one is near."""
    if len(text) <= MAX_SNIPPET:
        return 0
    begin = max(0, place - _BEFORE)
    line = text.rfind("\n", begin, place)
    if line >= 0:
        return line + 1
    space = text.find(" ", begin, place)
    return begin if begin == 0 or space < 0 else space + 1
