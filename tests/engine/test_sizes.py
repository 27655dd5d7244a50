"""Size limits of a request, and where it is stored in full."""

import pytest

from agent_orchestrator import Client, Run, open_embedded
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.engine.summaries import MAX_SUMMARY
from agent_orchestrator.fields import MAX_METADATA, MAX_OPTION, MAX_OPTIONS, MAX_QUESTION
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.wire import strict_json

pytestmark = pytest.mark.anyio

DEPTH = 4
LONG = "q" * MAX_QUESTION
OPTIONS = ("o" * MAX_OPTION,) * MAX_OPTIONS
DETAIL = {"d": "d" * (MAX_METADATA - 100)}


async def descent(client: Client) -> list[Run]:
    """Return a manual run of a session, of its child, and so on."""
    session = await client.create_session(provider=MANUAL)
    runs = [await client.create_run(session.id)]
    await client.transition_run(runs[0].id, "running")
    for _ in range(DEPTH):
        child = await client.spawn("help", run_id=runs[-1].id)
        await client.transition_run(child.run.id, "running")
        runs.append(child.run)
    return runs


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("text", {"text": LONG + "q"}),
        ("options", {"options": (*OPTIONS, "o")}),
        ("options", {"options": ["fine", "o" * (MAX_OPTION + 1)]}),
        ("options", {"options": ["fine", "\ud800"]}),
        ("detail", {"detail": {"numbers": [10**4000] * 50}}),
    ],
)
async def test_request_that_is_too_large_is_refused(field: str, given: dict[str, object]) -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        before = await client.get_session(session.id)
        words = {"text": "Well?", **given}
        with pytest.raises(InvalidRequest) as refused:
            await client.reply_parent(run.id, request_kind="input_request", **words)  # type: ignore[arg-type]
        [named] = refused.value.details["fields"]  # the field, or the entry of it
        assert named.startswith(field)
        assert (await client.requests(session_id=session.id)).requests == ()
        assert await client.get_session(session.id) == before


async def test_note_may_be_longer_than_a_question() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        run = (await descent(client))[-1]
        reply = await client.reply_parent(run.id, LONG * 2)
        assert reply.message is not None
        assert reply.message.text == LONG * 2


async def test_logs_of_ancestors_have_a_summary_of_the_request() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        runs = await descent(client)
        asked = await client.reply_parent(
            runs[-1].id, LONG, request_kind="input_request", detail=DETAIL, options=OPTIONS
        )
        assert asked.request is not None
        await client.resolve_request(asked.request.id, "answer", text="a" * 100_000)
        for run in runs[:-1]:
            events = [e async for e in client.events(run.session_id)]
            found = [event.data for event in events if event.event_type.startswith("request.")]
            assert {one["id"] for one in found} == {asked.request.id}
            assert len(found) >= 2
            for data in found:
                assert len(strict_json.dumps(data)) < 3 * MAX_SUMMARY
                assert data["text"].startswith("qqq")
                assert (data["detail"], data["options"]) == (None, None)
                assert {"text", "detail", "options"} <= {*data["cut"]}
            assert found[-1]["status"] == "answered"
        own = [e.data async for e in client.events(runs[-1].session_id)]
        whole = next(data for data in own if data.get("id") == asked.request.id)
        assert (whole["text"], whole["detail"]) == (LONG, DETAIL)
        assert tuple(one["label"] for one in whole["options"]) == OPTIONS
        assert "cut" not in whole


async def test_log_of_the_parent_has_a_summary_of_a_childs_task_and_result() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        parent = await client.create_session(provider=MANUAL)
        child = await client.spawn("t" * 100_000, session_id=parent.id)
        await client.transition_run(child.run.id, "running")
        done = await client.transition_run(
            child.run.id, "completed", result={"text": "r" * 100_000}
        )
        assert done.result is not None
        events = {e.event_type: e.data async for e in client.events(parent.id)}
        spawned, finished = events["child.spawned"], events["child.finished"]
        assert (len(spawned["task"]), spawned["cut"]) == (MAX_SUMMARY + 1, ["task"])
        assert len(finished["result"]["text"]) == MAX_SUMMARY + 1
        assert finished["result"]["cut"] == ["text"]
        # The message has the whole result, and so has the run.
        assert done.result.text in events["message.created"]["text"]
