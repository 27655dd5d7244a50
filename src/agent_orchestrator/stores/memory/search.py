"""Searches of the data in memory: every text is read."""

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event
from agent_orchestrator.domain.search import (
    REPEATS_WITHIN,
    FoundText,
    Search,
    Searchable,
    searchable,
)
from agent_orchestrator.stores.memory.state import State


def found_text(state: State, search: Search, position: int, event: Event) -> FoundText | None:
    """Return the text of the event at a position, if the search finds it."""
    text = searchable(event.event_type, event.data)
    session = state.sessions.rows[event.session_id]
    if (
        text is None
        or search.kind not in (None, text.kind)
        or search.session_id not in (None, event.session_id)
        or not search.matches(text.text)
        or (text.kind == "title" and not _is_present(state, event, text))
        or (event.event_type == EventType.RUN_COMPLETED and _is_repeated(state, event, text))
    ):
        return None
    is_message = event.event_type == EventType.MESSAGE_CREATED
    return FoundText(
        cursor=str(position),
        kind=text.kind,
        text=text.text,
        session_id=session.id,
        session_title=session.title,
        seq=event.seq,
        run_id=event.run_id,
        message_id=event.data.get("message_id") if is_message else None,
        created_at=event.created_at,
    )


def _is_present(state: State, event: Event, text: Searchable) -> bool:
    later = state.logs[event.session_id][event.seq :]
    return text.text == state.sessions.rows[event.session_id].title and not any(
        found.kind == "title"
        for one in later
        if one is not None and (found := searchable(one.event_type, one.data)) is not None
    )


def _is_repeated(state: State, event: Event, text: Searchable) -> bool:
    before = state.logs[event.session_id][max(0, event.seq - 1 - REPEATS_WITHIN) : event.seq - 1]
    said = next(
        (
            searchable(one.event_type, one.data)
            for one in reversed(before)
            if one is not None
            and one.run_id == event.run_id
            and one.event_type == EventType.AGENT_MESSAGE
        ),
        None,
    )
    return said is not None and said.text == text.text
