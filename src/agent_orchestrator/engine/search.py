"""Searches of what sessions contain."""

from typing import Final

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.search import FoundText, Phrase, Search, phrases_of, snippet_of
from agent_orchestrator.engine.access import session_for, visibility
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations.search import (
    Mark,
    SearchHit,
    SearchPage,
    SearchSessions,
    Snippet,
)
from agent_orchestrator.ports.queries import View

_PAGE_SIZE: Final = 2**20
"""Characters of found texts after which a page ends. Each is read to make its snippet."""


async def search(core: Core, caller: Principal, command: SearchSessions) -> SearchPage:
    wanted = Search(phrases_of(command.q), command.kind, command.session_id)

    def query(view: View) -> SearchPage:
        within = visibility(view, caller)
        if command.session_id is not None:
            session_for(view, caller, Action.READ, command.session_id)
        found, cursor = view.search(
            wanted, within=within, after=command.cursor, limit=command.limit, size=_PAGE_SIZE
        )
        hits = tuple(_hit(text, wanted.phrases) for text in found)
        return SearchPage(hits, cursor, view.search_is_complete())

    return await core.store.read(query)


def _hit(found: FoundText, phrases: tuple[Phrase, ...]) -> SearchHit:
    text, marks = snippet_of(found.text, phrases)
    return SearchHit(
        kind=found.kind,
        session_id=found.session_id,
        session_title=found.session_title,
        seq=found.seq,
        run_id=found.run_id,
        message_id=found.message_id,
        created_at=found.created_at,
        snippet=Snippet(text, tuple(Mark(start, end) for start, end in marks)),
    )
