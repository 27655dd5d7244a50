"""What the real agents ask, and what they do with each decision."""

import json
from pathlib import Path

import pytest
from behaviours import behaviour, instead
from cases import Case, answer, ended, log, question, said, send, turn

from agent_orchestrator import Client, RunStatus, Session


@pytest.fixture
def file(case: Case) -> Path:
    """The file that is made by the command that is asked about."""
    return case.workspace / "ran"


def is_made(file: Path) -> bool:
    return file.exists()


def content(file: Path) -> str:
    return file.read_text()


def script(case: Case, file: Path, word: str = "ran") -> str:
    return f"{case.agent.asking} sh -c 'echo {word} >> {file}'\nsay done"


@behaviour("allow", "allow_session", "deny")
async def test_an_approval_counts_once_and_a_denial_reaches_the_agent(
    case: Case, file: Path
) -> None:
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
        await a_denial(case, client, session, file, None)
        await a_denial(case, client, session, file, "Leave that alone")
        run_id = await send(client, session, script(case, file))
        asked = await question(client, run_id)
        await client.resolve_request(asked.id, "approve", scope="session")
        assert answer(await ended(client, run_id)) == "done"
        assert await said(client, session, script(case, file)) == "done"
    assert content(file) == "ran\n" * 4


async def a_denial(
    case: Case, client: Client, session: Session, file: Path, words: str | None
) -> None:
    before, asked_before = len(await log(client, session)), len(case.requests)
    run_id = await send(client, session, script(case, file, "denied"))
    asked = await question(client, run_id)
    await client.resolve_request(asked.id, "deny", text=words)
    run = await ended(client, run_id)
    events = (await log(client, session))[before:]
    assert run.status is RunStatus.COMPLETED, run.error
    assert "denied" not in content(file)
    (tool,) = (event.data for event in events if event.event_type == "tool.completed")
    assert tool["status"] == "declined"
    assert len(case.requests) > asked_before + 1
    assert words is None or words in json.dumps(case.requests[-1].body)


@behaviour("expiry")
async def test_a_request_that_expires_is_declined(case: Case, file: Path) -> None:
    async with case.client() as client:
        session = await case.session(client, provider=case.agent.hurried)
        run = await turn(client, session, script(case, file))
        (asked,) = (await client.requests(session_id=session.id)).requests
    assert run.status is RunStatus.COMPLETED, run.error
    assert asked.status == "expired"
    assert not is_made(file)


@instead("allow", "allow_session", "deny", "expiry")
async def test_an_agent_that_cannot_ask_declines_instead(case: Case, file: Path) -> None:
    async with case.client() as client:
        session = await case.session(client, sandbox="workspace-write")
        run = await turn(client, session, script(case, file))
        assert (await client.requests(session_id=session.id)).requests == ()
    assert run.status is RunStatus.COMPLETED, run.error
    assert not is_made(file)
