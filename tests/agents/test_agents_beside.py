"""The agent's own program, used by hand on the conversation of a session while a run works in it."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import Process
from behaviours import behaviour, instead
from cases import Case, answer, ended, log, said, send, turn, until
from model_server import acknowledgement
from real_agents import required
from serving import environment

from agent_orchestrator import Client, Session

TEXT = "beside"
"""One word: ``opencode run`` puts others in quotes."""


@behaviour("exclusive")
async def test_the_agents_own_program_is_refused_the_conversation_of_a_run(case: Case) -> None:
    async with case.client() as client:
        session = await case.session(client)
        async with a_run(case, client, session), by_hand(case, client, session) as process:
            assert process.stderr is not None
            words = b"".join([piece async for piece in process.stderr])
            assert await process.wait() != 0
            assert b"active writer" in words
        assert TEXT not in await conversation(case, client, session)


@instead("exclusive")
async def test_the_agents_own_program_does_not_disturb_a_run(case: Case) -> None:
    async with case.client() as client:
        session = await case.session(client)
        async with a_run(case, client, session), by_hand(case, client, session) as process:
            await case.asked(TEXT)
            await until(lambda: case.has_stored(acknowledgement(TEXT)))
            if (answers := case.agent.completed_answers) is not None:
                (thread,) = (await client.get_session(session.id)).threads.values()
                # Our program would go on with an answer that the other one had not completed.
                await until(lambda: answers(case.home, thread) == 2)
                process.kill()
            await process.wait()
        # Claude Code's process has read the conversation before; these read it again for each turn.
        texts = await conversation(case, client, session)
        assert (TEXT in texts) is (case.agent.name in ("opencode", "gemini"))


@asynccontextmanager
async def a_run(case: Case, client: Client, session: Session) -> AsyncIterator[None]:
    """Have a run work in the session until the scope ends, and then expect its answer."""
    go = case.workspace / "go"
    await turn(client, session, "say first")
    script = f"wait {go}\nsay ours"
    run_id = await send(client, session, script)
    await case.asked(script)
    yield
    go.touch()
    assert answer(await ended(client, run_id)) == "ours"


async def conversation(case: Case, client: Client, session: Session) -> list[str]:
    """Return what the model then has. Expect that all of the session is there."""
    assert await said(client, session, "say last") == "last"
    events = await log(client, session)
    answers = [event.data["text"] for event in events if event.event_type == "agent.message"]
    assert answers == ["first", "ours", "last"]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    texts = case.agent.texts(case.requests[-1])
    own = [text.split("\n")[-1] for text in texts]
    assert [text for text in ("say first", "say ours", "say last") if text not in own] == []
    return texts


@asynccontextmanager
async def by_hand(case: Case, client: Client, session: Session) -> AsyncIterator[Process]:
    """Go on with the conversation of a session in the agent's own program."""
    (thread_id,) = (await client.get_session(session.id)).threads.values()
    argv = [one.format(thread=thread_id, text=TEXT) for one in case.agent.by_hand]
    async with await anyio.open_process(
        [required(case.agent.program), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if case.agent.can("exclusive") else subprocess.DEVNULL,
        cwd=case.workspace,
        env={**environment(), **case.variables},
    ) as process:
        with anyio.fail_after(120):
            yield process
