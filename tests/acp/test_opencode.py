"""The real opencode behind agentd. A start of it takes six seconds of a processor, so each test does several things."""

import json
import signal
from pathlib import Path

import anyio
import psutil
from chat_model import ChatModel, acknowledgement
from opencode import PATIENCE_S, THROUGH_A_GATEWAY, AcpGateway, AcpGateways
from pictures import picture

from agent_orchestrator import Client, Run, RunStatus

pytestmark = THROUGH_A_GATEWAY

PROMPTS = ("/help me", "  /nonexistent", "-v", "@file.txt and !ls", "a\u2028b")
"""Texts that mean something else to some command lines."""


async def until(client: Client, session_id: str, event_type: str, after: int = 0) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with client.events(session_id, cursor=after, follow=True) as events:
            async for event in events:
                if event.event_type == event_type:
                    return


async def asking(client: Client, session_id: str, text: str):
    """Send a message, and return its run and the request on which it waits."""
    sent = await client.send_message(session_id, text)
    assert sent.run is not None
    asked = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S, until="attention")
    assert asked.request is not None, asked.run.error
    return sent.run.id, asked.request


async def ended(client: Client, run_id: str) -> Run:
    reply = await client.wait_run(run_id, timeout_s=PATIENCE_S)
    assert not reply.timed_out
    return reply.run


async def turn(client: Client, session_id: str, text: str) -> Run:
    sent = await client.send_message(session_id, text)
    assert sent.run is not None
    return await ended(client, sent.run.id)


def text_of(run: Run) -> str:
    assert run.result is not None, run.error
    return run.result.text


async def test_turns_go_on_in_one_conversation_and_one_process(
    gateway: AcpGateway, workspace: Path, model: ChatModel
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        first = await turn(client, session.id, "reason of it\nusage 30 0 4\nsay first")
        agents = gateway.agents()
        second = await turn(client, session.id, "say second")
        log = [event async for event in client.events(session.id)]
        for prompt in PROMPTS:
            run = await turn(client, session.id, prompt)
            assert model.requests[-1].prompt.strip("\u200b") == prompt
            assert text_of(run) == acknowledgement(model.requests[-1].prompt)
        long = "x" * 900_000
        assert text_of(await turn(client, session.id, long)) == acknowledgement(long)
        big = await turn(client, session.id, f"big {5 * 2**20}")
        assert len(text_of(big)) == 5 * 2**20
        shown = picture()
        sent = await client.send_message(session.id, "say seen", images=[shown])
        assert sent.run is not None
        assert text_of(await ended(client, sent.run.id)) == "seen"
        assert model.requests[-1].images == [shown]
        assert gateway.agents() == agents != []
        (status, *_) = (await client.status()).providers
    assert [text_of(first), text_of(second)] == ["first", "second"]
    assert first.usage is not None
    assert (first.usage.input_tokens, first.usage.output_tokens) == (30, 4)
    assert first.thread_id == second.thread_id is not None
    assert model.requests[1].user_texts == ["reason of it\nusage 30 0 4\nsay first", "say second"]
    texts = [
        (event.event_type, event.data["text"])
        for event in log
        if event.event_type in ("agent.message", "agent.reasoning")
    ]
    assert texts == [
        ("agent.reasoning", "of it"),
        ("agent.message", "first"),
        ("agent.message", "second"),
    ]
    assert status.version == "1.18.33"


async def test_a_client_decides_what_the_agent_asks(
    gateway: AcpGateway, workspace: Path, model: ChatModel
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        # Allowed once: the same is asked again.
        for _ in range(2):
            run_id, request = await asking(client, session.id, "shell touch once\nsay done")
            assert request.kind == "approval_request"
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
        # Denied: the agent is told, and goes on.
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, "deny")
        run = await ended(client, run_id)
        assert model.requests[-1].prompt == "Your request was denied."
        assert text_of(run) == acknowledgement("Your request was denied.")
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, "deny", text="say something else")
        await ended(client, run_id)
        assert model.requests[-1].prompt.endswith("with this message: say something else")
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, option="deny_and_stop")
        run = await ended(client, run_id)
        assert run.error is not None
        assert run.error.code == "denied"
        assert not (workspace / "never").exists()
        # Files.
        file = workspace / "file.txt"
        run_id, request = await asking(client, session.id, f"add {file} one\nsay done")
        assert request.detail is not None
        change = {"path": str(file), "kind": "add", "diff": "one\n"}
        assert request.detail["changes"] == [change]
        await client.resolve_request(request.id, "approve")
        await ended(client, run_id)
        assert file.read_text() == "one\n"
        run_id, request = await asking(client, session.id, f"update {file} one -> two\nsay done")
        await client.resolve_request(request.id, "approve")
        await ended(client, run_id)
        assert file.read_text() == "two\n"
        log = [event async for event in client.events(session.id)]
    changes = [event.data for event in log if event.event_type == "file.changed"]
    assert [one["status"] for one in changes] == ["completed", "completed"]
    assert changes[0]["changes"] == [change]
    assert changes[1]["changes"][0]["kind"] == "update"
    assert "-one\n+two\n" in changes[1]["changes"][0]["diff"]
    commands = [event.data for event in log if event.event_type == "tool.completed"]
    assert [(one["kind"], one["name"], one["status"]) for one in commands] == [
        *[("command", "shell", "completed")] * 4,
        *[("command", "shell", "declined")] * 3,
    ]
    assert commands[0]["exit_code"] == 0


async def test_a_run_that_is_stopped_leaves_nothing_and_the_next_goes_on(
    gateway: AcpGateway, workspace: Path, model: ChatModel
) -> None:
    """Also after the daemon or the agent was killed, and after a restart."""
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace), approvals="allow")
        first = await turn(client, session.id, "say first")

        async def working() -> str:
            after = (await client.get_session(session.id)).last_seq
            sent = await client.send_message(session.id, "shell sleep 301\nsay unheard")
            await until(client, session.id, "tool.started", after)
            assert sent.run is not None
            with anyio.fail_after(PATIENCE_S):
                while not sleepers():
                    await anyio.sleep(0.05)
            return sent.run.id

        run_id = await working()
        queued = await client.send_message(session.id, "say queued")
        await client.cancel_run(run_id)
        assert (await ended(client, run_id)).status is RunStatus.CANCELED
        assert sleepers() == []
        assert queued.run is not None
        assert text_of(await ended(client, queued.run.id)) == "queued"
        run_id = await working()
        last = await client.send_message(session.id, "say last", when_busy="interrupt")
        assert last.run is not None
        assert text_of(await ended(client, last.run.id)) == "last"
        assert sleepers() == []
        # The agent is killed between two runs, and in one.
        for agent in gateway.agents():
            agent.kill()
        assert text_of(await turn(client, session.id, "say again")) == "again"
        run_id = await working()
        for agent in gateway.agents():
            agent.kill()
        run = await ended(client, run_id)
        assert run.error is not None
        assert run.error.code == "agent_crashed"
        assert sleepers() == []
        run_id = await working()
    gateway.daemon.signal(signal.SIGKILL)
    gateway.daemon.wait()
    with anyio.fail_after(PATIENCE_S):
        while sleepers():
            await anyio.sleep(0.05)
    gateway.start()
    async with gateway.client() as client:
        recovered = await ended(client, run_id)
        assert recovered.status is RunStatus.COMPLETED, recovered.error
        assert recovered.thread_id == first.thread_id
    texts = model.requests[-1].user_texts
    assert texts[0] == "say first"
    assert [one.prompt for one in model.requests if one.step == 0].count(
        "shell sleep 301\nsay unheard"
    ) == 4


def sleepers() -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["cmdline", "status"])
        if one.info["cmdline"] == ["sleep", "301"] and one.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def test_an_agent_works_with_children_by_its_tools(
    gateway: AcpGateway, workspace: Path, model: ChatModel
) -> None:
    """Each run with its own token, in one process. No tool of ours is asked about."""
    script = (
        'mcp agent_orchestrator.session_spawn {"task": "say from the child"}\n'
        'mcp agent_orchestrator.session_wait {"run_id": "<0.run.id>"}\nrelay'
    )
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        first = await turn(client, session.id, script)
        second = await turn(client, session.id, "mcp agent_orchestrator.session_list {}\nrelay")
        assert len(gateway.agents()) == 2
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


async def test_a_child_does_not_take_permissions_from_its_directory(
    gateway: AcpGateway, workspace: Path
) -> None:
    """Its parent's agent may have written them."""
    allowed = {"agent": {"build": {"permission": {"bash": "allow"}}}}
    await anyio.Path(workspace / "opencode.json").write_text(json.dumps(allowed))
    spawn = 'mcp agent_orchestrator.session_spawn {"task": "shell touch child\\nsay done"}'
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        await turn(client, session.id, f"shell touch parent\n{spawn}\nsay done")
        tree = await client.get_tree(session.id)
        (run,) = tree.children[0].runs
        asked = await client.wait_run(run.id, timeout_s=PATIENCE_S, until="attention")
        assert asked.request is not None, asked.run
        await client.cancel_run(run.id)
    assert (workspace / "parent").exists()
    assert not (workspace / "child").exists()


async def test_what_goes_wrong_has_a_code(
    gateways: AcpGateways, workspace: Path, model: ChatModel
) -> None:
    gateway = gateways(settings="approval_timeout_s = 0.5\nidle_s = 0.0")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))

        async def code(text: str) -> tuple[str, str]:
            run = await turn(client, session.id, text)
            assert run.error is not None, model.requests[-1].prompt
            return run.error.code, run.error.message

        assert await code("http 401 a wrong key, unauthorized") == (
            "auth_failed",
            "a wrong key, unauthorized",
        )
        assert (await code("http 400 a bad request"))[0] == "provider_error"
        # Nobody answers. Its process was stopped between these runs, because it was idle.
        run = await turn(client, session.id, "shell touch never\nsay done")
        assert text_of(run) == acknowledgement("Your request was denied.")
        assert not (workspace / "never").exists()
        with anyio.fail_after(PATIENCE_S):
            while gateway.agents():
                await anyio.sleep(0.05)
        await anyio.Path(workspace).rmdir()
        assert (await code("say unheard"))[0] == "invalid_config"


async def test_a_question_is_answered_after_the_agent_was_stopped(
    gateways: AcpGateways, workspace: Path, model: ChatModel
) -> None:
    gateway = gateways("--park-after-s", "0")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run_id, request = await asking(client, session.id, "shell touch made\nsay done")
        await until_parked(client, session.id)
        assert gateway.agents() == []
        await client.resolve_request(request.id, "approve")
        run = await ended(client, run_id)
    told = model.requests[-1]
    assert run.attempt == 2
    assert text_of(run) == acknowledgement(told.prompt)
    assert told.user_texts[0] == "shell touch made\nsay done"
    assert "touch made" in json.dumps(told.prompt)
    assert not (workspace / "made").exists()


async def until_parked(client: Client, session_id: str) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with client.events(session_id, follow=True) as events:
            async for event in events:
                if event.event_type == "run.waiting" and event.data.get("parked"):
                    return
