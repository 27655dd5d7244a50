"""The notice level of a session decides what people are notified of. It is its own, or an ancestor's."""

from collections.abc import Collection

from agent_orchestrator.domain.model import NoticeLevel, Session
from agent_orchestrator.domain.notices import Occasion
from agent_orchestrator.ports.queries import SessionQueries


def level_of(view: SessionQueries, session: Session) -> NoticeLevel:
    """Return the level of a session. One with ``default`` has the level of its parent."""
    current: Session | None = session
    while current is not None:
        if current.notices != "default":
            return current.notices
        parent_id = current.parent_session_id
        current = None if parent_id is None else view.session(parent_id)
    return "default"


def is_wanted(level: NoticeLevel, events: Collection[str], occasion: Occasion) -> bool:
    """Return whether a target or device is notified of an occasion.

    :param events: the occasions that the target or device is configured for.
    """
    if level == "all":
        return occasion in events or "request" in events
    if level == "requests":
        return occasion == "request" and occasion in events
    return level == "default" and occasion in events
