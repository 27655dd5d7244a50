"""Calls about notices: their outbox, tests and retries."""

from typing import Final

from attrs import frozen

from agent_orchestrator.domain.notices import Notice, NoticeState
from agent_orchestrator.fields import MAX_ID, command, identifier, param, positional
from agent_orchestrator.operations.options import Ordered
from agent_orchestrator.operations.table import Operation, _made


@command
class OfNotice:
    notice_id: str = identifier("The notice.", kw_only=False)


@command
class ListNotices(Ordered):
    state: NoticeState | None = param("Only notices in this state.", default=None)


@command
class GetNotice(OfNotice):
    wait_s: float = param(
        "Maximum seconds to wait until its state is another than `known_state`.",
        default=0.0,
        minimum=0,
        maximum=86_400,
    )
    known_state: NoticeState | None = param(
        "The state that the caller knows. Default: `queued`.", default=None
    )


@command
class TestNotice:
    target: str | None = positional(
        "A target of the settings, or the caller's push subscription. Default: all of them. Targets of the "
        "settings need the scope `admin`.",
        default=None,
        kw_only=False,
        max_length=MAX_ID,
        not_blank=True,
    )


@command
class RetryNotice(OfNotice):
    pass


@frozen
class NoticeReply:
    notice: Notice


@frozen
class NoticesReply:
    notices: tuple[Notice, ...]


@frozen
class NoticePage:
    notices: tuple[Notice, ...]
    next_cursor: str | None


LIST_NOTICES: Final = Operation(
    "list_notices",
    "GET",
    "/notices",
    ListNotices,
    NoticePage,
    "List notices. An administrator sees all, others those of their devices.",
)
GET_NOTICE: Final = Operation(
    "get_notice", "GET", "/notices/{notice_id}", GetNotice, NoticeReply, "Read a notice."
)
TEST_NOTICE: Final = _made(
    Operation(
        "test_notice",
        "POST",
        "/notices/test",
        TestNotice,
        NoticesReply,
        "Send a test notice to one target or device, or to all.",
    )
)
RETRY_NOTICE: Final = Operation(
    "retry_notice",
    "POST",
    "/notices/{notice_id}/retry",
    RetryNotice,
    NoticeReply,
    "Send a failed notice again.",
    scope="admin",
)
