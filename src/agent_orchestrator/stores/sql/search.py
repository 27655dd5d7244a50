"""The index of words of an SQL store, and searches in it.

The index has a row for each event with a text that can be searched (:mod:`agent_orchestrator.domain.search`).
It has the words and not the texts, which are read from the events. Some more words say of what kind the
text is, whose its session is and which one, so that a search does not pass what others have.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2s
from typing import Any, ClassVar, Final

from attrs import field, frozen

from agent_orchestrator.domain.access import EVERYTHING, Visibility
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.search import (
    REPEATS_WITHIN,
    SEARCHED_EVENTS,
    FoundText,
    Phrase,
    Search,
    Searchable,
    kind_of,
    searchable,
    words_of,
)
from agent_orchestrator.ports.queries import MAX_EXAMINED_TEXTS
from agent_orchestrator.stores.encoding import LAST, position_before
from agent_orchestrator.stores.sql.listing import GRANTED, TREE, Statement
from agent_orchestrator.stores.sql.tables import Row
from agent_orchestrator.wire.codec import parse_time

_AT_ONCE: Final = 50
"""Texts that are read together."""

_MAX_SCOPE: Final = 500
"""Sessions that a search names. A caller who may see more of them passes texts of others."""

_PART: Final = 200
"""Events of which one part of a database's texts is made that have no words in the index yet."""

_PART_SIZE: Final = 200_000
"""Characters of such a part."""

# Characters that no word has.
_KIND: Final = "\ue000"
_SESSION: Final = "\ue001"
_OWNER: Final = "\ue002"

_BACKLOG: Final = "SELECT position FROM search_backlog WHERE id = 1"
_PUT_BACKLOG: Final = "UPDATE search_backlog SET position = ? WHERE id = 1"
_END_BACKLOG: Final = "DELETE FROM search_backlog WHERE id = 1"
_LAST_POSITION: Final = "SELECT coalesce(max(position), 0) FROM events WHERE position <= ?"
_POSITIONS: Final = "SELECT position FROM events"
_BEGINNING: Final = "SELECT text FROM search_beginnings WHERE position = ?"
_ADD_BEGINNING: Final = "INSERT INTO search_beginnings (position, text) VALUES (?, ?)"
_SESSION_NUMBER: Final = "SELECT number FROM sessions WHERE id = ?"
_GRANTED_NUMBERS: Final = f"SELECT number FROM sessions WHERE id IN ({GRANTED}) LIMIT ?"
_TREE_NUMBERS: Final = f"SELECT number FROM sessions WHERE id IN ({TREE}) LIMIT ?"


@frozen
class SearchDialect:
    """How a database keeps and finds words.

    :param add: adds the words of a text: the position of its event, and the words.
    :param find: returns the positions of the texts that match an expression, before a position, the last first,
        up to a number.
    :param document: makes the value of the words from them.
    :param expression: makes the expression from phrases. The text has one phrase of each group.
    """

    add: str
    find: str
    document: Callable[[Sequence[str]], str]
    expression: Callable[[Sequence[Sequence[Phrase]]], str]


@frozen
class Entry:
    """A text to add to the index.

    :param document: its words, as the database has them.
    :param beginning: the text, if that of the event is too long to be read for a snippet.
    """

    position: int
    document: str
    beginning: str | None


@frozen
class BacklogPart:
    """The next texts of a database that have no words in the index.

    :param last: the position up to which there were such texts.
    :param rest: the position up to which there still are.
    :param said: the positions of messages with the text of a result that is left out because of them.
    """

    last: int
    rest: int
    entries: tuple[Entry, ...]
    said: tuple[int, ...] = ()


@frozen
class _Candidates:
    """The texts with the words of a search, the last first."""

    expression: str
    positions: Callable[[str, int, int], list[int]] = field(repr=False)

    def before(self, position: int, limit: int) -> list[int]:
        return self.positions(self.expression, position, limit)


class SqlSearches(ABC):
    """Searches through one connection."""

    _words: ClassVar[SearchDialect]

    @property
    @abstractmethod
    def _searched_event(self) -> str:
        """The beginning of a query for the columns of an event, and the id, number, title and owner of its
        session.
        """

    _execute: Callable[[str, Sequence[Any]], Any]

    @abstractmethod
    def _first_row(self, sql: str, *values: Any) -> Any: ...

    @abstractmethod
    def _in_list(self, column: str, values: Sequence[Any]) -> Statement: ...

    @abstractmethod
    def _is_visible(self, within: Visibility, session_id: str) -> bool: ...

    @abstractmethod
    def _long_data(self, position: int) -> Mapping[str, Any]: ...

    def search(
        self,
        search: Search,
        *,
        within: Visibility = EVERYTHING,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> tuple[list[FoundText], str | None]:
        place = position_before(after)
        if (scope := self._scope(search, within)) is None:
            return [], None
        groups = [*scope, *((phrase,) for phrase in search.phrases)]
        candidates = _Candidates(self._words.expression(groups), self._positions)
        found: list[FoundText] = []
        visible: dict[str, bool] = {}
        left = LAST if size is None else size
        for _ in range(MAX_EXAMINED_TEXTS // _AT_ONCE):
            positions = candidates.before(place, _AT_ONCE)
            rows = self._searched_events(positions)
            for place in positions:
                text = self._found(rows[place], within, visible) if place in rows else None
                if text is None:
                    continue
                found.append(text)
                left -= len(text.text)
                if len(found) == limit or left <= 0:
                    return found, str(place) if candidates.before(place, 1) else None
            if len(positions) < _AT_ONCE:
                return found, None
        return found, str(place) if candidates.before(place, 1) else None

    def search_is_complete(self) -> bool:
        return self._first_row(_BACKLOG) is None

    def _positions(self, expression: str, before: int, limit: int) -> list[int]:
        return [row[0] for row in self._execute(self._words.find, (expression, before, limit))]

    def _scope(self, search: Search, within: Visibility) -> list[tuple[Phrase, ...]] | None:
        """Return groups of words that narrow a search. None if it can find nothing."""
        groups: list[tuple[Phrase, ...]] = []
        if search.kind is not None:
            groups.append((_of_kind(search.kind),))
        if search.session_id is not None:
            row = self._first_row(_SESSION_NUMBER, search.session_id)
            return None if row is None else [*groups, (_of_session(row[0]),)]
        if within.principal is not None:
            granted = self._sessions_of(_GRANTED_NUMBERS, within.principal)
            if granted is not None:
                groups.append((_of_owner(within.principal), *granted))
        if within.tree is not None and (below := self._sessions_of(_TREE_NUMBERS, within.tree)):
            groups.append(below)
        return groups

    def _sessions_of(self, query: str, value: str) -> tuple[Phrase, ...] | None:
        rows = self._execute(query, (value, _MAX_SCOPE + 1)).fetchall()
        return tuple(_of_session(row[0]) for row in rows) if len(rows) <= _MAX_SCOPE else None

    def _searched_events(self, positions: Sequence[int]) -> Mapping[int, Row]:
        if not positions:
            return {}
        condition, values = self._in_list("e.position", positions)
        rows = self._execute(f"{self._searched_event} WHERE {condition}", values)
        return {row[5]: row for row in rows}

    def _found(self, row: Row, within: Visibility, visible: dict[str, bool]) -> FoundText | None:
        """Return a text that the caller may see; a title only if it is the present one.

        :param visible: what is known of sessions.
        """
        seq, run_id, _, event_type, created_at, position, data, session_id, number, title, _ = row
        if session_id not in visible:
            visible[session_id] = self._is_visible(within, session_id)
        if not visible[session_id]:
            return None
        plain = json.loads(data) if type(data) is str else {}
        text = self._searched_text(position, event_type, data, plain)
        if text is None or (
            text.kind == "title" and not self._is_present(text, title, number, position)
        ):
            return None
        return FoundText(
            cursor=str(position),
            kind=text.kind,
            text=text.text,
            session_id=session_id,
            session_title=title,
            seq=seq,
            run_id=run_id,
            message_id=self._message_id(position, event_type, data, plain),
            created_at=parse_time(created_at),
        )

    def _searched_text(
        self, position: int, event_type: str, data: Any, plain: Mapping[str, Any]
    ) -> Searchable | None:
        if type(data) is str:
            return searchable(event_type, plain)
        if (row := self._first_row(_BEGINNING, position)) is not None:
            return Searchable(kind_of(event_type), row[0])
        return searchable(event_type, self._long_data(position))  # it is not in the index yet

    def _message_id(
        self, position: int, event_type: str, data: Any, plain: Mapping[str, Any]
    ) -> str | None:
        if event_type != EventType.MESSAGE_CREATED:
            return None
        found = plain if type(data) is str else self._long_data(position)
        return found.get("message_id")

    def _is_present(self, text: Searchable, title: str | None, number: int, position: int) -> bool:
        if text.text != title:
            return False
        words = self._words.expression([(_of_kind("title"),), (_of_session(number),)])
        return self._positions(words, LAST, 1) == [position]

    def _said_before(self, session: int, seq: int, run_id: str | None) -> Row | None:
        """Return the last message of a run's agent shortly before an event."""
        row: Row | None = self._first_row(
            f"{self._searched_event} WHERE e.session = ? AND e.seq >= ? AND e.seq < ? AND e.run_id = ?"
            f" AND e.event_type = '{EventType.AGENT_MESSAGE}' ORDER BY e.seq DESC LIMIT 1",
            session,
            seq - REPEATS_WITHIN,
            seq,
            run_id,
        )
        return row

    def _is_repeated(self, session: int, seq: int, run_id: str | None, text: str) -> bool:
        """Return whether the result of a run is what its agent said in a message shortly before."""
        return self._repeated_position(session, seq, run_id, text) is not None

    def _repeated_position(
        self, session: int, seq: int, run_id: str | None, text: str
    ) -> int | None:
        """Return the position of the message that the result of a run repeats; None if it repeats none."""
        row = self._said_before(session, seq, run_id)
        if row is None:
            return None
        data = row[6]
        plain = json.loads(data) if type(data) is str else {}
        said = self._searched_text(row[5], row[3], data, plain)
        return row[5] if said is not None and said.text == text else None

    def _results_repeating(self, session: int, through: int) -> list[Entry]:
        """Return the results that are not in the index because a message up to an event has the same text.

        :param session: its number.
        :param through: the ``seq`` of the event.
        """
        rows = self._execute(
            f"{self._searched_event} WHERE e.session = ? AND e.seq > ? AND e.seq <= ?"
            f" AND e.event_type = '{EventType.RUN_COMPLETED}'",
            (session, through, through + REPEATS_WITHIN),
        ).fetchall()
        backlog = self._first_row(_BACKLOG) if rows else None
        entries: list[Entry] = []
        for seq, run_id, _, event_type, _, position, data, _, _, _, owner in rows:
            if backlog is not None and position <= backlog[0]:
                continue  # it is not in the index yet
            said = self._said_before(session, seq, run_id)
            if said is None or said[0] > through:
                continue
            is_long = type(data) is not str
            text = searchable(
                event_type, self._long_data(position) if is_long else json.loads(data)
            )
            if text is not None and self._is_repeated(session, seq, run_id, text.text):
                entry = self._entry(position, session, owner, text, is_long=is_long)
                entries.append(entry)
        return entries

    def _entry(
        self, position: int, session: int, owner: str, text: Searchable, *, is_long: bool
    ) -> Entry:
        words = [_KIND + text.kind[0], f"{_SESSION}{session}", _owner_word(owner)]
        words += words_of(text.text)
        return Entry(position, self._words.document(words), text.text if is_long else None)

    def _add_words(self, entry: Entry) -> None:
        self._execute(self._words.add, (entry.position, entry.document))

    def _add_entry(self, entry: Entry) -> None:
        self._add_words(entry)
        if entry.beginning is not None:
            self._execute(_ADD_BEGINNING, (entry.position, entry.beginning))

    def backlog_part(self) -> BacklogPart | None:
        """Return the newest texts that have no words in the index; None if there are no more."""
        if (row := self._first_row(_BACKLOG)) is None:
            return None
        last = row[0]
        # Numbers that have no event are passed: a log may lack millions that were deleted before it was imported.
        top = self._first_row(_LAST_POSITION, last)[0]
        condition, values = self._in_list("e.event_type", SEARCHED_EVENTS)
        rows = self._execute(
            f"{self._searched_event} WHERE e.position > ? AND e.position <= ? AND {condition}"
            " ORDER BY e.position DESC",
            (top - _PART, top, *values),
        )
        entries: list[Entry] = []
        said: list[int] = []
        rest = max(0, top - _PART)
        size = 0
        for entry in self._entries(rows, said):
            entries.append(entry)
            size += len(entry.document)
            if size >= _PART_SIZE:
                rest = entry.position - 1
                break
        return BacklogPart(last, rest, tuple(reversed(entries)), tuple(said))

    def _entries(self, rows: Iterable[Row], said: list[int]) -> Iterator[Entry]:
        """Yield the entries of events.

        :param said: takes the positions of the messages that results repeat, which are left out.
        """
        for row in rows:
            seq, run_id, _, event_type, _, position, data, _, number, _, owner = row
            is_long = type(data) is not str
            text = searchable(
                event_type, self._long_data(position) if is_long else json.loads(data)
            )
            if text is None:
                continue
            if event_type == EventType.RUN_COMPLETED:
                repeated = self._repeated_position(number, seq, run_id, text.text)
                if repeated is not None:
                    said.append(repeated)
                    continue
            yield self._entry(position, number, owner, text, is_long=is_long)

    def add_backlog_part(self, part: BacklogPart) -> None:
        """Add texts to the index, unless somebody else has.

        Add none if a message is gone that a result repeats: the part is then read again.
        """
        row = self._first_row(_BACKLOG)
        if row is None or row[0] != part.last:
            return
        # Retention may have deleted some since they were read.
        positions = [*(entry.position for entry in part.entries), *part.said]
        condition, values = self._in_list("position", positions)
        kept = {row[0] for row in self._execute(f"{_POSITIONS} WHERE {condition}", values)}
        if not kept.issuperset(part.said):
            return
        for entry in part.entries:
            if entry.position in kept:
                self._add_entry(entry)
        if part.rest:
            self._execute(_PUT_BACKLOG, (part.rest,))
        else:
            self._execute(_END_BACKLOG, ())


def _of_kind(kind: str) -> Phrase:
    return Phrase((_KIND + kind[0],))


def _of_session(number: int) -> Phrase:
    return Phrase((f"{_SESSION}{number}",))


def _of_owner(owner: str) -> Phrase:
    return Phrase((_owner_word(owner),))


@lru_cache(maxsize=1000)
def _owner_word(owner: str) -> str:
    return _OWNER + blake2s(owner.encode(), digest_size=8).hexdigest()
