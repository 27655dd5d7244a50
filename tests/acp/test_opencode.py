"""What opencode alone does behind agentd. ``tests/agents`` has what it shares with the other agents.

A start of it takes six seconds of a processor, so each test does several things.
"""

import json
from pathlib import Path

import anyio
from chat_model import ChatModel, acknowledgement
from opencode import PATIENCE_S, THROUGH_A_GATEWAY, AcpGateway, AcpGateways
from opencode_home import opencode_env
from pictures import picture

from agent_orchestrator import Client, EnvPolicy, ProviderConfig, Routing, Run, open_embedded
from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.runners.acp.runner import AcpRunner
from agent_orchestrator.testing import ScriptedRunner

pytestmark = THROUGH_A_GATEWAY


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


async def test_images_file_changes_and_denials_work_in_one_process(
    gateway: AcpGateway, workspace: Path, model: ChatModel
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        shown = picture()
        sent = await client.send_message(session.id, "say seen", images=[shown])
        assert sent.run is not None
        assert text_of(await ended(client, sent.run.id)) == "seen"
        assert model.requests[-1].images == [shown]
        agents = gateway.agents()
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, option="deny_and_stop")
        run = await ended(client, run_id)
        assert run.error is not None
        assert run.error.code == "denied"
        assert not (workspace / "never").exists()
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
        assert gateway.agents() == agents != []
        # It is killed between two runs.
        for agent in agents:
            agent.kill()
        assert text_of(await turn(client, session.id, "say again")) == "again"
    changes = [event.data for event in log if event.event_type == "file.changed"]
    assert [one["status"] for one in changes] == ["completed", "completed"]
    assert changes[0]["changes"] == [change]
    assert changes[1]["changes"][0]["kind"] == "update"
    assert "-one\n+two\n" in changes[1]["changes"][0]["diff"]
    (command,) = (event.data for event in log if event.event_type == "tool.completed")
    assert (command["kind"], command["name"], command["status"]) == ("command", "shell", "declined")


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


async def test_a_question_is_answered_after_the_agent_was_stopped(
    gateways: AcpGateways, workspace: Path, model: ChatModel
) -> None:
    gateway = gateways("--park-after-s", "0", settings="idle_s = 0.0")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run_id, request = await asking(client, session.id, "shell touch made\nsay done")
        await until_parked(client, session.id)
        assert gateway.agents() == []
        await client.resolve_request(request.id, "approve")
        run = await ended(client, run_id)
        with anyio.fail_after(PATIENCE_S):
            while gateway.agents():  # it is idle, and so it is ended
                await anyio.sleep(0.05)
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


async def test_an_agent_works_with_children_in_an_embedded_client(
    tmp_path: Path, opencode: str, opencode_home: Path, workspace: Path, model: ChatModel
) -> None:
    """Its process keeps the tools in the next run, which has another server of them."""
    env = EnvPolicy(set=opencode_env(opencode_home, model.port))
    runner = AcpRunner(name="opencode", argv=[opencode, *AGENTS["opencode"].argv[1:]])
    providers = {
        "opencode": ProviderConfig(runner, "acp", env=env),
        "scripted": ProviderConfig(ScriptedRunner(), "scripted", open_to_agents=True),
    }
    spawn = (
        'mcp agent_orchestrator.session_spawn {"task": "say of the child", "provider": "scripted"}'
    )
    list_children = "mcp agent_orchestrator.session_list {}"
    async with open_embedded(
        tmp_path / "a.db", providers=providers, routing=Routing("opencode")
    ) as client:
        session = await client.create_session(cwd=str(workspace))
        runs = [
            await turn(client, session.id, f"{tool}\nsay done") for tool in (spawn, list_children)
        ]
        (child,) = (await client.get_tree(session.id)).children
        log = [event async for event in client.events(session.id)]
        (status, _) = (await client.status()).providers
    assert [text_of(run) for run in runs] == ["done", "done"]
    assert child.runs[0].parent_run_id == runs[0].id
    tools = [event.data for event in log if event.event_type == "tool.completed"]
    assert [(one["name"], one["status"]) for one in tools] == [
        ("agent_orchestrator.session_spawn", "completed"),
        ("agent_orchestrator.session_list", "completed"),
    ]
    assert child.session.id in json.dumps(tools[1]["output"])
    assert not [one for one in log if one.event_type in ("run.error", "request.created")]
    assert status.capabilities is not None
    assert status.capabilities.tools
