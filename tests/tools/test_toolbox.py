"""``context.tools``: the tools for agents without a daemon, a token or a socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from attrs import define, field

from agent_orchestrator import (
    Client,
    EngineConfig,
    FunctionRunner,
    Orchestrator,
    Outcome,
    ProviderConfig,
    Routing,
    Run,
    RunContext,
    RunStatus,
    open_embedded,
)
from agent_orchestrator.domain.access import Principal, RunIdentity
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.runner import Toolbox, ToolResult
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.runners import RecordingContext
from agent_orchestrator.tools.agent import Agent, calls_over
from agent_orchestrator.tools.toolbox import TOOLS, AgentTools
from agent_orchestrator.tools.undelivered import MAX_ATTEMPTS, QuestionsOfAttempts

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0

Act = Callable[[RunContext], Awaitable[str | Outcome | None]]


async def use(tools: Toolbox, name: str, **given: Any) -> Any:
    """Use a tool and return its answer; it must succeed."""
    result = await tools.call(name, given)
    assert not result.is_error, result.text
    assert json.loads(result.text) == result.content
    return result.content


async def refusal(tools: Toolbox, name: str, **given: Any) -> str:
    """Use a tool that refuses. Return the error's code."""
    return await refusal_of(tools, name, given)


async def refusal_of(tools: Toolbox, name: str, given: Any) -> str:
    """Call a tool with invalid arguments. Return the error's code."""
    result = await tools.call(name, given)
    assert result.is_error, (name, result.text[:300])
    assert len(result.text.encode()) < 5_000
    assert json.loads(result.text) == result.content
    error = result.content["error"]
    assert error["message"]
    assert error["code"] != "invalid_request" or error["details"]["fields"]
    return str(error["code"])


async def ended(client: Client, run: Run | None) -> Run:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def led(act: Act, **settings: Any) -> str:
    """Run an agent to its end, with scripted ones to spawn. Return its result."""
    runners = [FunctionRunner("lead", act), ScriptedRunner()]
    with anyio.fail_after(TIMEOUT_S):
        async with open_embedded(":memory:", runners=runners, **settings) as client:
            session = await client.create_session()
            run = await ended(client, (await client.send_message(session.id, "lead")).run)
    assert run.result is not None, run.error
    return run.result.text


@define
class Held:
    """An agent that stays at work until the test lets it end."""

    contexts: list[RunContext] = field(factory=list)
    arrived: anyio.Event = field(factory=anyio.Event)
    end: anyio.Event = field(factory=anyio.Event)

    async def __call__(self, context: RunContext) -> str:
        self.contexts.append(context)
        self.arrived.set()
        await self.end.wait()
        return "done"


@define
class Work:
    """An engine without a daemon, and an agent at work in it."""

    engine: Orchestrator
    client: Client
    agent: Held
    run: Run

    @property
    def tools(self) -> Toolbox:
        return self.agent.contexts[0].tools

    def tools_of_token(self) -> Toolbox:
        """Return the tools for a client with the run's token."""
        caller = Principal.of_run(self.run.id, self.run.attempt, self.run.session_id)
        return AgentTools(
            Agent(calls_over(self.engine.acting_as(caller)), self.run.id, self.run.session_id)
        )


@asynccontextmanager
async def at_work() -> AsyncIterator[Work]:
    agent = Held()
    runners = [FunctionRunner("lead", agent), ScriptedRunner()]
    providers = {runner.name: ProviderConfig(runner, runner.name) for runner in runners}
    config = EngineConfig(providers, Routing("lead"), host=this_host())
    with anyio.fail_after(TIMEOUT_S):
        async with MemoryStore() as store, Orchestrator(store, config) as engine:
            client = Client(engine)
            session = await client.create_session()
            sent = await client.send_message(session.id, "work")
            assert sent.run is not None
            await agent.arrived.wait()
            yield Work(engine, client, agent, await client.get_run(sent.run.id))
            agent.end.set()


async def test_agent_can_use_the_tools_without_a_daemon() -> None:
    async def act(context: RunContext) -> str:
        assert "AGENTCTL_URL" not in context.env
        assert "AGENTCTL_AUTH_TOKEN" not in context.env
        spawned = await use(context.tools, "session_spawn", task="ask May I?", provider="scripted")
        child = spawned["run"]["id"]
        waited = await use(context.tools, "session_wait", run_id=child)
        asked = waited["request"]["id"]
        await use(context.tools, "request_resolve", request_id=asked, decision="approve")
        waited = await use(context.tools, "session_wait", run_id=child)
        listed = await use(context.tools, "session_list")
        assert [one["run"]["id"] for one in listed["children"]] == [child]
        more = await use(
            context.tools, "session_send", session_id=spawned["session"]["id"], text="say more"
        )
        last = await use(context.tools, "session_wait", run_ids=[more["run"]["id"]])
        return f"{waited['run']['result']['text']}, {last['run']['result']['text']}"

    assert await led(act) == "approved, more"


async def test_tool_descriptions_are_copies_for_each_caller() -> None:
    context = RecordingContext("x", cwd="/")
    first, second = context.tools.list(), context.tools.list()
    assert [spec.name for spec in first] == list(TOOLS)
    assert first == second
    for spec in first:
        jsonschema.Draft202012Validator.check_schema(spec.input_schema)
        spec.input_schema["properties"].clear()
    assert context.tools.list() == second


async def test_default_timeout_of_session_wait_is_a_day() -> None:
    async def act(context: RunContext) -> str:
        (wait,) = (spec for spec in context.tools.list() if spec.name == "session_wait")
        return str(wait.input_schema["properties"]["timeout_s"]["default"])

    assert float(await led(act)) == 86_400


async def test_agents_waiting_by_a_tool_take_no_workers() -> None:
    """Three agents that wait for a child each, and one that waits for them, with one worker."""

    async def act(context: RunContext) -> str:
        if context.session.depth == 1:
            child = await use(context.tools, "session_spawn", task="say x", provider="scripted")
            waited = await use(context.tools, "session_wait", run_id=child["run"]["id"])
            return str(waited["run"]["result"]["text"])
        said, waiting = [], []
        for _ in range(3):
            spawned = await use(context.tools, "session_spawn", task="go")
            waiting.append(spawned["run"]["id"])
        while waiting:
            waited = await use(context.tools, "session_wait", run_ids=waiting)
            said.append(waited["run"]["result"]["text"])
            waiting = waited.get("still_waiting_for", [])
        return "".join(said)

    assert await led(act, max_concurrency=1) == "xxx"


async def test_tool_calls_of_one_agent_can_be_concurrent() -> None:
    async def act(context: RunContext) -> str:
        found: list[Any] = []

        async def wait(run_id: str) -> None:
            found.append(await use(context.tools, "session_wait", run_id=run_id))

        runs = [
            (await use(context.tools, "session_spawn", task=f"say {name}", provider="scripted"))[
                "run"
            ]["id"]
            for name in "ab"
        ]
        async with anyio.create_task_group() as tasks:
            for run_id in runs:
                tasks.start_soon(wait, run_id)
        return "".join(sorted(one["run"]["result"]["text"] for one in found))

    assert await led(act, max_concurrency=1) == "ab"


async def attempts_to_reach(work: Work) -> list[tuple[str, dict[str, Any]]]:
    """Return calls for sessions outside the agent's subtree, and some invalid ones."""
    foreign = await work.client.create_session(provider="scripted")
    sent = await work.client.send_message(foreign.id, "ask May I?")
    assert sent.run is not None
    waited = await work.client.wait_run(sent.run.id, timeout_s=TIMEOUT_S, until="attention")
    assert waited.request is not None
    own = await work.client.reply_parent(work.run.id, "May I?", request_kind="approval_request")
    assert own.request is not None
    return [
        ("session_send", {"session_id": foreign.id, "text": "hello"}),
        ("session_send", {"session_id": work.run.session_id, "text": "hello"}),
        ("session_send", {"session_id": "ses_none", "text": "hello"}),
        ("session_wait", {"run_id": sent.run.id}),
        ("session_wait", {"run_id": work.run.id}),
        ("request_resolve", {"request_id": waited.request.id, "decision": "approve"}),
        ("request_resolve", {"request_id": own.request.id, "decision": "approve"}),
        ("session_reply_parent", {"request_id": waited.request.id}),
        ("session_reply_parent", {"text": "nobody is there"}),
        ("session_spawn", {"task": "x", "cwd": "/etc"}),
        ("session_spawn", {"task": "x", "model": "another"}),
        ("session_spawn", {"task": "x", "approvals": "allow"}),
        ("session_list", {"session_id": foreign.id}),
        ("session_list", {"limit": 0}),
    ]


async def test_tools_and_the_runs_token_give_the_same_refusals() -> None:
    async with at_work() as work:
        by_token = work.tools_of_token()
        for name, given in await attempts_to_reach(work):
            refused = await work.tools.call(name, given)
            assert refused.is_error, (name, given, refused.text)
            assert refused == await by_token.call(name, given)
        entries = (await work.client.list_audit()).entries
        refusals = [(one.principal, one.operation) for one in entries if one.decision != "done"]
        assert set(refusals) >= {
            (work.run.id, "send_to_session"),
            (work.run.id, "wait_run"),
            (work.run.id, "resolve_request"),
        }


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("session_spawn", {"task": "x"}),
    ("session_send", {"session_id": "ses_x", "text": "x"}),
    ("session_wait", {"run_id": "run_x"}),
    ("session_reply_parent", {"text": "x"}),
    ("session_reply_parent", {"text": "x", "request_kind": "approval_request"}),
    ("session_list", {}),
    ("request_resolve", {"request_id": "req_x", "decision": "approve"}),
]


async def test_tools_are_forbidden_after_the_attempt_has_ended() -> None:
    async with at_work() as work:
        work.agent.end.set()
        await ended(work.client, work.run)
        for name, given in CALLS:
            assert await refusal(work.tools, name, **given) == "forbidden"
        assert (await work.client.get_tree(work.run.session_id)).children_count == 0
        assert (await work.client.requests()).requests == ()


async def test_waiting_tool_call_ends_with_the_attempt() -> None:
    async with at_work() as work:
        child = await use(work.tools, "session_spawn", task="hold", provider="scripted")
        codes = []

        async def wait() -> None:
            codes.append(await refusal(work.tools, "session_wait", run_id=child["run"]["id"]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while not work.engine.pool.running[work.run.id].is_blocked:
                await anyio.sleep(0.001)
            work.agent.end.set()
        assert codes == ["forbidden"]


async def test_canceled_wait_takes_its_worker_back_and_can_be_repeated() -> None:
    async with at_work() as work:
        child = await use(work.tools, "session_spawn", task="hold", provider="scripted")
        run_id = child["run"]["id"]
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work.tools.call, "session_wait", {"run_id": run_id})
                while not work.engine.pool.running[work.run.id].is_blocked:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()
            assert not work.engine.pool.running[work.run.id].is_blocked
        await work.client.cancel_run(run_id)
        waited = await use(work.tools, "session_wait", run_id=run_id)
        assert waited["run"]["status"] == "canceled"


async def test_canceled_question_stays_open_and_is_not_asked_twice() -> None:
    question = {"text": "May I?", "request_kind": "approval_request"}
    async with at_work() as work:
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work.tools.call, "session_reply_parent", question)
                while not work.engine.pool.running[work.run.id].is_blocked:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()
        (request,) = (await work.client.requests()).requests
        await work.client.resolve_request(request.id, "approve")
        reply = await use(work.tools, "session_reply_parent", **question)
        assert (reply["request"]["id"], reply["decision"]) == (request.id, "approve")
        again = await use(work.tools, "session_reply_parent", **question, timeout_s=0)
        assert again["request"]["id"] != request.id  # an approval holds once


async def test_canceled_run_ends_its_tool_calls() -> None:
    async def act(context: RunContext) -> str:
        child = await use(context.tools, "session_spawn", task="hold", provider="scripted")
        await use(context.tools, "session_wait", run_id=child["run"]["id"])
        raise AssertionError("unreachable")

    runners = [FunctionRunner("lead", act), ScriptedRunner()]
    with anyio.fail_after(TIMEOUT_S):
        async with open_embedded(":memory:", runners=runners, max_concurrency=1) as client:
            session = await client.create_session()
            sent = await client.send_message(session.id, "lead")
            assert sent.run is not None
            while not (children := (await client.get_tree(session.id)).children):
                await anyio.sleep(0.001)
            while (await client.get_run(children[0].runs[0].id)).status is not RunStatus.RUNNING:
                await anyio.sleep(0.001)
            await client.cancel_run(sent.run.id)
            assert (await ended(client, sent.run)).status is RunStatus.CANCELED


async def test_tool_call_during_a_drain_is_held_and_the_run_queued(tmp_path: Path) -> None:
    """The agent does not see an error because the engine stops."""
    started, draining = anyio.Event(), anyio.Event()

    async def act(context: RunContext) -> str:
        if context.run.attempt > 1:
            return "again"
        started.set()
        await draining.wait()
        await context.tools.call("session_spawn", {"task": "x"})
        raise AssertionError("unreachable")

    with anyio.fail_after(TIMEOUT_S):
        runner = FunctionRunner("lead", act)
        async with open_embedded(tmp_path / "a.db", runners=[runner]) as client:
            session = await client.create_session()
            sent = await client.send_message(session.id, "lead")
            await started.wait()
            engine = client.transport.engine  # type: ignore[attr-defined]
            engine.core.draining = True
            draining.set()
            await anyio.wait_all_tasks_blocked()
        async with open_embedded(tmp_path / "a.db", runners=[runner]) as client:
            run = await ended(client, sent.run)
            assert (await client.get_tree(session.id)).children_count == 0
    assert run.result is not None, run.error
    assert (run.result.text, run.attempt) == ("again", 2)


@define
class Asking:
    """A runner that asks the same question in each attempt."""

    name: str = "asking"
    capabilities: Capabilities = Capabilities(resume=True)
    answers: list[ToolResult] = field(factory=list)
    prompts: list[str] = field(factory=list)

    async def run(self, context: RunContext) -> Outcome:
        self.prompts.append(context.prompt)
        await context.delivered()
        await context.set_thread("t-1")
        timeout = {} if context.run.attempt == 1 else {"timeout_s": 0}
        question = {"text": "May I?", "request_kind": "approval_request"}
        self.answers.append(await context.tools.call("session_reply_parent", question | timeout))
        return Outcome("done")


async def test_approval_in_the_prompt_does_not_answer_a_repeated_question() -> None:
    runner = Asking()
    with anyio.fail_after(TIMEOUT_S):
        async with open_embedded(":memory:", runners=[runner], park_after_s=0) as client:
            session = await client.create_session()
            sent = await client.send_message(session.id, "go")
            async with client.events(session.id, follow=True) as events:
                async for event in events:
                    if event.event_type == "run.waiting" and event.data.get("parked"):
                        break
            (request,) = (await client.requests()).requests
            await client.resolve_request(request.id, "approve")
            run = await ended(client, sent.run)
    assert run.attempt == 2
    assert "Your request was approved" in runner.prompts[1]
    (second,) = runner.answers
    assert second.content["request"]["id"] != request.id
    assert second.content["timed_out"] is True


def test_questions_are_kept_per_attempt_and_the_oldest_are_dropped() -> None:
    kept = QuestionsOfAttempts()
    first = kept.of(RunIdentity("run_1", 1, "ses_1"))
    assert kept.of(RunIdentity("run_1", 1, "ses_1")) is first
    assert kept.of(RunIdentity("run_1", 2, "ses_1")) is not first
    for number in range(MAX_ATTEMPTS):
        kept.of(RunIdentity(f"run_{number}", 3, "ses_1"))
    assert kept.of(RunIdentity("run_1", 1, "ses_1")) is not first


def nested(depth: int) -> Any:
    return reduce(lambda inner, _: [inner], range(depth), 0)


def hostile() -> dict[str, Any]:
    """Return hostile values of an argument, by what they are."""
    return {
        "a list": [1, None, {}],
        "an object": {"a": 1},
        "a number": 1e308,
        "an endless number": float("inf"),
        "no number": float("nan"),
        "digits": 10**5000,
        "a long text": "x" * 1_000_001,
        "a lone surrogate": "\ud800",
        "nested": nested(900),
        "nested objects": {"a": nested(900)},
        "many": ["x"] * 20_000,
        "wide": {f"k{number}": 0 for number in range(20_000)},
    }


BROKEN = [0, "x", [], [["task", "x"]], nested(900), True, {1: 2}, {None: 1}]


async def test_hostile_arguments_are_refused_with_their_names() -> None:
    needed = {"task": "x", "text": "x", "session_id": "s", "request_id": "r", "decision": "deny"}
    values = hostile()
    async with at_work() as work:
        before = await work.client.get_session(work.run.session_id)
        for name, tool in TOOLS.items():
            for broken in BROKEN:
                assert await refusal_of(work.tools, name, broken) == "invalid_request", broken
            schema = tool.spec(0).input_schema
            given = {one: needed[one] for one in schema["required"]}
            for argument in schema["properties"]:
                for kind, value in values.items():
                    code = await refusal_of(work.tools, name, {**given, argument: value})
                    assert code in {"invalid_request", "not_found"}, (name, argument, kind)
            odd_name = {**given, "\ud800" + "x" * 300: 1}
            assert await refusal_of(work.tools, name, odd_name) == "invalid_request"
        unknown: list[Any] = ["", "session_kill", "x" * 300_000, "\ud800", None, [], 7]
        for name in unknown:
            assert await refusal_of(work.tools, name, {}) == "invalid_request"
        # Nothing was written.
        assert await work.client.get_session(work.run.session_id) == before
        assert (await work.client.requests()).requests == ()


async def test_recording_context_has_the_tools() -> None:
    context = RecordingContext("x", cwd="/")
    tools = context.tools
    spawned = await use(tools, "session_spawn", task="a part", title="part")
    assert [child.session.title for child in context.children] == ["part"]
    assert (await use(tools, "session_wait", run_id=spawned["run"]["id"]))["run"]["status"] == (
        "completed"
    )
    await use(tools, "session_send", session_id=spawned["session"]["id"], text="more")
    assert [text for _, text in context.sent] == ["more"]
    await use(tools, "session_reply_parent", text="halfway")
    assert context.replies == ["halfway"]
    asked = await use(tools, "session_reply_parent", text="May I?", request_kind="approval_request")
    assert asked["decision"] == "deny"
    listed = await use(tools, "session_list")
    assert [one["run"]["id"] for one in listed["children"]] == [spawned["run"]["id"]]
    assert (
        await refusal(tools, "request_resolve", request_id="req_9", decision="deny") == "not_found"
    )
    assert await refusal(tools, "session_wait") == "invalid_request"
    assert context.calls == ["spawn", "wait", "send", "reply_parent", "ask_parent approval_request"]
