"""What gemini alone does behind agentd. ``tests/agents`` has what it shares with the other agents.

A start of it takes three seconds of a processor, so the test does several things.
"""

from pathlib import Path

from gemini_server import GeminiServer, gemini_env
from opencode import THROUGH_A_GATEWAY, AcpGateway
from pictures import picture
from real_agents import required
from test_opencode import asking, ended, text_of, turn, until

pytestmark = THROUGH_A_GATEWAY

TOOL = "mcp agent_orchestrator.session_list {}\nrelay"


async def test_images_file_changes_denials_and_tools_work_in_one_process(
    tmp_path: Path, workspace: Path
) -> None:
    argv = [required("gemini"), "--acp"]
    with GeminiServer() as model:
        env = gemini_env(tmp_path / "home", model.port)
        gemini = AcpGateway(tmp_path, argv, env, name="gemini")
        try:
            await in_one_process(gemini, workspace, model)
        finally:
            gemini.stop()


async def in_one_process(gemini: AcpGateway, workspace: Path, model: GeminiServer) -> None:
    async with gemini.client() as client:
        session = await client.create_session(cwd=str(workspace), approvals="ask-human")
        shown = picture()
        sent = await client.send_message(session.id, "say seen", images=[shown])
        assert sent.run is not None
        assert text_of(await ended(client, sent.run.id)) == "seen"
        assert model.requests[-1].images == [shown]
        agents = gemini.agents()
        # Each run has its own token for our tools, about which it does not ask.
        for _ in range(2):
            assert session.id in text_of(await turn(client, session.id, TOOL))
        run_id, request = await asking(client, session.id, "shell touch never\nsay done")
        await client.resolve_request(request.id, option="deny_and_stop")
        stopped = await ended(client, run_id)
        assert stopped.error is not None
        assert stopped.error.code == "denied"
        file = workspace / "file.txt"
        run_id, request = await asking(client, session.id, f"add {file} one\nsay done")
        assert request.detail is not None
        change = {"path": str(file), "kind": "add", "diff": "one\n"}
        assert request.detail.get("changes") == [change], request
        await client.resolve_request(request.id, "approve")
        await ended(client, run_id)
        assert file.read_text() == "one\n"
        change_made = f"update {file} one -> two\nsay done"
        run_id, request = await asking(client, session.id, change_made)
        await client.resolve_request(request.id, "approve")
        await ended(client, run_id)
        assert file.read_text() == "two\n"
        # An answer that breaks off is asked for up to four times.
        broken = await turn(client, session.id, "say half\ndisconnect")
        assert broken.error is not None
        assert broken.error.code == "provider_error"
        # That turn, and one that is canceled in its answer, are taken out of its conversation.
        after = (await client.get_session(session.id)).last_seq
        sent = await client.send_message(session.id, "stream 3000 10 word")
        await until(client, session.id, "agent.message.delta", after)
        assert sent.run is not None
        await client.cancel_run(sent.run.id)
        assert (await ended(client, sent.run.id)).status == "canceled"
        assert text_of(await turn(client, session.id, "say on")) == "on"
        assert model.requests[-1].user_texts[-2:] == [change_made, "say on"]
        assert gemini.agents() == agents != []
        # It would wait for an answer to its question after a cancel.
        run_id, _ = await asking(client, session.id, "shell touch never\nsay unheard")
        await client.cancel_run(run_id)
        assert (await ended(client, run_id)).status == "canceled"
        assert text_of(await turn(client, session.id, "say last")) == "last"
        log = [event async for event in client.events(session.id)]
    assert model.requests[-1].user_texts[0] == "say seen"
    assert not (workspace / "never").exists()
    tools = [event.data for event in log if event.event_type == "tool.completed"]
    called = [(one["kind"], one["name"], one["status"]) for one in tools[:3]]
    assert called == [
        *[("mcp", "agent_orchestrator.session_list", "completed")] * 2,
        ("command", "shell", "declined"),
    ]
