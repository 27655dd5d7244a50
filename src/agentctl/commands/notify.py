"""``agentctl notify``: notices to people who have no client open."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
from attrs import evolve

from agent_orchestrator.operations.notices import (
    GET_NOTICE,
    LIST_NOTICES,
    RETRY_NOTICE,
    TEST_NOTICE,
    TestNotice,
)
from agent_orchestrator.operations.push import LIST_PUSH, UNSUBSCRIBE_PUSH, UPDATE_PUSH
from agentctl.call import Call
from agentctl.failures import FAILED, usage_failure
from agentctl.fields import options_of
from agentctl.options import Group
from agentctl.rows import row

RECEIPT_S: Final = 90.0
"""Maximum seconds to wait for a receipt. One attempt takes at most a minute."""


@click.group(
    cls=Group,
    examples="""
    agentctl notify test
    agentctl notify list --failed
    agentctl notify retry ntc_01k0
    """,
)
def notify() -> None:
    """Test and list notices, and the browsers that get them. Targets of the settings need the scope admin."""


def _failed(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if values.pop("failed"):
        if values["state"]:
            raise usage_failure("give only one of --failed and --state")
        values["state"] = "failed"
    return values


row(
    notify,
    "list",
    LIST_NOTICES,
    "notice_views:notice_table:notices",
    "List notices. They are kept for 30 days after their last change.",
    """
    agentctl notify list
    agentctl notify list --failed
    agentctl notify list --field notices.0.error
    """,
    prepare=_failed,
    extra=(click.option("--failed", is_flag=True, help="Only failed ones."),),
)
row(
    notify,
    "retry",
    RETRY_NOTICE,
    "notice_views:notice_table:notice",
    "Send a failed notice again.",
    """
    agentctl notify retry ntc_01k0
    agentctl notify retry --notice-id ntc_01k0
    """,
)


row(
    notify,
    "browsers",
    LIST_PUSH,
    "notice_views:browser_table:subscriptions",
    "List the browsers that get notices.",
    """
    agentctl notify browsers
    agentctl notify browsers --field subscriptions.0.name
    """,
)
row(
    notify,
    "set",
    UPDATE_PUSH,
    "notice_views:browser_table:subscription",
    "Change what a browser is notified of, and when.",
    """
    agentctl notify set psh_01k0 --push off
    agentctl notify set psh_01k0 --quiet-hours 22:00-07:00 --time-zone Europe/Berlin
    agentctl notify set psh_01k0 --event request --event failed --mute ses_01k0
    """,
)
row(
    notify,
    "forget",
    UNSUBSCRIBE_PUSH,
    "browser {subscription.name} gets no notices any more",
    "Stop sending notices to a browser.",
    """
    agentctl notify forget psh_01k0
    agentctl notify forget --subscription-id psh_01k0
    """,
)


@notify.command(
    examples="""
    agentctl notify test
    agentctl notify test phone
    """
)
@click.argument("target", required=False)
@options_of(TestNotice, without=("target",))
def test(target: str | None) -> None:
    """Send a test notice to one target or device, or to all, and show the receipts.

    A test is tried once. Exit with 1 if one was not sent.
    """
    call = Call.current()

    async def body(connection: Any) -> int:
        from agentctl.notice_views import notice_table

        made = await connection.call(TEST_NOTICE, target=target)
        found = []
        for notice in made.notices:
            reply = await connection.call(GET_NOTICE, notice_id=notice.id, wait_s=RECEIPT_S)
            found.append(reply.notice)
        reply = evolve(made, notices=tuple(found))
        call.output.answer(reply, lambda: notice_table(reply.notices, datetime.now(UTC)))
        return 0 if all(notice.state in ("sent", "shown") for notice in found) else FAILED

    call.run(body)
