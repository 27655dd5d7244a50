"""A person takes a session over in the agent's own program, and hands it back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import anyio
import attrs
import psutil
import pytest
from adapters import AGENTS, Agent
from behaviours import behaviour, instead
from cases import PATIENCE_S, Case, answer, ended, log, send, turn
from gateway import Daemon, by_command_line
from person import prepare_for_people, terminal
from real_agents import required
from serving import environment

from agent_orchestrator import Client, Run, Session
from agent_orchestrator.domain.errors import InvalidRequest

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.one_loop,
    pytest.mark.timeout(300),  # each starts a daemon, an agent and its program
]

_ALONE = {"codex": ("exec", "--skip-git-repo-check"), "claude": ("-p",)}
"""How each program answers one prompt and ends."""

_TAKEN: Final = [one for one in AGENTS if one.program in _ALONE]


def _each(agents: Iterable[Agent]) -> pytest.MarkDecorator:
    params = [pytest.param(one, id=one.name, marks=one.mark) for one in agents]
    return pytest.mark.parametrize("agent", params)


each_agent = _each(_TAKEN)
each_program = _each({one.program: one for one in reversed(_TAKEN)}.values())
"""With the first runner of each program: for what happens in the program and agentctl, whatever runs the next message."""


@attrs.frozen
class Place:
    """An agent with a home that a person and the daemon share."""

    case: Case
    variables: dict[str, str]
    program: str

    @property
    def env(self) -> dict[str, str]:
        return {**environment(), **self.variables}

    def agentctl(self, *arguments: str) -> list[str]:
        url = self.case.daemon.daemon.url
        return [sys.executable, "-m", "agentctl.main", "--url", url, *arguments]

    def attach(self, session: Session):
        """Attach in a shell, which stays the leader of the terminal if agentctl is killed."""
        command = self.agentctl("attach", session.id)
        shell = [
            "/bin/sh",
            "-c",
            '"$@"; code=$?; [ $code -lt 128 ] || sleep 300; exit $code',
            "sh",
            *command,
        ]
        return terminal(shell, self.env, self.case.workspace)

    def has(self, prompt: str) -> bool:
        return any(one.prompt.strip() == prompt for one in self.case.requests)


@pytest.fixture
def place(agent: Agent, tmp_path: Path) -> Iterator[Place]:
    program = required(agent.program)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    with ExitStack() as stack:
        models = stack.enter_context(agent.server())
        variables = dict(agent.prepare(tmp_path / "home", models.port))
        prepare_for_people(tmp_path / "home", workspace)
        daemon = Daemon(tmp_path)
        routing = f"[routing]\ndefault = {json.dumps(agent.name)}\n"
        daemon.configure(routing + agent.configuration(program, variables))
        daemon.start()
        yield Place(Case(agent, daemon, models, workspace, 0), variables, program)
        daemon.stop()


async def takeover_of(client: Client, session: Session) -> Run:
    """Wait until a person has the session, and return the run that holds it."""
    found: list[Run] = []

    async def look() -> bool:
        runs = (await client.list_runs(session_id=session.id)).runs
        found[:] = [run for run in runs if run.is_held]
        return bool(found)

    with anyio.fail_after(PATIENCE_S):
        while not await look():
            await anyio.sleep(0.05)
    return found[0]


@behaviour("takeover")
async def test_a_turn_in_the_agents_program_is_logged_and_known_to_the_next_run(
    place: Place,
) -> None:
    case = place.case
    async with case.client() as client:
        session = await case.session(client)
        await turn(client, session, "say begun-by-the-gateway")
        with place.attach(session) as person:
            held = await takeover_of(client, session)
            queued = await send(client, session, "say queued-meanwhile")
            await person.shows("begun-by-the-gateway")
            await person.say("say typed-by-hand", lambda: place.has("say typed-by-hand"))
            await person.shows("typed-by-hand")
            assert (await client.get_run(held.id)).is_held
            assert (await client.get_run(queued)).status == "queued"
            leave = "/exit" if case.agent.program == "claude" else "/quit"
            await person.say(leave, lambda: "turn recorded" in person.text)
            assert await person.ends() == 0
            assert "1 turn recorded" in person.text
        assert answer(await ended(client, queued)) == "queued-meanwhile"
        done = await client.get_run(held.id)
        events = [event for event in await log(client, session) if event.run_id == held.id]
    assert answer(done) == "typed-by-hand"
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens) == (100, 10)
    said = {event.event_type: event.data for event in events}
    assert said["user.message"]["text"].strip() == "say typed-by-hand"
    assert said["agent.message"]["text"] == "typed-by-hand"
    assert said["agent.message"]["recorded_at"].startswith("20")
    known = case.agent.texts(case.requests[-1])
    assert known[-1].strip() == "say queued-meanwhile"
    assert any(text.strip() == "say typed-by-hand" for text in known)


@instead("takeover")
async def test_an_agent_without_a_program_to_take_over_says_so(case: Case) -> None:
    problem = f"{case.agent.name} has no program whose conversations can be taken over"
    person = {"pid": os.getpid(), "process_start_id": "any"}
    async with case.client() as client:
        session = await case.session(client)
        for call in (
            client.attach_session(session.id, **person),
            client.adopt_session(provider=case.agent.name, thread_id="any"),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await call
            assert refused.value.details["fields"] == {"provider": problem}


@each_program
async def test_chat_hands_its_terminal_to_the_agents_program_and_continues_afterwards(
    place: Place,
) -> None:
    case = place.case
    leave = "/exit" if case.agent.program == "claude" else "/quit"
    async with case.client() as client:
        session = await case.session(client)
        await turn(client, session, "say begun-by-the-gateway")
        chat = place.agentctl("chat", "--session-id", session.id)
        with terminal(chat, place.env, case.workspace) as person:
            await person.shows("begun-by-the-gateway")
            person.write("/attach\r")
            await person.shows("is held until you leave")
            held = await takeover_of(client, session)
            await person.say("say typed-by-hand", lambda: place.has("say typed-by-hand"))
            await person.say(leave, lambda: "turn recorded" in person.text)
            assert answer(await ended(client, held.id)) == "typed-by-hand"
            after = person.text.rindex("turn recorded")
            await person.until(
                lambda: "typed-by-hand" in person.text[after:], "what was said in the program"
            )
            person.write("say back-in-the-chat\r")
            await person.until(lambda: place.has("say back-in-the-chat"), "the next message")
            person.write("/quit\r")
            assert await person.ends() == 0
        texts = case.agent.texts(case.requests[-1])
    assert any(text.strip() == "say typed-by-hand" for text in texts)


@each_program
async def test_a_takeover_lasts_until_the_program_ends_even_after_a_daemon_restart(
    place: Place,
) -> None:
    case = place.case
    async with case.client() as client:
        session = await case.session(client)
        await turn(client, session, "say begun-by-the-gateway")
        with place.attach(session) as person:
            held = await takeover_of(client, session)
            assert held.holder is not None
            program = psutil.Process(held.holder.pid)
            await person.shows("begun-by-the-gateway")
            agentctl = program.parent()
            assert agentctl is not None
            agentctl.kill()
            await anyio.to_thread.run_sync(case.daemon.kill)
            await anyio.to_thread.run_sync(case.daemon.start)
            async with case.client() as again:
                assert (await again.get_run(held.id)).is_held
                queued = await send(again, session, "say queued-meanwhile")
                assert program.is_running()
                assert (await again.get_run(queued)).status == "queued"
                program.kill()
                done = await ended(again, held.id)
                assert (done.status, answer(done)) == ("completed", "")
                assert answer(await ended(again, queued)) == "queued-meanwhile"


@each_agent
async def test_a_conversation_begun_in_the_program_becomes_a_session(place: Place) -> None:
    case = place.case
    command = [place.program, *_ALONE[case.agent.program], "say begun-by-hand"]
    await anyio.run_process(command, env=place.env, cwd=case.workspace, stdin=subprocess.DEVNULL)
    url = case.daemon.daemon.url
    named = ("adopt", case.agent.name, "--last", "--cwd", str(case.workspace))
    adopted = await by_command_line(url, *named, "--field", "run.session_id")
    assert adopted.returncode == 0, adopted
    async with case.client() as client:
        session = await client.get_session(adopted.stdout.strip())
        assert session.cwd == str(case.workspace)
        events = await log(client, session)
        said = [(e.event_type, e.data["text"]) for e in events if "text" in e.data]
        assert said == [("user.message", "say begun-by-hand"), ("agent.message", "begun-by-hand")]
        assert answer(await turn(client, session, "say continued")) == "continued"
    assert "say begun-by-hand" in [text.strip() for text in case.agent.texts(case.requests[-1])]
    again = await by_command_line(url, *named)
    assert again.returncode == 6
    assert session.id in again.stderr
