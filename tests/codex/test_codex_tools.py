"""Real codexes that work together through the tools, against the local model server."""

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import pytest
from gateway import PATIENCE_S, THROUGH_A_GATEWAY, Gateway, by_command_line, marked, turn
from model_server import ModelServer, acknowledgement, closed_port

from agent_orchestrator import Client, Run, RunStatus
from agent_orchestrator.domain.model import Request
from agent_orchestrator.operations.sessions import SessionTree

pytestmark = THROUGH_A_GATEWAY

Gateways = Callable[..., Gateway]

QUESTION = "May I delete build/ (it can be made again)?"


def tool(name: str, **arguments: Any) -> str:
    """Return the step of a script that uses a tool."""
    return f"mcp agent_orchestrator.session_{name} {json.dumps(arguments)}"


def asking(**more: Any) -> str:
    """Return the script of a child that asks, and says what it was told."""
    ask = tool("reply_parent", text=QUESTION, request_kind="approval_request", **more)
    return f"{ask}\nrelay"


def parent_of_two(asks: str, *middle: str, last: int) -> str:
    """Return the script of a parent of two: one child just works, the other one asks.

    :param middle: what the parent does between waiting for the first and for the end of the second.
    :param last: which of its calls the last wait is.
    """
    return "\n".join(
        [
            tool("spawn", task="shell echo working\nsay the first is done"),
            tool("spawn", task=asks),
            tool("wait", run_id="<0.run.id>", until="terminal"),
            *middle,
            tool("wait", run_id="<1.run.id>", until="terminal"),
            f"say A: <2.run.result.text> / B: <{last}.run.status>",
        ]
    )


async def pending(client: Client, count: int = 1) -> Sequence[Request]:
    """Wait until so many questions are open; return them."""
    with anyio.fail_after(PATIENCE_S):
        stream = client.events(follow=True)
        async with stream:
            async for _ in stream:
                found = (await client.requests(status="pending")).requests
                if len(found) >= count:
                    return found
    raise AssertionError


async def family(client: Client, session_id: str) -> tuple[Run, Run, Run]:
    """Return the ended runs of a parent of two, its own first."""
    tree = await client.get_tree(session_id)
    first, second = (child.runs[-1] for child in tree.children)
    return tree.runs[-1], first, second


async def agentctl(gateway: Gateway, *arguments: str) -> None:
    """Do what a person does: by the command line."""
    done = await by_command_line(gateway.daemon.url, *arguments)
    assert done.returncode == 0, (shlex.join(done.args), done.stderr)


async def test_a_parent_agent_answers_its_child(gateway: Gateway, workspace: Any) -> None:
    script = parent_of_two(
        asking(),
        tool("wait", run_id="<1.run.id>", until="attention"),
        'mcp agent_orchestrator.request_resolve {"request_id": "<3.request.id>", '
        '"decision": "approve", "text": "go ahead"}',
        last=5,
    )
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, script)
        parent, first, second = await family(client, session.id)
        (request,) = (await client.requests()).requests
        log = [event async for event in client.events(session.id)]
    assert parent.result is not None, parent.error
    assert parent.result.text == "A: the first is done / B: completed"
    assert (run.id, first.status) == (parent.id, RunStatus.COMPLETED)
    assert second.result is not None
    told = json.loads(second.result.text.partition("Output:\n")[2])
    assert (told["decision"], told["answer"], told["timed_out"]) == ("approve", "go ahead", False)
    assert (request.text, request.status, request.decided_by) == (QUESTION, "approved", parent.id)
    assert request.run_id == second.id
    types = [event.event_type for event in log]
    assert types.count("child.spawned") == types.count("child.finished") == 2
    assert types.count("request.created") == types.count("request.resolved") == 1


@pytest.mark.parametrize(
    ("command", "decision", "status"),
    [
        (["approve"], "approve", "approved"),
        (["deny"], "deny", "denied"),
        (["answer", "--text", "only the old part"], "answer", "answered"),
    ],
    ids=["approves", "denies", "answers"],
)
async def test_a_person_answers_the_child(
    gateway: Gateway, workspace: Any, command: list[str], decision: str, status: str
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, parent_of_two(asking(), last=3))
        assert sent.run is not None
        (request,) = await pending(client)
        asking_run = await client.get_run(request.run_id)
        assert (asking_run.status, asking_run.waiting_on) == (RunStatus.WAITING, request.id)
        await agentctl(gateway, "request", command[0], request.id, *command[1:])
        run = (await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)).run
        _, _, second = await family(client, session.id)
        decided = await client.get_request(request.id)
    assert run.result is not None, run.error
    assert run.result.text == "A: the first is done / B: completed"
    assert decided.status == status
    assert second.result is not None
    told = json.loads(second.result.text.partition("Output:\n")[2])
    assert told["decision"] == decision
    assert told.get("answer") == (command[2] if command[2:] else None)


async def test_a_question_nobody_answers_is_denied(gateway: Gateway, workspace: Any) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, parent_of_two(asking(expires_in_s=0.5), last=3))
        _, _, second = await family(client, session.id)
        (request,) = (await client.requests()).requests
    assert run.result is not None, run.error
    assert request.status == "expired"
    assert second.result is not None
    told = json.loads(second.result.text.partition("Output:\n")[2])
    assert (told["decision"], told["request"]["status"]) == ("deny", "expired")


async def test_a_child_is_cancelled_while_it_waits(gateway: Gateway, workspace: Any) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, parent_of_two(asking(), last=3))
        assert sent.run is not None
        (request,) = await pending(client)
        assert marked(request.run_id)
        await client.cancel_run(request.run_id)
        run = (await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)).run
        child = await client.get_run(request.run_id)
        closed = await client.get_request(request.id)
    assert run.result is not None, run.error
    assert run.result.text == "A: the first is done / B: canceled"
    assert (child.status, closed.status) == (RunStatus.CANCELED, "canceled")
    assert marked(child.id) == []


async def test_a_parent_is_cancelled_while_it_waits(gateway: Gateway, workspace: Any) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, parent_of_two(asking(), last=3))
        assert sent.run is not None
        (request,) = await pending(client)
        await client.cancel_run(sent.run.id)
        for run_id in (sent.run.id, request.run_id):
            run = (await client.wait_run(run_id, timeout_s=PATIENCE_S)).run
            assert run.status is RunStatus.CANCELED
            assert marked(run_id) == []
        assert (await client.get_request(request.id)).status == "canceled"


async def test_an_answer_after_a_restart_reaches_the_thread_once(
    gateway: Gateway, workspace: Any, models: ModelServer
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        spawned = await client.spawn(asking(), session_id=session.id)
        (request,) = await pending(client)
        thread_id = (await client.get_run(spawned.run.id)).thread_id
    gateway.stop()
    assert marked(spawned.run.id) == []
    gateway.start()
    async with gateway.client() as client:
        (still,) = (await client.requests(status="pending")).requests
        assert still.id == request.id
        assert (await client.get_run(spawned.run.id)).status is RunStatus.WAITING
        await agentctl(gateway, "request", "approve", request.id, "--text", "go ahead")
        run = (await client.wait_run(spawned.run.id, timeout_s=PATIENCE_S)).run
        messages = (await client.list_messages(spawned.session.id)).messages
    assert run.result is not None, run.error
    assert run.thread_id == thread_id
    answer = f"Your request was approved: {QUESTION}\n\ngo ahead"
    # The model says back what it was told last: the answer, and nothing else.
    assert run.result.text == acknowledgement(answer)
    assert [message.text for message in messages] == [asking(), answer]
    texts = models.requests[-1].user_texts
    assert [text for text in texts if "go ahead" in text] == [answer]
    assert models.requests[-1].thread_id == thread_id


async def test_a_wait_that_timed_out_can_be_continued(gateway: Gateway, workspace: Any) -> None:
    script = "\n".join(
        [
            tool("reply_parent", text=QUESTION, request_kind="approval_request", timeout_s=0.2),
            tool("reply_parent", request_id="<0.request.id>"),
            "say first <0.decision>, then <1.decision>",
        ]
    )
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        spawned = await client.spawn(script, session_id=session.id)
        with anyio.fail_after(PATIENCE_S):
            async with client.events(spawned.session.id, follow=True) as events:
                ended = 0
                async for event in events:
                    if event.event_type == "tool.started":
                        ended += 1
                    if ended == 2:  # its second call is under way
                        break
        (request,) = await pending(client)
        await client.resolve_request(request.id, "approve")
        run = (await client.wait_run(spawned.run.id, timeout_s=PATIENCE_S)).run
        assert run.result is not None, run.error
        assert run.result.text == "first None, then approve"
        assert len((await client.requests()).requests) == 1


@pytest.mark.parametrize("sandbox", ["read-only", "workspace-write"])
async def test_a_sandboxed_agent_has_the_tools(
    gateways: Gateways, workspace: Any, sandbox: str
) -> None:
    async with gateways(sandbox=sandbox).client() as client:
        session = await client.create_session(cwd=str(workspace))
        script = f"{tool('list')}\nsay I am <0.session.id>"
        run = await turn(client, session.id, script)
    assert run.result is not None, run.error
    assert run.result.text == f"I am {session.id}"


async def test_a_parent_and_two_children_need_one_worker_only(
    gateways: Gateways, workspace: Any
) -> None:
    script = parent_of_two(
        asking(),
        tool("wait", run_id="<1.run.id>", until="attention"),
        'mcp agent_orchestrator.request_resolve {"request_id": "<3.request.id>", '
        '"decision": "deny"}',
        last=5,
    )
    async with gateways("--max-concurrency", "1").client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, script)
        _, _, second = await family(client, session.id)
    assert run.result is not None, run.error
    assert run.result.text == "A: the first is done / B: completed"
    assert second.result is not None
    assert json.loads(second.result.text.partition("Output:\n")[2])["decision"] == "deny"


async def test_the_users_proxy_does_not_see_the_token(gateways: Gateways, workspace: Any) -> None:
    with closed_port() as port:
        proxy = f"http://127.0.0.1:{port}"
        gateway = gateways(HTTP_PROXY=proxy, http_proxy=proxy, NO_PROXY="example.org", no_proxy="")
        async with gateway.client() as client:
            session = await client.create_session(cwd=str(workspace))
            run = await turn(client, session.id, f"{tool('list')}\nsay <0.session.id>")
    assert run.result is not None, run.error
    assert run.result.text == session.id


@pytest.mark.parametrize("tools", ["true", "false"])
async def test_the_tools_can_be_switched_off(
    gateways: Gateways, workspace: Any, models: ModelServer, tools: str
) -> None:
    async with gateways(settings=f"tools = {tools}").client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, "say hi")
        diagnosis = (await client.diagnose_run(run.id)).diagnostics
    assert run.status is RunStatus.COMPLETED, run.error
    # Codex 0.169 names the server to this model; its tools are to be searched for.
    (request,) = models.requests
    assert ("mcp__agent_orchestrator" in json.dumps(request.body)) == (tools == "true")
    assert diagnosis.codex_invocation is not None
    argv = " ".join(diagnosis.codex_invocation.argv)
    assert ("mcp_servers.agent_orchestrator.required=true" in argv) == (tools == "true")
    assert "art_" not in argv


async def test_a_parent_and_its_children_go_on_after_a_restart(
    gateways: Gateways, workspace: Any, models: ModelServer
) -> None:
    """A parent and two children are at work when the daemon is stopped; one child waits."""
    started, ready = workspace / "started", workspace / "ready"
    wake = {"notify_parent": "wake"}
    working = f"shell touch {started}; while [ ! -e {ready} ]; do sleep 0.05; done\nsay worked"
    script = "\n".join(
        [
            tool("spawn", task=working, **wake),
            tool("spawn", task=asking(), **wake),
            tool("wait", run_ids=["<0.run.id>", "<1.run.id>"], until="terminal"),
            "say never said: the daemon is stopped before",
        ]
    )
    gateway = gateways("--grace-s", "0")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, script)
        assert sent.run is not None
        (request,) = await pending(client)
        with anyio.fail_after(PATIENCE_S):
            while not started.exists():
                await anyio.sleep(0.02)
        tree = await client.get_tree(session.id)
        parent = tree.runs[-1]
        worker, asker = (child.runs[-1] for child in tree.children)
        assert [parent.status, worker.status, asker.status] == ["running", "running", "waiting"]

    def heard(thread_id: str | None, text: str) -> int:
        """Return how often an agent's conversation holds a text in the end."""
        (*_, last) = (one for one in models.requests if one.thread_id == thread_id)
        return sum(told.count(text) for told in last.user_texts)

    def heard_of(child: SessionTree) -> int:
        return heard(parent.thread_id, f"Child session {child.session.id} completed")

    gateway.stop()
    assert [marked(run.id) for run in (parent, worker, asker)] == [[], [], []]
    gateway.start()
    async with gateway.client() as client:
        assert (await client.get_request(request.id)).status == "pending"
        assert (await client.get_run(asker.id)).status is RunStatus.WAITING
        await agentctl(gateway, "request", "approve", request.id, "--text", "go ahead")
        ready.touch()
        ended = {
            run.id: (await client.wait_run(run.id, timeout_s=PATIENCE_S)).run
            for run in (worker, asker, parent)
        }
        with anyio.fail_after(PATIENCE_S):
            async with client.events(session.id, follow=True) as events:
                async for event in events:  # until its agent has had to do with both
                    if event.event_type == "run.completed" and all(map(heard_of, tree.children)):
                        break
        log = [event async for event in client.events(session.id)]
        left = (await client.requests(status="pending")).requests
    answer = f"Your request was approved: {QUESTION}\n\ngo ahead"
    assert {run.status for run in ended.values()} == {RunStatus.COMPLETED}
    assert ended[asker.id].result is not None
    assert ended[asker.id].result.text == acknowledgement(answer)
    assert ended[asker.id].thread_id == asker.thread_id
    assert left == ()
    types = [event.event_type for event in log]
    assert (types.count("child.finished"), types.count("request.resolved")) == (2, 1)
    assert heard(asker.thread_id, answer) == 1
    assert list(map(heard_of, tree.children)) == [1, 1]
