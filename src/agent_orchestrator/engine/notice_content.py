"""The content of a notice: a title, a link, and text only if the settings say so."""

import unicodedata
from collections.abc import Mapping
from typing import Final

from agent_orchestrator.domain.model import RequestKind
from agent_orchestrator.domain.notices import Notice, NoticeKind
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports.channel import NoticeContent
from agent_orchestrator.ports.queries import RunQueries, View

MAX_TITLE: Final = 120
MAX_TEXT: Final = 1_000
"""Maximum number of characters of a session's title, and of a text, in a notice."""

_REQUEST_TITLES: Final[Mapping[RequestKind, str]] = {
    "approval_request": "Approval needed",
    "permission_request": "Permission needed",
    "input_request": "Question",
}
_RUN_TITLES: Final[Mapping[NoticeKind, str]] = {"finished": "Finished", "failed": "Failed"}


def content_of(core: Core, view: View, notice: Notice) -> NoticeContent | None:
    """Return what to send now; None if the notice is no longer wanted."""
    is_withdrawal = notice.state == "withdrawing"
    request = None if notice.request_id is None else view.request(notice.request_id)
    session = None if notice.session_id is None else view.session(notice.session_id)
    shows_text = core.config.notify.include_text
    if notice.kind == "request" and (request is None or request.is_open == is_withdrawal):
        return None
    heading, text = "Test notice", None
    if request is not None:
        heading, text = _REQUEST_TITLES[request.kind], request.text
    elif notice.kind in _RUN_TITLES:
        heading = _RUN_TITLES[notice.kind]
        text = _outcome(view, notice.run_id) if shows_text else None
    name = None if session is None or session.title is None else one_line(session.title, MAX_TITLE)
    return NoticeContent(
        notice_id=notice.id,
        action="withdraw" if is_withdrawal else "show",
        kind=notice.kind,
        subject=notice.subject,
        title=f"{heading}: {name}" if name else heading,
        link=(core.config.notify.link_base or "").rstrip("/") + _path(notice),
        created_at=notice.created_at,
        at=core.now(),
        session_id=notice.session_id,
        session_title=name,
        run_id=notice.run_id,
        request_id=notice.request_id,
        request_kind=None if request is None else request.kind,
        deadline=None if request is None else request.expires_at,
        text=one_line(text, MAX_TEXT) if text and shows_text else None,
    )


def _outcome(view: RunQueries, run_id: str | None) -> str | None:
    """Return the text of a run's result, or the message of its error."""
    run = None if run_id is None else view.run(run_id)
    if run is None:
        return None
    if run.error is not None:
        return run.error.message
    return None if run.result is None else run.result.text


def _path(notice: Notice) -> str:
    if notice.request_id is not None:
        return f"/r/{notice.request_id}"
    return "/" if notice.session_id is None else f"/s/{notice.session_id}"


def one_line(text: str, max_length: int) -> str:
    """Return a text on one line, without control and formatting characters, cut to a length."""
    visible = "".join(
        " " if unicodedata.category(character) in _HIDDEN else character
        for character in text[: 4 * max_length]
    )
    line = " ".join(visible.split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Categories of characters that hide, reorder or break text."""
