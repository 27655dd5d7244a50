"""Runs that wait long, take long, or say nothing."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
import trio
import trio.testing
from attrs import define, field

from agent_orchestrator import Client, ConfigError, Outcome, RunContext, RunStatus, open_embedded
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.model import Event, Option, Request, Run
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.runners.command import CommandRunner
from agent_orchestrator.runners.command.mapping import Rule
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.invariants import history, violations

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0


@define
class Doing:
    """A runner that does what a test says."""

    what: Callable[[RunContext], Awaitable[Any]]
    name: str = "doing"
    resumes: bool = True
    prompts: list[str] = field(factory=list)
    ended: list[int] = field(factory=list)
    """The attempts that have ended."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes)

    async def run(self, context: RunContext) -> Outcome:
        self.prompts.append(context.prompt)
        try:
            await context.delivered()
            return Outcome(await self.what(context) or "")
        finally:
            self.ended.append(context.run.attempt)


async def sent(client: Client, text: str = "go") -> Run:
    session = await client.create_session()
    reply = await client.send_message(session.id, text)
    assert reply.run is not None
    return reply.run


async def end_of(client: Client, run: Run) -> Run:
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def asked(client: Client, run: Run) -> Request:
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S, until="attention")
    assert reply.request is not None, reply
    return reply.request


async def log_of(client: Client, run: Run) -> list[Event]:
    records = await history(client)
    assert violations(records) == []
    return list(records.logs[run.session_id])


async def parked(client: Client, run: Run) -> Run:
    """Wait until a run waits without an agent."""
    with anyio.fail_after(TIMEOUT_S):
        async with client.events(run.session_id, follow=True) as events:
            async for event in events:
                if event.event_type == "run.waiting" and event.data.get("parked"):
                    return await client.get_run(run.id)
    raise AssertionError


async def asking(context: RunContext) -> str:
    await context.set_thread("t-1")
    if context.prompt.startswith("Your request"):
        return context.prompt
    request = await context.ask_parent("May I?", kind="approval_request")
    return f"told at once: {request.status}"


# --- waiting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("park_after_s", [0, 0.05])
async def test_run_that_waits_long_is_parked_and_gets_the_answer_once(
    park_after_s: float,
) -> None:
    runner = Doing(asking)
    async with open_embedded(":memory:", runners=[runner], park_after_s=park_after_s) as client:
        run = await sent(client)
        request = await asked(client, run)
        run = await parked(client, run)
        assert (run.status, run.worker_id, run.attempt) == (RunStatus.WAITING, None, 2)
        with anyio.fail_after(TIMEOUT_S):
            while runner.ended != [1]:
                await anyio.sleep(0.001)
        await client.resolve_request(request.id, "answer", text="yes, twice")
        run = await end_of(client, run)
        assert run.result is not None
        assert run.result.text == "Your request was answered: May I?\n\nyes, twice"
        assert run.attempt == 2
        assert await log_of(client, run)
    assert runner.prompts == ["go", run.result.text]


async def test_parked_run_gets_the_option_that_was_chosen() -> None:
    options = [
        Option("y", "Yes", "allow_once"),
        Option("s", "Yes, this session", "allow_session", "all of it"),
        Option("n", "No", "deny"),
        Option.named("later"),
    ]

    async def hold(context: RunContext) -> str:
        await context.set_thread("t-1")
        if context.prompt == "go":
            await context.ask_parent("May I?", kind="approval_request", options=options)
        return context.prompt

    decisions: list[tuple[dict[str, Any], str]] = [
        ({"option": "y"}, "approved (Yes): May I?"),
        ({"decision": "approve", "scope": "session"}, "approved (Yes, this session): May I?"),
        ({"option": "n", "text": "Ask Ann"}, "denied (No): May I?\n\nAsk Ann"),
        ({"option": "later"}, "answered: May I?\n\nlater"),
        ({"decision": "answer", "text": "Why?"}, "answered: May I?\n\nWhy?"),
    ]
    runner = Doing(hold)
    async with open_embedded(":memory:", runners=[runner], park_after_s=0) as client:
        for decision, message in decisions:
            run = await parked(client, await sent(client))
            [request] = (
                await client.requests(session_id=run.session_id, status="pending")
            ).requests
            await client.resolve_request(request.id, **decision)
            run = await end_of(client, run)
            assert run.result is not None
            assert run.result.text == f"Your request was {message}"


async def test_parked_run_resumes_when_all_its_requests_are_answered() -> None:
    async def hold(context: RunContext) -> str:
        await context.set_thread("t-1")
        if context.prompt == "go":
            await anyio.sleep_forever()
        return context.prompt

    runner = Doing(hold)
    async with open_embedded(":memory:", runners=[runner], park_after_s=0) as client:
        run = await sent(client)
        with anyio.fail_after(TIMEOUT_S):
            while not (await client.get_run(run.id)).thread_id:
                await anyio.sleep(0.001)
        first = await client.reply_parent(run.id, "1?", request_kind="input_request", wait=True)
        await parked(client, run)
        second = await client.reply_parent(run.id, "2?", request_kind="input_request", wait=True)
        third = await client.reply_parent(run.id, "3?", request_kind="input_request", wait=True)
        assert first.request is not None
        assert second.request is not None
        assert third.request is not None
        await client.resolve_request(second.request.id, "answer", text="two")
        await client.resolve_request(first.request.id, "answer", text="one")
        run = await client.get_run(run.id)
        assert (run.status, run.waiting_on) == (RunStatus.WAITING, third.request.id)
        await client.resolve_request(third.request.id, "answer", text="three")
        run = await end_of(client, run)
        assert run.result is not None
        text = run.result.text
        assert [text.count(answer) for answer in ("one", "two", "three")] == [1, 1, 1]
        assert await log_of(client, run)


async def test_run_is_parked_for_a_request_made_by_an_api_call() -> None:
    async def what(context: RunContext) -> str:
        await context.set_thread("t-1")
        if context.prompt == "go":
            await context.emit("agent.message", {"text": "ready"})
            await anyio.sleep_forever()
        return context.prompt

    runner = Doing(what)
    async with open_embedded(":memory:", runners=[runner], park_after_s=0) as client:
        run = await sent(client)
        with anyio.fail_after(TIMEOUT_S):
            async with client.events(run.session_id, follow=True) as events:
                async for event in events:
                    if event.data.get("text") == "ready":
                        break
        reply = await client.reply_parent(
            run.id, "May I?", request_kind="approval_request", wait=True
        )
        assert reply.request is not None
        await parked(client, run)
        await client.resolve_request(reply.request.id, "approve")
        assert (await end_of(client, run)).status is RunStatus.COMPLETED
    assert runner.prompts == ["go", "Your request was approved: May I?"]


@pytest.mark.parametrize("resumes", [True, False], ids=["no thread", "a runner that cannot"])
async def test_agent_that_cannot_resume_is_not_parked(resumes: bool) -> None:
    async def what(context: RunContext) -> str:
        if not resumes:
            await context.set_thread("t-1")
        return (await context.ask_parent("May I?", kind="approval_request")).status

    runner = Doing(what, resumes=resumes)
    async with open_embedded(
        ":memory:", runners=[runner], park_after_s=0, max_concurrency=1
    ) as client:
        run = await sent(client)
        request = await asked(client, run)
        other = await sent(client, "meanwhile")  # has a worker, and asks as well
        await asked(client, other)
        kept = await client.get_run(run.id)
        assert kept.worker_id is not None
        assert runner.ended == []
        await client.resolve_request(request.id, "approve")
        run = await end_of(client, run)
        assert run.result is not None
        assert (run.result.text, run.attempt) == ("approved", 1)


async def test_answer_before_park_after_s_goes_to_the_waiting_agent() -> None:
    runner = Doing(asking)
    async with open_embedded(":memory:", runners=[runner], park_after_s=3600) as client:
        run = await sent(client)
        request = await asked(client, run)
        await client.resolve_request(request.id, "approve")
        run = await end_of(client, run)
        assert run.result is not None
        assert run.result.text == "told at once: approved"


async def test_parked_run_can_be_canceled() -> None:
    runner = Doing(asking)
    async with open_embedded(":memory:", runners=[runner], park_after_s=0) as client:
        run = await parked(client, await sent(client))
        assert (await client.cancel_run(run.id)).run.status is RunStatus.CANCELED
        assert await log_of(client, run)


@pytest.mark.parametrize("seconds", [-1, float("nan"), 1e9])
def test_park_after_s_out_of_bounds_is_refused(seconds: float) -> None:
    provider = ProviderConfig(ScriptedRunner(), "scripted")
    with pytest.raises(ConfigError, match="park_after_s"):
        EngineConfig({"s": provider}, Routing("s"), park_after_s=seconds, host=this_host())


# --- timeouts -------------------------------------------------------------------------------------


def limited(what: Callable[[RunContext], Awaitable[Any]], **limits: float) -> dict[str, Any]:
    return {"providers": {"doing": ProviderConfig(Doing(what), "doing", **limits)}}


async def forever(context: RunContext) -> None:
    await anyio.sleep_forever()


async def test_silent_agent_causes_a_warning_and_then_a_failure() -> None:
    async with open_embedded(":memory:", **limited(forever, silence_timeout_s=0.2)) as client:
        run = await end_of(client, await sent(client))
        log = await log_of(client, run)
        issue = (await client.diagnose_run(run.id)).diagnostics.likely_issue
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.code == "timeout"
    warnings = [event.data for event in log if event.event_type == "run.error"]
    assert [warning["code"] for warning in warnings] == ["agent_silent"]
    assert warnings[0]["silent_s"] >= 0.1
    assert issue.code == "agent_silent"


def test_agent_that_emits_events_is_not_silent() -> None:
    async def what(context: RunContext) -> str:
        for number in range(4):
            await anyio.sleep(30)
            await context.emit("agent.message", {"text": str(number)})
        return "done"

    async def live() -> tuple[Run, list[Event]]:
        config = EngineConfig(
            routing=Routing("doing"), **limited(what, silence_timeout_s=100), host=this_host()
        )
        async with MemoryStore() as store, Orchestrator(store, config) as engine:
            client = Client(engine)
            run = (await client.wait_run((await sent(client)).id, timeout_s=600)).run
            return run, await log_of(client, run)

    # On a virtual clock, so that no machine is too slow. A thread that checks a directory counts as
    # waiting, and gets a second.
    run, log = trio.run(live, clock=trio.testing.MockClock(autojump_threshold=1.0))
    assert run.status is RunStatus.COMPLETED
    assert [event for event in log if event.event_type == "run.error"] == []


DOTS = """
import sys, time
for _ in range(35):
    sys.stdout.write(".")
    sys.stdout.flush()
    time.sleep(0.1)
"""


@pytest.mark.parametrize("output", ["lines", "text", "jsonl"])
async def test_agent_that_writes_incomplete_lines_is_not_silent(
    tmp_path: Path, output: Literal["lines", "text", "jsonl"]
) -> None:
    rules = (Rule(when={"type": "x"}, result="$.x"),) if output == "jsonl" else ()
    runner = CommandRunner("dots", (sys.executable, "-S", "-c", DOTS), output=output, map=rules)
    providers = {"dots": ProviderConfig(runner, "command", silence_timeout_s=3.0)}
    async with open_embedded(":memory:", providers=providers, cwd=str(tmp_path)) as client:
        run = await end_of(client, await sent(client))
    assert run.status is RunStatus.COMPLETED, run.error


async def test_run_fails_at_run_timeout_s_though_it_emits_events() -> None:
    async def what(context: RunContext) -> None:
        while True:
            await anyio.sleep(0.01)
            await context.emit("agent.message", {"text": "busy"})

    async with open_embedded(":memory:", **limited(what, run_timeout_s=0.2)) as client:
        run = await end_of(client, await sent(client))
        issue = (await client.diagnose_run(run.id)).diagnostics.likely_issue
    assert run.error is not None
    assert run.error.code == "timeout"
    assert "run_timeout_s" in run.error.message
    assert run.started_at is not None
    assert run.finished_at is not None
    assert (run.finished_at - run.started_at).total_seconds() >= 0.2
    assert (issue.code, "run_timeout_s" in issue.message) == ("unknown", True)


def test_waiting_time_does_not_count_for_timeouts() -> None:
    async def what(context: RunContext) -> str:
        return (await context.ask_parent("May I?", kind="approval_request")).status

    async def live() -> Run:
        config = EngineConfig(
            routing=Routing("doing"),
            **limited(what, run_timeout_s=100, silence_timeout_s=100),
            host=this_host(),
        )
        async with MemoryStore() as store, Orchestrator(store, config) as engine:
            client = Client(engine)
            run = await sent(client)
            request = await asked(client, run)
            await anyio.sleep(200)
            await client.resolve_request(request.id, "approve")
            return await end_of(client, run)

    # On a virtual clock, so that no machine is too slow.
    run = trio.run(live, clock=trio.testing.MockClock(autojump_threshold=1.0))
    assert run.status is RunStatus.COMPLETED


async def test_timeouts_are_those_of_the_fallback_that_executes_the_run() -> None:
    class Absent(Doing):
        async def probe(self, env: Any) -> Any:
            from agent_orchestrator import Availability

            await anyio.lowlevel.checkpoint()
            return Availability(available=False, reason="not here")

    async def brief(context: RunContext) -> str:
        await anyio.sleep(0.2)
        return "done"

    absent = ProviderConfig(Absent(forever, name="absent"), "doing", run_timeout_s=0.05)
    other = ProviderConfig(Doing(brief), "doing", run_timeout_s=10)
    async with open_embedded(
        ":memory:",
        providers={"absent": absent, "other": other},
        routing=Routing("absent", {"absent": ("other",)}),
    ) as client:
        assert (await end_of(client, await sent(client))).status is RunStatus.COMPLETED
