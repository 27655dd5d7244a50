"""What runners do if an agent has lost a conversation, or did not get a prompt."""

import pytest

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Thread
from agent_orchestrator.ports.runner import Outcome
from agent_orchestrator.runners.conversations import (
    ConversationMissing,
    ConversationRunner,
    PromptNotTaken,
    report_undelivered,
)
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio

OLD, NEW = Thread("old", {}), Thread("new", {})
GONE = ConversationMissing("nothing of that name")
CRASH = AgentFailed("agent_crashed", "it ended")


async def play(context, *ends, **options):
    """Deliver a prompt whose tries end in this way. Return the outcome and the thread of each try."""
    threads, remaining = [], iter(ends)

    async def turn(thread):
        threads.append(thread)
        end = next(remaining)
        if isinstance(end, Exception):
            raise end
        return Outcome(end)

    try:
        outcome = (await ConversationRunner(**options).deliver(context, turn)).text
    except AgentFailed as failure:
        outcome = failure
    return outcome, threads


@pytest.fixture
def context(tmp_path):
    return RecordingContext("x", cwd=tmp_path, thread=OLD)


def notes(context):
    return [(data.get("code"), data["message"]) for _, data in context.events]


async def test_a_lost_conversation_is_replaced_and_that_is_recorded(context):
    assert await play(context, GONE, "done") == ("done", [OLD, None])
    note = "the conversation is gone, so a new one is started: nothing of that name"
    assert notes(context) == [("thread_missing", note)]


async def test_a_lost_conversation_fails_the_run_if_configured(context):
    failure, threads = await play(context, GONE, on_missing_thread="fail")
    assert (failure.code, failure.message) == ("thread_missing", "nothing of that name")
    assert threads == [OLD]
    assert notes(context) == []


async def test_an_agent_that_also_loses_a_new_conversation_is_not_tried_again(context):
    failure, threads = await play(context, *[GONE] * 5)
    assert failure.code == "thread_missing"
    assert threads == [OLD, None]


async def test_a_prompt_that_was_not_taken_is_sent_once_more_to_its_thread(context):
    again = PromptNotTaken(CRASH, NEW)
    assert await play(context, again, "done") == ("done", [OLD, NEW])
    assert await play(context, *[again] * 5) == (CRASH, [OLD, NEW])


async def test_replacing_a_conversation_is_not_counted_as_a_retry(context):
    ends = (PromptNotTaken(CRASH, OLD), GONE, "done")
    assert await play(context, *ends) == ("done", [OLD, OLD, None])


async def test_messages_that_the_agent_did_not_get_are_named(context):
    await report_undelivered(context, ["one", "two"])
    assert [message.rpartition(": ")[2] for _, message in notes(context)] == ["one", "two"]
