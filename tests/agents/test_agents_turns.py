"""Turns of the real agents."""

import json
from pathlib import Path
from typing import Any

import anyio
from behaviours import behaviour, instead
from cases import Case, answer, ended, happened, log, question, said, send, turn
from model_server import acknowledgement

from agent_orchestrator import Client, Event, RunStatus, Session

WORDS = "".join(f"word{number} " for number in range(20))

PROMPTS = (
    *("/help me", "/clear", "/", "  /nonexistent", "-x --help", "--", "-", "resume", "help"),
    *("@file.txt", "!ls", "#memo", "one\n\ntwo\r\nthree\n", "nul \0 here", "\ufeffx"),
    *("a\u2028b\u2029c\u0085d\x1c", "\"'`$(echo no)`\\", "👩‍🚀 é ü", "  blanks "),
    "0123456789 äöü😀 " * 56_250,
)


def texts(events: list[Event], kind: str) -> list[str]:
    return [event.data["text"] for event in events if event.event_type == f"agent.{kind}"]


@behaviour("first_turn", "deltas", "prompts", "big_answer")
async def test_an_agent_answers_prompts_of_any_kind_and_reports_usage(case: Case) -> None:
    (case.workspace / "file.txt").write_text("what is in the file")
    async with case.client() as client:
        session = await case.session(client)
        first = await turn(client, session, "reason of it\nusage 30 0 7\nsay first")
        assert await said(client, session, "stream 20 20 word") == WORDS
        events = await log(client, session)
        if case.agent.can("deltas"):
            await pieces_while_it_writes(case, client, session)
        await prompts(case, client, session)
        big = await said(client, session, "big 5000000")
        everything = await log(client, session)
        providers = {one.name: one for one in (await client.status()).providers}
    assert answer(first) == "first"
    assert first.usage is not None
    assert (first.usage.input_tokens, first.usage.output_tokens) == (30, 7)
    assert texts(events, "message") == ["first", WORDS]
    # gemini puts the subject of a thought before it, which is empty here.
    assert [text.strip("*\n") for text in texts(events, "reasoning")] == ["of it"]
    pieces = "".join(texts(events, "message.delta"))
    assert pieces in ((f"first{WORDS}", WORDS) if case.agent.can("deltas") else ("",))
    assert big == "0123456789abcdef" * 312_500
    assert texts(everything, "message")[-1] == big
    assert [event.seq for event in everything] == list(range(1, len(everything) + 1))
    assert providers[case.agent.name].version == case.agent.version


async def pieces_while_it_writes(case: Case, client: Client, session: Session) -> None:
    after = (await client.get_session(session.id)).last_seq
    run_id = await send(client, session, "stream 10000 50 word")
    await happened(client, session, "agent.message.delta", after)
    assert (await client.get_run(run_id)).status is RunStatus.RUNNING
    await client.cancel_run(run_id)
    await ended(client, run_id)


async def prompts(case: Case, client: Client, session: Session) -> None:
    """Send texts that mean something else to some command lines."""
    begun = len(case.requests)
    assert len(PROMPTS[-1]) == 900_000
    answers = [await said(client, session, prompt) for prompt in PROMPTS]
    assert case.prompts[begun:] == list(PROMPTS)
    assert answers == [acknowledgement(one.prompt) for one in case.requests[begun:]]
    assert "what is in the file" not in json.dumps(case.requests[-1].body)


@behaviour("resume", "late")
async def test_a_conversation_goes_on_after_a_restart(case: Case) -> None:
    """An agent that asked has ended after a restart. The next one is told, and would have to ask again."""
    file = case.workspace / "ran"
    asks = f"{case.agent.asking} sh -c 'echo ran >> {file}'\nsay done"
    script = "usage 100 0 10\nsay "
    async with case.client() as client:
        session = await case.session(client)
        runs = [await turn(client, session, script + word) for word in ("first", "second")]
        if case.agent.can("late"):
            run_id = await send(client, session, asks)
            asked = await question(client, run_id)
    await case.restart()
    async with case.client() as client:
        if case.agent.can("late"):
            await client.resolve_request(asked.id, "approve")
            late = await ended(client, run_id)
            assert late.status is RunStatus.COMPLETED, late.error
            assert late.attempt == 2
            assert f"echo ran >> {file}" in case.prompts[-1]
            assert case.prompts[-1] != asks
        runs.append(await turn(client, session, script + "third"))
        events = await log(client, session)
        threads = (await client.get_session(session.id)).threads
    assert [answer(run) for run in runs] == ["first", "second", "third"]
    # A run has used its own share only.
    assert [run.usage and run.usage.input_tokens for run in runs] == [100] * 3
    assert {run.thread_id for run in runs} == set(threads.values()) != {None}
    assert [event.event_type for event in events].count("thread.started") == 1
    found = [text for text in case.agent.texts(case.requests[-1]) if text.startswith(script)]
    assert [text.split()[-1] for text in found] == ["first", "second", "third"]
    assert not await anyio.Path(file).exists()


@behaviour("children", "parent")
async def test_an_agent_starts_children_with_its_tools_and_waits_for_them(case: Case) -> None:
    """Also in the next run of the same process, with that run's own token."""
    runs, children = [], []
    file = case.workspace / "ran"
    decisions = ("approve", "deny") if case.agent.can("parent") else (None, None)
    if len(case.agent.states) == 1:  # it costs much; test_agents_mixed.py has the other decision
        decisions = decisions[:1]
    async with case.client() as client:
        session = await case.session(client)
        for decision in decisions:
            runs.append(await turn(client, session, work_with_a_child(case, file, decision)))
            assert file.exists() is (decision is not None)
        tree = await client.get_tree(session.id)
        events = [one for one in await log(client, session) if one.session_id == session.id]
        for child in tree.children:
            children.append((await client.requests(session_id=child.session.id)).requests)
    assert [one.runs[0].parent_run_id for one in tree.children] == [run.id for run in runs]
    assert all(one.runs[0].status is RunStatus.COMPLETED for one in tree.children)
    for run, decision, asked in zip(runs, decisions, children, strict=True):
        assert [(one.decision, one.decided_by) for one in asked] == (
            [(decision, run.id)] if decision else []
        )
    assert "from the child" in answer(runs[0])
    if case.agent.can("parent"):
        assert file.read_text() == "ran\n"
    tools = [event.data for event in events if event.event_type == "tool.completed"]
    names = [(one["name"].rpartition(".")[2], one["status"]) for one in tools]
    used = ["session_spawn", "session_wait", "session_wait"]
    used += ["request_resolve", "session_wait"] if case.agent.can("parent") else []
    assert names == [(name, "completed") for name in used] * len(decisions)


def work_with_a_child(case: Case, file: Path, decision: str | None) -> str:
    """Return the script of an agent that spawns a child, decides what it asks, and waits for it."""
    call = case.agent.tool
    asks = f"{case.agent.asking} sh -c 'echo ran >> {file}'\n" if decision else ""
    steps: list[tuple[str, dict[str, Any]]] = [
        ("session_spawn", {"task": f"{asks}say from the child"}),
        # Twice, as one wait may be too short for a start on a busy machine.
        *[("session_wait", {"run_id": "<0.run.id>", "until": "attention"})] * 2,
    ]
    if decision:
        given = {"request_id": "<2.request.id>", "decision": decision}
        steps += [("request_resolve", given), ("session_wait", {"run_id": "<0.run.id>"})]
    return "\n".join([*(f"{call}{name} {json.dumps(given)}" for name, given in steps), "relay"])


@behaviour("steer")
async def test_a_message_joins_the_turn(case: Case) -> None:
    go = case.workspace / "go"
    async with case.client() as client:
        session = await case.session(client, **case.agent.unasked)
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
        session = await case.session(client)
        run_id = await send(client, session, "slow 1\nsay first")
        steered = await send(client, session, "say second", when_busy="steer")
        assert steered != run_id
        assert answer(await ended(client, run_id)) == "first"
        assert answer(await ended(client, steered)) == "second"
