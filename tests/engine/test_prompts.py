"""Prompts fit the runner's input limit, keep the order of messages, and leave none out."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from attrs import define, field
from crashing import Handle
from loops import ON_ONE_LOOP

from agent_orchestrator import (
    AgentFailed,
    Client,
    Outcome,
    ProviderConfig,
    RunContext,
    RunStatus,
    open_embedded,
)
from agent_orchestrator.domain.capabilities import Capabilities, InputLimit
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.model import MANUAL, Message, Run
from agent_orchestrator.engine import Routing
from agent_orchestrator.engine.prompts import count_fitting, cut_to_limit
from agent_orchestrator.fields import MAX_TEXT
from agent_orchestrator.runners.acp.runner import AcpRunner
from agent_orchestrator.runners.claude import ClaudeRunner
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.runners.command import CommandRunner
from agent_orchestrator.runners.command.runner import MAX_THREAD_ID
from agent_orchestrator.runners.process import MAX_ARGUMENT
from agent_orchestrator.stores.memory import MemoryStore

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

TIMEOUT_S = 60.0


async def nothing(_: RunContext) -> None:
    pass


@define
class Small:
    """A runner with a small input limit, which fails on a longer prompt."""

    max_input: InputLimit = InputLimit(characters=1_000)
    what: Callable[[RunContext], Awaitable[str | None]] = nothing
    name: str = "small"
    resumes: bool = False
    prompts: list[str] = field(factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes, max_input=self.max_input)

    async def run(self, context: RunContext) -> Outcome:
        assert self.max_input.excess(context.prompt) is None
        self.prompts.append(context.prompt)
        return Outcome(await self.what(context) or "done")


async def end_of(client: Client, run: Run | None) -> Run:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def settled(client: Client, session_id: str, messages: int) -> list[Message]:
    """Return a session's messages once all its runs have ended and no message is queued."""
    with anyio.fail_after(TIMEOUT_S):
        while True:
            found = (await client.list_messages(session_id)).messages
            runs = (await client.list_runs(session_id=session_id)).runs
            is_over = all(run.finished_at for run in runs) and len(found) >= messages
            if is_over and all(message.delivery != "queued" for message in found):
                return [*found]
            await anyio.sleep(0.001)


async def deliver_results(client: Client, parent: str, results: list[str]) -> None:
    """Complete children while their parent is busy, so that it gets their results together."""
    busy = await client.create_run(parent, provider=MANUAL)
    await client.transition_run(busy.id, "running")
    for result in results:
        child = await client.spawn("x", session_id=parent, provider=MANUAL, notify_parent="wake")
        await client.transition_run(child.run.id, "running")
        await client.transition_run(child.run.id, "completed", result={"text": result})
    await client.transition_run(busy.id, "completed")


@pytest.mark.parametrize("sizes", [(600, 600), (100,) * 16, (10, 800, 10, 800), (900, 1, 1)])
@pytest.mark.parametrize("limit", [InputLimit(characters=1_000), InputLimit(size=2_000)])
async def test_child_results_are_delivered_in_as_many_turns_as_needed(
    sizes: tuple[int, ...], limit: InputLimit
) -> None:
    runner = Small(limit)
    async with open_embedded(":memory:", runners=[runner]) as client:
        parent = (await client.create_session()).id
        results = [f"<{n}>" + "é" * size for n, size in enumerate(sizes)]
        await deliver_results(client, parent, results)
        found = await settled(client, parent, len(sizes))
        assert [message.delivery for message in found] == ["delivered"] * len(sizes)
        runs = [
            run
            for run in (await client.list_runs(session_id=parent)).runs
            if run.provider != MANUAL
        ]
        assert {run.status for run in runs} == {RunStatus.COMPLETED}
    # Each once, in order, in as few turns as possible.
    given = "\n\n".join(runner.prompts)
    assert [given.count(result) for result in results] == [1] * len(results)
    assert given == "\n\n".join(message.text for message in found)
    for prompt, after in zip(runner.prompts, runner.prompts[1:], strict=False):
        first = next(m.text for m in found if after.startswith(m.text))
        assert limit.excess(f"{prompt}\n\n{first}") is not None


async def test_child_result_longer_than_the_input_limit_is_cut_and_names_its_run() -> None:
    runner = Small()
    async with open_embedded(":memory:", runners=[runner]) as client:
        parent = (await client.create_session()).id
        await deliver_results(client, parent, ["y" * 5_000])
        (message,) = await settled(client, parent, 1)
        assert message.delivery == "delivered"
        assert len(message.text) == 1_000
        child = (await client.get_tree(parent)).children[0]
        assert child.runs[0].id in message.text[-100:]
    assert runner.prompts == [message.text]


async def test_message_longer_than_the_input_limit_is_refused_with_its_field() -> None:
    runner = Small()
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session()
        before = await client.get_session(session.id)
        for call in (
            client.send_message(session.id, "z" * 1_001),
            client.send(session.id, "z" * 1_001),
            client.create_run(session.id, text="z" * 1_001),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await call
            assert [*refused.value.details["fields"]] == ["text"]
        with pytest.raises(InvalidRequest) as refused:
            await client.spawn("z" * 1_001, session_id=session.id)
        assert [*refused.value.details["fields"]] == ["task"]
        assert await client.get_session(session.id) == before
        assert (await client.list_sessions()).sessions == (before,)
        parent = await client.create_session()
        child = await client.spawn("x", session_id=parent.id, provider=MANUAL, notify_parent="wake")
        with pytest.raises(InvalidRequest):
            await client.reply_parent(child.run.id, "z" * 1_001)
        sent = await client.send_message(session.id, "z" * 1_000)
        assert (await end_of(client, sent.run)).status is RunStatus.COMPLETED


async def test_fallback_with_a_smaller_input_limit_is_not_used() -> None:
    broken = CommandRunner("broken", ("no-such-program-at-all",))
    small = Small()
    async with open_embedded(
        ":memory:",
        providers={
            "broken": ProviderConfig(broken, "command"),
            "small": ProviderConfig(small, "small"),
        },
        routing=Routing("broken", {"broken": ["small"]}),
    ) as client:
        session = await client.create_session()
        run = await end_of(client, (await client.send_message(session.id, "z" * 1_001)).run)
        (message,) = (await client.list_messages(session.id)).messages
    assert run.error is not None
    assert (run.status, run.error.code) == (RunStatus.FAILED, "invalid_config")
    assert message.delivery == "undeliverable"
    assert small.prompts == []


@pytest.mark.parametrize("resumes", [True, False])
async def test_messages_beyond_the_input_limit_follow_a_second_attempt_in_order(
    *, resumes: bool
) -> None:
    store = MemoryStore()
    ready = anyio.Event()

    async def hold(context: RunContext) -> None:
        await context.delivered()
        if resumes:
            await context.set_thread("t-1")
        async with context.steering():
            ready.set()
            await anyio.sleep_forever()

    first, second = Small(what=hold, resumes=resumes), Small(resumes=resumes)
    texts = [name * 700 for name in "abcd"]
    sessions: list[str] = []

    async def body(client: Client) -> None:
        session = await client.create_session()
        sessions.append(session.id)
        await client.send_message(session.id, texts[0])
        await ready.wait()
        await client.send_message(session.id, texts[1], when_busy="steer")
        await client.send_message(session.id, texts[2])
        await client.send_message(session.id, texts[3], when_busy="steer")

    async with store:
        async with open_embedded(Handle(store), runners=[first]) as client:
            await body(client)
        async with open_embedded(Handle(store), runners=[second]) as client:
            found = await settled(client, sessions[0], 4)
    messages = [message for message in found if message.role == "user"]
    assert [message.text for message in messages] == texts
    assert {message.delivery for message in messages} == {"delivered"}
    given = "\n".join(second.prompts)
    order = [given.index(text) for text in texts]
    assert order == sorted(order)
    assert [given.count(text) for text in texts] == [1] * 4


@pytest.mark.parametrize("end", ["finishes", "canceled", "interrupted"])
async def test_steering_message_not_taken_runs_before_later_messages(end: str) -> None:
    ready, go = anyio.Event(), anyio.Event()

    async def what(context: RunContext) -> None:
        if context.prompt == "first":
            async with context.steering():
                ready.set()
                await go.wait()

    runner = Small(what=what)
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session()
        sent = [await client.send_message(session.id, "first")]
        await ready.wait()
        sent.append(await client.send_message(session.id, "second", when_busy="steer"))
        sent.append(await client.send_message(session.id, "third"))
        sent.append(await client.send_message(session.id, "fourth", when_busy="steer"))
        sent.append(await client.send_message(session.id, "fifth"))
        assert sent[1].run == sent[3].run
        if end == "canceled":
            assert sent[0].run is not None
            await client.cancel_run(sent[0].run.id)
        if end == "interrupted":
            await client.send_message(session.id, "urgent", when_busy="interrupt")
        go.set()
        found = await settled(client, session.id, 5)
        for message in found:
            if message.text in ("second", "fourth"):
                assert message.run_id == message.own_run_id
    rest = [prompt for prompt in runner.prompts if prompt not in ("first", "urgent")]
    assert rest == ["second", "third", "fourth", "fifth"]


@pytest.mark.parametrize("how", ["fails", "crashes", "took them", "canceled"])
async def test_undelivered_child_results_go_with_the_next_turn(how: str) -> None:
    broken, ready = True, anyio.Event()

    async def what(context: RunContext) -> None:
        if not broken:
            return
        if how == "took them":
            await context.delivered()
        if how == "canceled":
            ready.set()
            await anyio.sleep_forever()
        raise (
            RuntimeError("it crashed") if how == "crashes" else AgentFailed("provider_error", "no")
        )

    runner = Small(what=what)
    async with open_embedded(":memory:", runners=[runner]) as client:
        parent = (await client.create_session()).id
        await deliver_results(client, parent, ["<first>", "<second>"])

        async def state() -> list[tuple[str, bool]]:
            found = (await client.list_messages(parent)).messages
            return [(one.delivery, one.run_id is None) for one in found if one.role == "user"]

        async def own_runs() -> list[Run]:
            found = (await client.list_runs(session_id=parent)).runs
            return [run for run in found if run.provider != MANUAL]

        (woken,) = await own_runs()
        if how == "canceled":
            await ready.wait()
            await client.cancel_run(woken.id)
        await end_of(client, woken)
        if how == "took them":
            assert await state() == [("delivered", False)] * 2
            return
        # The end of a run and what follows from it are one commit: nothing was set to work again.
        assert await state() == [("queued", True)] * 2
        assert [run.id for run in await own_runs()] == [woken.id]
        if how != "canceled":
            again = await client.send_message(parent, "again")
            await end_of(client, again.run)
            assert await state() == [("queued", True)] * 2 + [("undeliverable", False)]
            assert len(await own_runs()) == 2
        broken = False
        last = await client.send_message(parent, "last")
        assert last.run is not None
        assert (await end_of(client, last.run)).status is RunStatus.COMPLETED
        outcomes = [
            m for m in (await client.list_messages(parent)).messages if m.source.kind == "child"
        ]
        assert {(one.delivery, one.run_id) for one in outcomes} == {("delivered", last.run.id)}
        assert runner.prompts[-1].endswith("<first>\n\n" + outcomes[1].text + "\n\nlast")
        assert (await own_runs())[-1].id == last.run.id


async def test_child_result_that_comes_during_a_failing_turn_wakes_the_parent() -> None:
    ready, go = anyio.Event(), anyio.Event()

    async def what(context: RunContext) -> None:
        if "<late>" not in context.prompt:
            ready.set()
            await go.wait()
        raise AgentFailed("provider_error", "no")

    runner = Small(what=what)
    async with open_embedded(":memory:", runners=[runner]) as client:
        parent = (await client.create_session()).id
        await deliver_results(client, parent, ["<early>"])
        await ready.wait()
        child = await client.spawn("x", session_id=parent, provider=MANUAL, notify_parent="wake")
        await client.transition_run(child.run.id, "running")
        await client.transition_run(child.run.id, "completed", result={"text": "<late>"})
        go.set()
        with anyio.fail_after(TIMEOUT_S):
            while len(runner.prompts) < 2:
                await anyio.sleep(0.001)
        for run in (await client.list_runs(session_id=parent)).runs:
            await end_of(client, run)
        found = (await client.list_messages(parent)).messages
        assert [one.delivery for one in found] == ["queued"] * 2
    # Both are given together, and no further turn starts by itself.
    assert len(runner.prompts) == 2
    assert runner.prompts[1].index("<early>") < runner.prompts[1].index("<late>")


async def test_interrupt_cancels_a_run_that_is_queued_for_its_next_attempt() -> None:
    store = MemoryStore()
    started: list[str] = []

    async def hold(context: RunContext) -> None:
        await context.delivered()
        started.append(context.prompt)
        await anyio.sleep_forever()

    async def is_started(prompt: str) -> None:
        with anyio.fail_after(TIMEOUT_S):
            while prompt not in started:
                await anyio.sleep(0.001)

    async with store:
        async with open_embedded(Handle(store), runners=[Small(what=hold)]) as client:
            other = await client.send_message((await client.create_session()).id, "other")
            session = await client.create_session()
            first = await client.send_message(session.id, "first")
            queued = await client.send_message(session.id, "queued")
            await is_started("first")
            await is_started("other")
        started.clear()

        async def free(context: RunContext) -> None:
            if context.prompt.startswith("other"):
                await hold(context)

        last = Small(what=free)
        async with open_embedded(Handle(store), runners=[last], max_concurrency=1) as client:
            assert first.run is not None
            assert other.run is not None
            with anyio.fail_after(TIMEOUT_S):
                while not started:
                    await anyio.sleep(0.001)
            waiting = await client.get_run(first.run.id)
            assert (waiting.status, waiting.attempt) == (RunStatus.QUEUED, 2)
            urgent = await client.send_message(session.id, "urgent", when_busy="interrupt")
            assert (await client.get_run(first.run.id)).status is RunStatus.CANCELED
            await client.cancel_run(other.run.id)
            await end_of(client, urgent.run)
            await end_of(client, queued.run)
    assert last.prompts[1:] == ["urgent", "queued"]


def test_runners_declare_their_input_limits() -> None:
    argv = ("agent", "--prompt=é{prompt}")
    by_argument = CommandRunner("c", argv, prompt="argument")
    assert by_argument.capabilities.max_input == InputLimit(
        size=MAX_ARGUMENT - len("--prompt=é".encode())
    )
    again = ("agent", "--resume={thread}:{prompt}")
    resuming = CommandRunner("c", argv, prompt="argument", resume_argv=again)
    assert resuming.capabilities.max_input == InputLimit(
        size=MAX_ARGUMENT - len("--resume=:") - MAX_THREAD_ID
    )
    assert (
        CommandRunner("c", ("agent",), prompt="argument").capabilities.max_input.size
        == MAX_ARGUMENT
    )
    assert CommandRunner("c", ("agent",)).capabilities.max_input == InputLimit()
    for runner in (CodexExecRunner(), CodexAppServerRunner()):
        assert runner.capabilities.max_input.characters == 1_048_575
    for live in (ClaudeRunner().capabilities, AcpRunner(argv=("agent",)).capabilities):
        assert (live.max_input.characters or 0) > MAX_TEXT  # no message is refused


def test_text_is_cut_to_the_input_limit_at_a_character() -> None:
    for limit in (InputLimit(size=101), InputLimit(characters=60, size=100)):
        short = cut_to_limit("é" * 200, limit, "more elsewhere")
        assert limit.excess(short) is None
        assert short.endswith("[more elsewhere]")
        assert cut_to_limit("é" * 30, limit, "more elsewhere") == "é" * 30
    assert count_fitting([], InputLimit(characters=1)) == 0
