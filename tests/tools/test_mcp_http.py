"""/mcp as a client sees it: the protocol, access, and calls that are held."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import jsonschema
import pytest
from calling import ADMIN, Standing, call, refused, standing, use
from mcp.shared.exceptions import MCPError
from serving import until

from agent_orchestrator.wire import sse

pytestmark = pytest.mark.anyio

NAMES = [
    "session_spawn",
    "session_send",
    "session_wait",
    "session_reply_parent",
    "session_list",
    "request_resolve",
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("mode", ["legacy", "auto"], ids=["handshake", "newest"])
async def test_client_of_the_mcp_package_lists_and_calls_the_tools(
    agents: Standing, mode: str
) -> None:
    run_id = await agents.start()
    async with agents.tools(run_id, mode=mode) as tools:
        assert tools.server_info.name == "agent-orchestrator"
        assert tools.server_info.version == "0.0-test"
        listed = (await tools.list_tools()).tools
        assert [tool.name for tool in listed] == NAMES
        for tool in listed:
            jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            assert len(tool.description or "") > 80
            for schema in tool.input_schema["properties"].values():
                assert schema["description"]
                assert isinstance(schema["type"], str)
        schemas = {tool.name: tool.input_schema["properties"] for tool in listed}
        for name, argument, end in [
            ("session_wait", "timeout_s", "call again. Default: 50."),
            ("session_reply_parent", "wait", "answered. Default: true."),
            ("session_reply_parent", "expires_in_s", "as denied. Default: 3600."),
            ("session_send", "when_busy", "an error. Default: queue."),
        ]:
            assert schemas[name][argument]["description"].endswith(end)
        assert "session_reply_parent informs or asks" in (tools.instructions or "")[:250]
        result = await tools.call_tool("session_list", {})
        assert json.loads(result.content[0].text) == result.structured_content
        assert result.structured_content["children"] == []
        with pytest.raises(MCPError, match="unknown tool 'session_kill'"):
            await tools.call_tool("session_kill", {})


async def test_other_methods_are_refused_and_ping_is_answered(agents: Standing) -> None:
    run_id = await agents.start()
    http, token = agents.server.client, {"Authorization": f"Bearer {agents.token(run_id)}"}
    for method in ("GET", "DELETE", "PUT"):
        answer = await http.request(method, "/mcp", headers=token)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "OPTIONS, POST")
    ping = {"jsonrpc": "2.0", "id": 7, "method": "ping"}
    assert (await agents.send(run_id, ping)).json() == {"jsonrpc": "2.0", "id": 7, "result": {}}
    unknown = await agents.send(run_id, ping | {"method": "prompts/list"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (200, -32601)
    noted = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    accepted = await agents.send(run_id, noted)
    assert (accepted.status_code, accepted.content) == (202, b"")


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": 1, "method": "ping"},
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": None, "method": "ping"},
        {"jsonrpc": "2.0", "id": {}, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": 5},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]},
    ],
)
async def test_invalid_jsonrpc_message_is_refused(agents: Standing, message: object) -> None:
    answer = await agents.send(await agents.start(), message)
    assert answer.status_code == 400
    error = answer.json()
    assert (error["jsonrpc"], error["id"], error["error"]["code"]) == ("2.0", None, -32600)


@pytest.mark.parametrize("accepted", ["application/json", "application/json, text/event-stream"])
@pytest.mark.parametrize("name", ["id", "method"])
async def test_message_whose_answer_could_not_be_sent_is_refused_before_it_has_an_effect(
    agents: Standing, name: str, accepted: str
) -> None:
    run_id = await agents.start()
    message = call("session_spawn", {"task": "work"}) | {name: "\ud800"}
    answer = await agents.server.client.post(
        "/mcp",
        content=json.dumps(message),
        headers={
            "Authorization": f"Bearer {agents.token(run_id)}",
            "Content-Type": "application/json",
            "Accept": accepted,
        },
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32600)
    listed = await agents.server.client.get("/sessions")
    assert len(listed.json()["sessions"]) == 1  # no child


async def test_invalid_bodies_and_query_parameters_are_refused(agents: Standing) -> None:
    run_id = await agents.start()
    token = {"Authorization": f"Bearer {agents.token(run_id)}"}
    http = agents.server.client
    for content, status in [(b"[]", 400), (b"{", 400), (b'{"a":1,"a":2}', 400), (b"\xff", 400)]:
        headers = token | {"Content-Type": "application/json"}
        answer = await http.post("/mcp", content=content, headers=headers)
        assert answer.status_code == status
    answer = await http.post("/mcp", content=b"{}", headers=token | {"Content-Type": "text/plain"})
    assert answer.status_code == 415
    for query in ("hold_s=-1", "hold_s=1e3", "hold_s=86401", "hold_s=1&hold_s=2", "wait=1"):
        answer = await agents.send(run_id, {}, params=query)
        assert answer.json()["error"]["code"] == "invalid_request", query
    strange = await agents.send(
        run_id,
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        headers={"MCP-Protocol-Version": "2031-01-01"},
    )
    assert (strange.status_code, strange.json()["error"]["code"]) == (400, -32602)


async def test_only_the_token_of_an_active_run_is_accepted(agents: Standing) -> None:
    run_id = await agents.start()
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    admin = await agents.send(None, ping)
    assert (admin.status_code, admin.json()["error"]["code"]) == (403, "forbidden")
    assert "AGENTCTL_AUTH_TOKEN" in admin.json()["error"]["message"]
    for bearer in ("Bearer nobody", "Bearer art_nobody", f"Basic {ADMIN}"):
        answer = await agents.send(None, ping, headers={"Authorization": bearer})
        assert answer.status_code == 401
    web = await agents.send(run_id, ping, headers={"Origin": "https://evil.example"})
    assert web.status_code == 403
    assert (await agents.send(run_id, ping, headers={"Host": "evil.example"})).status_code == 421
    assert (await agents.send(run_id, ping)).status_code == 200
    await agents.end(run_id)
    assert (await agents.send(run_id, ping)).status_code == 403


async def test_invalid_tool_call_names_every_bad_argument(agents: Standing) -> None:
    async with agents.tools(await agents.start()) as tools:
        for name, arguments, bad in [
            ("session_spawn", {}, {"task"}),
            (
                "session_spawn",
                {"task": " ", "cwd": "x", "run_id": "run_1"},
                {"task", "cwd", "run_id"},
            ),
            (
                "session_spawn",
                {"task": "x", "effort": "High", "output_schema": []},
                {"effort", "output_schema"},
            ),
            # The runner of these agents takes no options.
            ("session_spawn", {"task": "x", "model": "m", "effort": "low"}, {"model", "effort"}),
            ("session_wait", {}, {"run_id"}),
            ("session_wait", {"run_id": "-rf"}, {"run_id"}),
            ("session_wait", {"run_ids": ["run_1", "../x"]}, {"run_ids"}),
            ("session_wait", {"run_ids": ["r" * 129]}, {"run_ids"}),
            ("session_send", {"session_id": "-x", "text": "x"}, {"session_id"}),
            ("request_resolve", {"request_id": "-x", "decision": "deny"}, {"request_id"}),
            ("session_wait", {"run_ids": [f"run_{n}" for n in range(33)]}, {"run_ids"}),
            (
                "session_wait",
                {"run_id": "run_1", "timeout_s": "9", "until": "x"},
                {"timeout_s", "until"},
            ),
            ("session_reply_parent", {}, {"text"}),
            ("session_reply_parent", {"text": "x", "options": ["a"]}, {"options"}),
            ("session_reply_parent", {"text": "x", "request_id": "req_1"}, {"request_id"}),
            ("request_resolve", {"request_id": "req_1", "decision": "yes"}, {"decision"}),
        ]:
            error = await refused(tools, name, **arguments)
            assert error["code"] == "invalid_request"
            assert set(error["details"]["fields"]) == bad, (name, arguments)


async def test_tool_errors_have_the_codes_of_the_api(agents: Standing) -> None:
    run_id = await agents.start()
    async with agents.tools(run_id) as tools:
        error = await refused(tools, "session_wait", run_id="run_nobody")
        assert error["code"] == "not_found"
        error = await refused(tools, "session_wait", run_ids=["run_nobody", "run_nothing"])
        assert error["code"] == "not_found"
        error = await refused(tools, "session_wait", run_id=run_id)
        assert "your own run" in error["message"]
        error = await refused(tools, "session_reply_parent", text="hello")
        assert error["code"] == "conflict"
        assert error["message"].endswith("has no parent")
        for _ in range(16):
            await use(tools, "session_spawn", task="work", provider="forever")
        error = await refused(tools, "session_spawn", task="work")
        assert (error["code"], error["details"]["limit"]) == ("conflict", "children")


# --- what the tools do ------------------------------------------------------------------------


async def test_child_can_be_spawned_messaged_and_waited_for(agents: Standing) -> None:
    async with agents.family() as (above, parent, below, child):
        waited = await use(above, "session_wait", run_id=child, timeout_s=0)
        assert waited["timed_out"] is True
        assert "call session_wait again" in waited["next"]
        assert [run["status"] for run in waited["runs"]] == ["running"]
        listed = await use(above, "session_list")
        assert [one["run"]["id"] for one in listed["children"]] == [child]
        session_id = listed["children"][0]["session"]["id"]
        sent = await use(above, "session_send", session_id=session_id, text="and then?")
        reply = await use(below, "session_reply_parent", text="halfway")
        assert reply == {"parent_session_id": listed["session"]["id"], "request": None}
        await agents.end(child, "all of it")
        waited = await use(above, "session_wait", run_id=child)
        assert waited["run"]["result"] == {"text": "all of it"}
        next_ = await agents.at_work(sent["run"]["id"])
        await agents.end(next_)
        await agents.end(parent)


async def test_session_wait_returns_the_first_of_several_runs_that_ends(agents: Standing) -> None:
    parent = await agents.start()
    async with agents.tools(parent) as tools:
        ids = []
        for _ in range(2):
            spawned = await use(tools, "session_spawn", task="work")
            ids.append(await agents.at_work(spawned["run"]["id"]))
        first, second = ids
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agents.end, second)
            waited = await use(tools, "session_wait", run_ids=ids)
        assert (waited["run"]["id"], waited["still_waiting_for"]) == (second, [first])
        waited = await use(tools, "session_wait", run_id=first, run_ids=[first], timeout_s=0)
        assert [run["id"] for run in waited["runs"]] == [first]


async def test_parent_answers_the_question_of_its_child(agents: Standing) -> None:
    answers: list[dict] = []
    async with agents.family() as (above, _parent, below, child):

        async def ask() -> None:
            more = {"detail": {"path": "build"}, "options": ["all", "old"]}
            reply = await use(
                below, "session_reply_parent", text="which?", request_kind="input_request", **more
            )
            answers.append(reply)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            waited = await use(above, "session_wait", run_id=child)
            request = waited["request"]
            assert request["text"] == "which?"
            assert [(one["id"], one["kind"]) for one in request["options"]] == [
                ("all", "answer"),
                ("old", "answer"),
            ]
            assert request["detail"] == {"path": "build"}
            assert request["id"] in waited["next"]
            assert waited["still_waiting_for"] == [child]
            listed = await use(above, "session_list")
            assert listed["children"][0]["request"]["id"] == request["id"]
            decide = {"request_id": request["id"], "option": "old"}
            assert (await use(above, "request_resolve", **decide))["request"][
                "status"
            ] == "answered"
        (reply,) = answers
        assert (reply["decision"], reply["answer"], reply["timed_out"]) == ("answer", "old", False)
        error = await refused(above, "request_resolve", request_id=request["id"], decision="deny")
        assert error["code"] == "already_resolved"


async def test_session_wait_ignores_questions_left_to_a_person(agents: Standing) -> None:
    question = {"text": "which?", "request_kind": "input_request", "timeout_s": 0}
    async with agents.family() as (above, _, below, child):
        first = (await use(below, "session_reply_parent", **question))["request"]["id"]
        waited = await use(above, "session_wait", run_id=child)
        assert waited["request"]["id"] == first
        assert f'session_wait with ignore ["{first}"]' in waited["next"]
        left = await use(above, "session_wait", run_id=child, ignore=[first], timeout_s=0)
        assert left["timed_out"] is True
        reply = await use(below, "session_reply_parent", **question | {"text": "and which?"})
        second = reply["request"]["id"]
        waited = await use(above, "session_wait", run_id=child, ignore=[first])
        assert waited["request"]["id"] == second
        assert f'session_wait with ignore ["{first}","{second}"]' in waited["next"]
        person = {"decision": "answer", "text": "this"}
        for request_id in (first, second):
            await agents.server.client.post(f"/requests/{request_id}/resolve", json=person)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agents.end, child, "done with this")
            waited = await use(above, "session_wait", run_id=child, ignore=[first, second])
        assert waited["run"]["result"] == {"text": "done with this"}


async def test_limits_of_a_child_may_be_lower_than_its_parents(agents: Standing) -> None:
    parent = await agents.start()
    async with agents.tools(parent) as above:
        spawned = await use(above, "session_spawn", task="alone", max_depth=0)
        child = await agents.at_work(spawned["run"]["id"])
        async with agents.tools(child) as below:
            error = await refused(below, "session_spawn", task="x")
        assert (error["code"], error["details"]) == ("forbidden", {"limit": "depth", "most": 0})
        error = await refused(above, "session_spawn", task="x", max_depth=5)
        assert error["details"]["fields"] == {
            "max_depth": "must be at most 4, the limit that its parent passes on"
        }


async def test_repeated_question_continues_the_open_request(agents: Standing) -> None:
    question = {"text": "May I?", "request_kind": "approval_request"}
    async with agents.family() as (above, _, below, _child):
        first = await use(below, "session_reply_parent", **question, timeout_s=0)
        assert (first["timed_out"], first["decision"]) == (True, None)
        request_id = first["request"]["id"]
        again = await use(below, "session_reply_parent", **question, timeout_s=0)
        assert again["request"]["id"] == request_id
        again = await use(below, "session_reply_parent", request_id=request_id, timeout_s=0)
        assert again["timed_out"] is True
        await use(above, "request_resolve", request_id=request_id, decision="approve")
        # Resolved between two calls: the same text is still the same request,
        reply = await use(below, "session_reply_parent", **question)
        assert (reply["request"]["id"], reply["decision"]) == (request_id, "approve")
        # and a new one after the agent got the decision: an approval holds once.
        new = await use(below, "session_reply_parent", **question, timeout_s=0)
        assert new["request"]["id"] != request_id
        assert new["decision"] is None


async def test_repeated_question_gets_the_answer_after_a_broken_connection(
    agents: Standing,
) -> None:
    question = {"text": "May I?", "request_kind": "approval_request"}
    async with agents.family() as (above, _, below, child):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agents.send, child, call("session_reply_parent", question))
            waited = await use(above, "session_wait", run_id=child)
            tasks.cancel_scope.cancel()
        request_id = waited["request"]["id"]
        await use(above, "request_resolve", request_id=request_id, decision="deny", text="no")
        reply = await use(below, "session_reply_parent", **question)
        assert (reply["request"]["id"], reply["decision"], reply["answer"]) == (
            request_id,
            "deny",
            "no",
        )


async def test_identical_concurrent_questions_open_one_request(agents: Standing) -> None:
    question = {"text": "May I?", "request_kind": "approval_request", "timeout_s": 0}
    asked: list[str] = []
    async with agents.family() as (_, _, below, _):

        async def ask() -> None:
            reply = await use(below, "session_reply_parent", **question)
            asked.append(reply["request"]["id"])

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
        assert len(asked) == 8
        assert len(set(asked)) == 1


async def test_question_can_be_asked_without_waiting(agents: Standing) -> None:
    question = {"text": "May I?", "request_kind": "approval_request"}
    async with agents.family() as (above, _, below, child):
        asked = await use(below, "session_reply_parent", **question, wait=False)
        run = (await agents.server.client.get(f"/runs/{child}")).json()["run"]
        assert (asked["decision"], run["status"]) == (None, "running")
        request_id = asked["request"]["id"]
        await use(above, "request_resolve", request_id=request_id, decision="approve")
        reply = await use(below, "session_reply_parent", request_id=request_id)
        assert reply["decision"] == "approve"


async def test_tools_reach_only_descendants_of_the_agent(agents: Standing) -> None:
    question = {"text": "May I?", "request_kind": "approval_request", "timeout_s": 0}
    async with agents.family() as (above, parent, below, _):
        asked = await use(below, "session_reply_parent", **question)
        request_id = asked["request"]["id"]
        resolve = {"request_id": request_id, "decision": "approve"}
        spawned = await use(above, "session_spawn", task="work")
        sibling = await agents.at_work(spawned["run"]["id"])
        home = (await use(above, "session_list"))["session"]["id"]
        before = await agents.server.event_count()
        error = await refused(below, "request_resolve", **resolve)
        assert error["code"] == "forbidden"
        for name, arguments in [
            ("session_wait", {"run_id": parent}),
            ("session_wait", {"run_id": sibling}),
            ("session_send", {"session_id": home, "text": "x"}),
            ("session_send", {"session_id": spawned["session"]["id"], "text": "x"}),
        ]:
            assert (await refused(below, name, **arguments))["code"] == "not_found", name
        async with agents.tools(sibling) as beside:
            assert (await refused(beside, "request_resolve", **resolve))["code"] == "not_found"
            error = await refused(beside, "session_reply_parent", request_id=request_id)
            assert error["code"] == "not_found"
        assert await agents.server.event_count() == before
        await use(above, "request_resolve", **resolve)


# --- calls that are held ----------------------------------------------------------------------


@pytest.fixture
async def talkative(tmp_path: Path) -> AsyncIterator[Standing]:
    """Agents at a server that sends keep-alive comments often."""
    async with standing(tmp_path, keepalive_s=0.05) as there:
        yield there


def listeners(agents: Standing, run_id: str) -> int:
    """Return the number of subscribers to a run, including its worker."""
    return len(agents.server.engine.core.notifier._waiters.get(f"run:{run_id}", ()))


async def test_held_call_sends_keep_alive_comments(talkative: Standing) -> None:
    async with talkative.family() as (_, parent, _, child):
        request = talkative.post(parent, call("session_wait", {"run_id": child}, 42))
        response = await talkative.server.client.send(request, stream=True)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        decoder, comments, frames = sse.Decoder(), 0, []
        with anyio.fail_after(60):
            async for chunk in response.aiter_raw():
                for frame in decoder.feed(chunk):
                    comments += bool(frame.comment)
                    frames += [frame] if frame.data else []
                if comments >= 3 and child not in talkative._ends:
                    talkative._ends[child] = "at last"
                    talkative._tell()
        (frame,) = frames
        answer = json.loads(frame.data)
        assert (frame.event, answer["id"]) == ("message", 42)
        assert answer["result"]["structuredContent"]["run"]["result"] == {"text": "at last"}


async def test_held_call_ends_when_its_client_disconnects(talkative: Standing) -> None:
    async with talkative.family() as (_, parent, _, child):
        before = listeners(talkative, child)
        request = talkative.post(parent, call("session_wait", {"run_id": child}))
        response = await talkative.server.client.send(request, stream=True)
        await anext(response.aiter_raw())
        # The first comment may come before the wait has begun.
        await until(lambda: listeners(talkative, child) == before + 1, "the wait began")
        await response.aclose()
        await until(lambda: listeners(talkative, child) == before, "the wait ended")


async def test_held_call_ends_when_the_daemon_stops(talkative: Standing) -> None:
    async with talkative.family() as (_, parent, _, child):
        request = talkative.post(parent, call("session_wait", {"run_id": child}))
        response = await talkative.server.client.send(request, stream=True)
        chunks = response.aiter_raw()
        await anext(chunks)
        talkative.server.lifetime.close()
        with anyio.fail_after(60):
            rest = b"".join([chunk async for chunk in chunks])
        assert b"data:" not in rest
        answer = await talkative.send(parent, call("session_wait", {"run_id": child}))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_client_that_does_not_accept_a_stream_gets_json(agents: Standing) -> None:
    async with agents.family() as (_, parent, _, child):
        message = call("session_wait", {"run_id": child, "timeout_s": 1.5})
        answer = await agents.send(parent, message, headers={"Accept": "application/json"})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["result"]["structuredContent"]["timed_out"] is True


async def test_hold_s_in_the_url_sets_the_default_timeout(agents: Standing) -> None:
    run_id = await agents.start()
    async with agents.tools(run_id, query="?hold_s=0") as tools:
        listed = (await tools.list_tools()).tools
        (wait,) = [tool for tool in listed if tool.name == "session_wait"]
        assert wait.input_schema["properties"]["timeout_s"]["default"] == 0
        spawned = await use(tools, "session_spawn", task="work")
        with anyio.fail_after(60):
            waited = await use(tools, "session_wait", run_id=spawned["run"]["id"])
        assert waited["timed_out"] is True
