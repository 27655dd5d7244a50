"""What the real agents ask, and what they do with each decision."""

import json
from pathlib import Path

import pytest
from behaviours import behaviour, instead
from cases import Case, answer, ended, log, question, said, send, turn

from agent_orchestrator import RunStatus
from agent_orchestrator.domain.errors import Conflict


@pytest.fixture
def file(case: Case) -> Path:
    """The file that is made by the command that is asked about."""
    return case.workspace / "ran"


def is_made(file: Path) -> bool:
    return file.exists()


def content(file: Path) -> str:
    return file.read_text()


def script(case: Case, file: Path) -> str:
    return f"{case.agent.asking} sh -c 'echo ran >> {file}'\nsay done"


@behaviour("allow")
async def test_an_approval_counts_once(case: Case, file: Path) -> None:
    async with case.client() as client:
        session = await case.session(client)
        for times in (1, 2):
            run_id = await send(client, session, script(case, file))
            asked = await question(client, run_id)
            assert asked.kind == "approval_request"
            assert asked.detail is not None
            assert asked.detail["type"] == "command"
            assert f"echo ran >> {file}" in asked.detail["command"]
            assert (await client.get_run(run_id)).status is RunStatus.WAITING
            assert is_made(file) is (times == 2)
            await client.resolve_request(asked.id, "approve")
            assert answer(await ended(client, run_id)) == "done"
            assert content(file) == "ran\n" * times


@behaviour("allow_session")
async def test_an_approval_for_the_session(case: Case, file: Path) -> None:
    async with case.client() as client:
        session = await case.session(client)
        run_id = await send(client, session, script(case, file))
        asked = await question(client, run_id)
        await client.resolve_request(asked.id, "approve", scope="session")
        assert answer(await ended(client, run_id)) == "done"
        assert await said(client, session, script(case, file)) == "done"
    assert content(file) == "ran\n" * 2


@behaviour("deny")
@pytest.mark.parametrize("words", [None, "Leave that alone"])
async def test_a_denial(case: Case, file: Path, words: str | None) -> None:
    async with case.client() as client:
        session = await case.session(client)
        run_id = await send(client, session, script(case, file))
        asked = await question(client, run_id)
        await client.resolve_request(asked.id, "deny", text=words)
        run = await ended(client, run_id)
        events = await log(client, session)
    assert run.status is RunStatus.COMPLETED, run.error
    assert not is_made(file)
    (tool,) = (event.data for event in events if event.event_type == "tool.completed")
    assert tool["status"] == "declined"
    assert len(case.requests) > 1
    assert words is None or words in json.dumps(case.requests[-1].body)


@behaviour("expiry")
async def test_what_nobody_decides(case: Case, file: Path) -> None:
    async with case.client() as client:
        session = await case.session(client, provider=case.agent.hurried)
        run = await turn(client, session, script(case, file))
        (asked,) = (await client.requests(session_id=session.id)).requests
    assert run.status is RunStatus.COMPLETED, run.error
    assert asked.status == "expired"
    assert not is_made(file)


@behaviour("late")
async def test_an_approval_after_a_restart(case: Case, file: Path) -> None:
    """The agent that asked has ended. The next one is told, and would have to ask again."""
    async with case.client() as client:
        session = await case.session(client)
        run_id = await send(client, session, script(case, file))
        asked = await question(client, run_id)
    await case.restart()
    async with case.client() as client:
        await client.resolve_request(asked.id, "approve")
        run = await ended(client, run_id)
        with pytest.raises(Conflict):
            await client.resolve_request(asked.id, "deny")
    assert run.status is RunStatus.COMPLETED, run.error
    assert run.attempt == 2
    assert f"echo ran >> {file}" in case.prompts[-1]
    assert case.prompts[-1] != script(case, file)
    assert not is_made(file)


@behaviour("parent")
@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_a_parent_decides(case: Case, file: Path, decision: str) -> None:
    call = case.agent.tool
    steps = [
        f"session_spawn {json.dumps({'task': script(case, file)})}",
        'session_wait {"run_id": "<0.run.id>", "until": "attention"}',
        f'request_resolve {{"request_id": "<1.request.id>", "decision": "{decision}"}}',
        'session_wait {"run_id": "<0.run.id>", "until": "terminal"}',
    ]
    async with case.client() as client:
        session = await case.session(client)
        run = await turn(client, session, "\n".join([*(f"{call}{one}" for one in steps), "relay"]))
        (child,) = (await client.get_tree(session.id)).children
        (asked,) = (await client.requests(session_id=child.session.id)).requests
    assert "done" in answer(run)
    assert (asked.decision, asked.decided_by) == (decision, run.id)
    assert is_made(file) is (decision == "approve")


@instead("allow", "allow_session", "deny", "expiry", "late", "parent")
async def test_what_would_be_asked_is_declined(case: Case, file: Path) -> None:
    async with case.client() as client:
        session = await case.session(client, sandbox="workspace-write")
        run = await turn(client, session, script(case, file))
        assert (await client.requests(session_id=session.id)).requests == ()
    assert run.status is RunStatus.COMPLETED, run.error
    assert not is_made(file)
