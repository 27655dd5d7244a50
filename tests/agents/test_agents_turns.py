"""Turns of the real agents."""

import json

from behaviours import behaviour, instead
from cases import Case, answer, ended, happened, log, said, send, turn
from model_server import acknowledgement

from agent_orchestrator import RunStatus


@behaviour("first_turn")
async def test_a_first_turn(case: Case) -> None:
    async with case.client() as client:
        session = await case.session(client)
        run = await turn(client, session, "reason of it\nusage 30 0 7\nsay first")
        events = await log(client, session)
        providers = {one.name: one for one in (await client.status()).providers}
    assert answer(run) == "first"
    assert run.usage is not None
    assert (run.usage.input_tokens, run.usage.output_tokens) == (30, 7)
    texts = [event.data["text"] for event in events if event.event_type == "agent.message"]
    assert texts == ["first"]
    thoughts = [event.data["text"] for event in events if event.event_type == "agent.reasoning"]
    assert thoughts == ["of it"]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert providers[case.agent.name].version == case.agent.version


@behaviour("resume")
async def test_a_conversation_goes_on(case: Case) -> None:
    async with case.client() as client:
        session = await case.session(client)
        other = await case.session(client)
        first = await turn(client, session, "usage 100 0 10\nsay first")
        assert await said(client, other, "say other") == "other"
        second = await turn(client, session, "usage 100 0 10\nsay second")
    await case.restart()
    async with case.client() as client:
        third = await turn(client, session, "usage 100 0 10\nsay third")
        events = await log(client, session)
        threads = (await client.get_session(session.id)).threads
    assert [answer(run) for run in (first, second, third)] == ["first", "second", "third"]
    # A run has used its own share only.
    assert [run.usage and run.usage.input_tokens for run in (first, second, third)] == [100] * 3
    assert first.thread_id == second.thread_id == third.thread_id is not None
    assert set(threads.values()) == {first.thread_id}
    assert [event.event_type for event in events].count("thread.started") == 1
    texts = case.agent.texts(case.requests[-1])
    said_before = [text for text in texts if text.startswith("usage 100 0 10\nsay")]
    assert [text.split()[-1] for text in said_before] == ["first", "second", "third"]


PROMPTS = (
    *("/help me", "/clear", "/", "  /nonexistent", "-x --help", "--", "-", "resume", "help"),
    *("@file.txt", "!ls", "#memo", "one\n\ntwo\r\nthree\n", "nul \0 here", "\ufeffx"),
    *("a\u2028b\u2029c\u0085d\x1c", "\"'`$(echo no)`\\", "👩‍🚀 é ü", "  blanks "),
    "0123456789 äöü😀 " * 56_250,
)


@behaviour("prompts")
async def test_a_prompt_is_text(case: Case) -> None:
    (case.workspace / "file.txt").write_text("what is in the file")
    assert len(PROMPTS[-1]) == 900_000
    async with case.client() as client:
        session = await case.session(client)
        answers = [await said(client, session, prompt) for prompt in PROMPTS]
    assert case.prompts == list(PROMPTS)
    assert answers == [acknowledgement(one.prompt) for one in case.requests]
    assert "what is in the file" not in json.dumps(case.requests[-1].body)


@behaviour("big_answer")
async def test_an_answer_of_five_megabytes(case: Case) -> None:
    async with case.client() as client:
        session = await case.session(client)
        answered = await said(client, session, "big 5000000")
        events = await log(client, session)
    assert answered == "0123456789abcdef" * 312_500
    texts = [event.data["text"] for event in events if event.event_type == "agent.message"]
    assert texts == [answered]


async def pieces(case: Case) -> list[str]:
    """Return the pieces that the log has of an answer of 20 words."""
    async with case.client() as client:
        session = await case.session(client)
        assert await said(client, session, "stream 20 20 word") == WORDS
        events = await log(client, session)
    return [event.data["text"] for event in events if event.event_type == "agent.message.delta"]


WORDS = "".join(f"word{number} " for number in range(20))


@behaviour("deltas")
async def test_an_answer_is_logged_in_pieces(case: Case) -> None:
    found = await pieces(case)
    assert len(found) > 1
    assert "".join(found) == WORDS


@instead("deltas")
async def test_an_answer_is_logged_whole(case: Case) -> None:
    assert await pieces(case) == []


@behaviour("children")
async def test_tools_start_children(case: Case) -> None:
    """Also in the next run of the same process, with that run's own token."""
    call = case.agent.tool
    script = (
        f'{call}session_spawn {{"task": "say from the child"}}\n'
        f'{call}session_wait {{"run_id": "<0.run.id>"}}\nrelay'
    )
    async with case.client() as client:
        session = await case.session(client)
        runs = [await turn(client, session, script) for _ in range(2)]
        tree = await client.get_tree(session.id)
        events = await log(client, session)
    assert all("from the child" in answer(run) for run in runs)
    assert [one.runs[0].parent_run_id for one in tree.children] == [run.id for run in runs]
    tools = [event.data for event in events if event.event_type == "tool.completed"]
    names = [(one["name"].rpartition(".")[2], one["status"]) for one in tools]
    assert names == [("session_spawn", "completed"), ("session_wait", "completed")] * 2
    assert not [event for event in events if event.event_type == "request.created"]


@behaviour("steer")
async def test_a_message_joins_the_turn(case: Case) -> None:
    go = case.workspace / "go"
    async with case.client() as client:
        session = await case.session(client, sandbox="danger-full-access")
        waits = f"shell while ! test -e {go}; do sleep 0.1; done"
        run_id = await send(client, session, f"{waits}\nshell true\nsay done")
        await happened(client, session, "tool.started")
        steered = await send(client, session, "one more thing", when_busy="steer")
        assert steered == run_id
        go.touch()
        run = await ended(client, run_id)
        messages = (await client.list_messages(session.id)).messages
    assert run.status is RunStatus.COMPLETED, run.error
    assert "one more thing" in json.dumps(case.requests[-1].body)
    assert {one.run_id for one in messages} == {run_id}


@instead("steer")
async def test_a_message_that_cannot_join_the_turn_is_queued(case: Case) -> None:
    async with case.client() as client:
        session = await case.session(client, sandbox="danger-full-access")
        run_id = await send(client, session, "slow 1\nsay first")
        steered = await send(client, session, "say second", when_busy="steer")
        assert steered != run_id
        assert answer(await ended(client, run_id)) == "first"
        assert answer(await ended(client, steered)) == "second"
