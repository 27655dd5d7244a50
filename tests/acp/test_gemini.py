"""The real gemini behind agentd. A start of it takes three seconds of a processor, so each test does several things."""

import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from gemini_server import GeminiServer, gemini_env
from model_server import acknowledgement
from opencode import PATIENCE_S, THROUGH_A_GATEWAY, AcpGateway
from pictures import picture
from real_agents import required
from test_opencode import asking, ended, text_of, turn, until

pytestmark = THROUGH_A_GATEWAY

PROMPTS = ("/help me", "  /quit", "-v", "!ls", "a\u2028b")
"""Texts that mean something else to some command lines."""

LASTS = f"302.{secrets.randbelow(10**9)}"
"""Seconds that no other command on this machine sleeps."""

Gateways = Callable[..., AcpGateway]


@pytest.fixture
def gemini_model() -> Iterator[GeminiServer]:
    with GeminiServer() as server:
        yield server


@pytest.fixture
def gemini_gateways(tmp_path: Path, gemini_model: GeminiServer) -> Iterator[Gateways]:
    """Make gateways with settings of the test's own; they end with it."""
    made: list[AcpGateway] = []
    argv = [required("gemini"), "--acp"]
    env = gemini_env(tmp_path / "home", gemini_model.port)

    def make(settings: str = "", *arguments: str) -> AcpGateway:
        directory = tmp_path / f"gateway-{len(made)}"
        directory.mkdir()
        made.append(AcpGateway(directory, argv, env, settings, arguments, name="gemini"))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def gemini(gemini_gateways: Gateways) -> AcpGateway:
    return gemini_gateways()


def sleepers(seconds: str) -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["cmdline", "status"])
        if one.info["cmdline"] == ["sleep", seconds] and one.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def test_turns_go_on_in_one_conversation_also_in_another_process(
    gemini: AcpGateway, workspace: Path, gemini_model: GeminiServer
) -> None:
    """Also within the minute in which it began, and after the agent was killed."""
    async with gemini.client() as client:
        session = await client.create_session(cwd=str(workspace))
        first = await turn(client, session.id, "reason of it\nusage 30 0 4\nsay first")
        assert text_of(await turn(client, session.id, "say second")) == "second"
        for agent in gemini.agents():
            agent.kill()
        third = await turn(client, session.id, "say third")
        assert gemini_model.requests[-1].user_texts == [
            "reason of it\nusage 30 0 4\nsay first",
            "say second",
            "say third",
        ]
        for prompt in PROMPTS:
            run = await turn(client, session.id, prompt)
            assert gemini_model.requests[-1].prompt.strip("\u200b") == prompt
            assert text_of(run) == acknowledgement(gemini_model.requests[-1].prompt)
        long = "x" * 900_000
        assert text_of(await turn(client, session.id, long)) == acknowledgement(long)
        big = await turn(client, session.id, f"big {2**19}")
        assert len(text_of(big)) == 2**19
        shown = picture()
        sent = await client.send_message(session.id, "say seen", images=[shown])
        assert sent.run is not None
        assert text_of(await ended(client, sent.run.id)) == "seen"
        assert gemini_model.requests[-1].images == [shown]
        # What was said before, and is repeated when it is loaded, is no part of this run.
        for agent in gemini.agents():
            agent.kill()
        last = await turn(client, session.id, "say last")
        log = [event async for event in client.events(session.id)]
        (status, *_) = (await client.status()).providers
    assert [text_of(first), text_of(third), text_of(last)] == ["first", "third", "last"]
    assert first.usage is not None
    assert (first.usage.input_tokens, first.usage.output_tokens) == (30, 4)
    assert first.thread_id == third.thread_id == last.thread_id is not None
    texts = [
        (event.event_type, event.data["text"].strip("*\n"))
        for event in log
        if event.event_type in ("agent.message", "agent.reasoning")
    ]
    assert texts[:4] == [
        ("agent.reasoning", "of it"),
        ("agent.message", "first"),
        ("agent.message", "second"),
        ("agent.message", "third"),
    ]
    assert texts[-2:] == [("agent.message", "seen"), ("agent.message", "last")]
    assert not [event for event in log if event.event_type == "run.error"]
    assert status.version == "0.61.0"


async def test_a_client_decides_what_the_agent_asks(
    gemini: AcpGateway, workspace: Path, gemini_model: GeminiServer
) -> None:
    async with gemini.client() as client:
        session = await client.create_session(cwd=str(workspace))
        # Allowed once: the same is asked again, though "always" is the first option of gemini.
        for _ in range(2):
            run_id, request = await asking(client, session.id, "shell touch once\nsay done")
            assert request.detail is not None
            assert request.detail["command"] == "touch once"
            assert not (workspace / "once").exists()
            await client.resolve_request(request.id, "approve")
            assert text_of(await ended(client, run_id)) == "done"
            (workspace / "once").unlink()
        # For the session: not asked again.
        run_id, request = await asking(client, session.id, "shell touch often\nsay done")
        await client.resolve_request(request.id, "approve", scope="session")
        await ended(client, run_id)
        (workspace / "often").unlink()
        assert text_of(await turn(client, session.id, "shell touch often\nsay done")) == "done"
        assert (workspace / "often").exists()
        # Denied: the model goes on in the same turn.
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, "deny")
        denied = await ended(client, run_id)
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, "deny", text="say something else")
        await ended(client, run_id)
        assert gemini_model.requests[-1].prompt.endswith("with this message: say something else")
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, option="deny_and_stop")
        stopped = await ended(client, run_id)
        assert not (workspace / "never").exists()
        # Files.
        file = workspace / "file.txt"
        run_id, request = await asking(client, session.id, f"add {file} one\nsay done")
        assert request.detail is not None
        change = {"path": str(file), "kind": "add", "diff": "one\n"}
        assert request.detail.get("changes") == [change], request
        await client.resolve_request(request.id, "approve")
        await ended(client, run_id)
        assert file.read_text() == "one\n"
        run_id, request = await asking(client, session.id, f"update {file} one -> two\nsay done")
        await client.resolve_request(request.id, "approve")
        await ended(client, run_id)
        assert file.read_text() == "two\n"
        log = [event async for event in client.events(session.id)]
    assert text_of(denied) == "done"
    assert stopped.error is not None
    assert stopped.error.code == "denied"
    changes = [event.data for event in log if event.event_type == "file.changed"]
    assert [one["status"] for one in changes] == ["completed", "completed"]
    assert changes[0]["changes"] == [change]
    assert "-one\n+two\n" in changes[1]["changes"][0]["diff"]
    commands = [event.data for event in log if event.event_type == "tool.completed"]
    assert [one["status"] for one in commands] == ["completed"] * 4 + ["declined"] * 3


async def test_a_run_that_is_stopped_leaves_nothing_and_the_next_goes_on(
    gemini: AcpGateway, workspace: Path, gemini_model: GeminiServer
) -> None:
    """In a text, in a command and at a question, and after the daemon was killed."""
    async with gemini.client() as client:
        session = await client.create_session(cwd=str(workspace), approvals="ask-human")
        first = await turn(client, session.id, "say first")
        sent = await client.send_message(session.id, "stream 3000 10 word")
        await until(client, session.id, "agent.message.delta")
        assert sent.run is not None
        await client.cancel_run(sent.run.id)
        assert (await ended(client, sent.run.id)).status == "canceled"
        run_id, _ = await asking(client, session.id, "shell touch never\nsay unheard")
        await client.cancel_run(run_id)
        assert (await ended(client, run_id)).status == "canceled"

        async def working() -> str:
            run_id, request = await asking(client, session.id, f"shell sleep {LASTS}\nsay unheard")
            await client.resolve_request(request.id, "approve")
            with anyio.fail_after(PATIENCE_S):
                while not sleepers(LASTS):
                    await anyio.sleep(0.05)
            return run_id

        run_id = await working()
        queued = await client.send_message(session.id, "say queued")
        await client.cancel_run(run_id)
        assert (await ended(client, run_id)).status == "canceled"
        assert sleepers(LASTS) == []
        assert queued.run is not None
        assert text_of(await ended(client, queued.run.id)) == "queued"
        assert not (workspace / "never").exists()
        await working()
    gemini.daemon.signal(signal.SIGKILL)
    gemini.daemon.wait()
    with anyio.fail_after(PATIENCE_S):
        while sleepers(LASTS):
            await anyio.sleep(0.05)
    gemini.start()
    async with gemini.client() as client:
        last = await client.send_message(session.id, "say last", when_busy="interrupt")
        assert last.run is not None
        run = await ended(client, last.run.id)
        assert text_of(run) == "last"
        assert run.thread_id == first.thread_id
    assert gemini_model.requests[-1].user_texts[0] == "say first"


async def test_an_agent_works_with_children_by_its_tools(
    gemini: AcpGateway, workspace: Path
) -> None:
    """Each run with its own token, in one process. No tool of ours is asked about."""
    script = (
        'mcp agent_orchestrator.session_spawn {"task": "say from the child"}\n'
        'mcp agent_orchestrator.session_wait {"run_id": "<0.run.id>"}\nrelay'
    )
    async with gemini.client() as client:
        session = await client.create_session(cwd=str(workspace))
        first = await turn(client, session.id, script)
        agents = {one.pid for one in gemini.agents()}
        second = await turn(client, session.id, "mcp agent_orchestrator.session_list {}\nrelay")
        assert {one.pid for one in gemini.agents()} <= agents
        tree = await client.get_tree(session.id)
        log = [event async for event in client.events(session.id)]
    assert "from the child" in text_of(first)
    assert tree.children[0].session.id in text_of(second)
    assert [child.runs[0].parent_run_id for child in tree.children] == [first.id]
    tools = [event.data for event in log if event.event_type == "tool.completed"]
    assert [(one["kind"], one["name"], one["status"]) for one in tools] == [
        ("mcp", "agent_orchestrator.session_spawn", "completed"),
        ("mcp", "agent_orchestrator.session_wait", "completed"),
        ("mcp", "agent_orchestrator.session_list", "completed"),
    ]
    assert not [event for event in log if event.event_type in ("request.created", "run.error")]


async def test_failures_have_codes(
    gemini: AcpGateway, workspace: Path, gemini_model: GeminiServer
) -> None:
    """gemini repeats what its model refuses for now (429, 500) without a word, for minutes."""
    async with gemini.client() as client:
        session = await client.create_session(cwd=str(workspace))

        async def failure(text: str) -> tuple[str, str]:
            run = await turn(client, session.id, text)
            assert run.error is not None, text
            return run.error.code, run.error.message

        assert await failure("http 400 a bad request") == ("provider_error", "a bad request")
        assert await failure("http 401 a wrong key") == ("auth_failed", "a wrong key")
        assert (await failure("say half\ndisconnect"))[0] == "provider_error"
        sent = await client.send_message(session.id, "http 429 slow down")
        assert sent.run is not None
        with anyio.fail_after(PATIENCE_S):
            while gemini_model.requests[-1].prompt != "http 429 slow down":
                await anyio.sleep(0.05)
        await client.cancel_run(sent.run.id)
        assert (await ended(client, sent.run.id)).status == "canceled"
        assert text_of(await turn(client, session.id, "say on")) == "on"
