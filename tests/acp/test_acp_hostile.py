"""The runner of ACP with an agent that says what no agent should say."""

import json
import sys
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from deciding import Deciding
from test_acp_runner import APPROVED, DENIED, context_for, failed, following, messages, of, run

from agent_orchestrator import open_embedded
from agent_orchestrator.engine import ProviderConfig
from agent_orchestrator.runners.acp import agents, runner, turn_driver, updates
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.updates import UpdateReader
from agent_orchestrator.runners.acp.usage import UsageMeter
from agent_orchestrator.runners.live import stopping

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).parent / "hostile_agent.py"

ROW = AcpAgent(argv=(), ask_mode="default")


@pytest.fixture
def hostile(monkeypatch):
    """Make runners of the hostile agent."""

    def make(settings=None, **row):
        monkeypatch.setitem(agents.AGENTS, "hostile", evolve(ROW, **row))
        argv = [sys.executable, "-S", str(AGENT), json.dumps(settings or {})]
        return runner.AcpRunner(name="hostile", argv=argv, tools=False)

    return make


@pytest.fixture
def record(tmp_path):
    def make(prompt, decisions=(), **more):
        return context_for(prompt, decisions, cwd=tmp_path, **more)

    return make


async def test_an_update_whose_kind_is_not_a_string_is_recorded(hostile, record):
    async with hostile() as one:
        context = record("odd_kinds")
        assert (await run(one, context)).text == "done"
    kinds = [data["kind"] for data in of(context, "backend.event")]
    assert kinds == ["[]", "{}", "5", "true", "1.5", "session/update", "x" * 256]


async def test_an_option_with_a_duplicate_id_is_not_chosen(hostile, record):
    async with hostile() as one:
        context = record("twin_options", [APPROVED])
        await run(one, context)
    assert context.questions == []
    assert json.loads(messages(context)[0]) == {
        "outcome": {"outcome": "selected", "optionId": "no"}
    }
    assert "only once" in of(context, "run.error")[0]["message"]


async def test_options_without_kinds_or_ids_are_not_chosen(hostile, record):
    async with hostile() as one:
        context = record("no_kinds", [APPROVED])
        await run(one, context)
    assert json.loads(messages(context)[0]) == {"outcome": {"outcome": "cancelled"}}


async def test_an_option_is_found_among_ten_thousand(hostile, record):
    async with hostile() as one:
        context = record("many_options", [APPROVED])
        await run(one, context)
    outcome = json.loads(messages(context)[0])["outcome"]
    assert outcome == {"outcome": "selected", "optionId": "once"}


class Slow(Deciding):
    """A run whose questions are denied when the agent has said something."""

    decide = DENIED

    async def ask_parent(self, *given, **more):
        await self.until(lambda one: "emit agent.message" in one.calls)
        return await super().ask_parent(*given, **more)


async def test_of_two_requests_with_one_id_the_second_is_refused(hostile, tmp_path):
    async with hostile() as one:
        context = Slow("twins", cwd=tmp_path)
        await run(one, context)
    assert [one["detail"]["command"] for one in context.questions] == ["first"]
    refused, answer = messages(context)
    assert refused == "refused with -32601"
    assert json.loads(answer)["outcome"]["optionId"] == "reject_once"


async def test_requests_beyond_a_hundred_are_refused(hostile, record):
    async with hostile() as one:
        context = record("asks 150", [APPROVED] * 200)
        context.decide = None  # nobody decides
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, context)
                await context.until(lambda _: any("refused 50" in one for one in messages(context)))
                scope.cancel()
    assert len(context.questions) == turn_driver._MAX_QUESTIONS


@pytest.mark.parametrize("prompt", ["after_end", "end_while_asking"])
async def test_a_request_that_the_end_of_the_turn_overtakes_is_answered(hostile, record, prompt):
    """The agent would wait for it in the next turn. If that has begun already, its people decide."""
    async with hostile(ask_mode=None) as one:
        context = record(prompt)
        await run(one, context)
        after = following(context, "late", [{"decision": "deny"}])
        [[number, told]] = json.loads((await run(one, after)).text)
        assert after.pid == context.pid
    assert number == 1000
    if after.questions:
        assert told == {"outcome": {"outcome": "selected", "optionId": "reject_once"}}
    else:
        assert told in (-32601, {"outcome": {"outcome": "cancelled"}})


async def test_an_agent_that_never_stays_in_its_mode_is_ended(hostile, record):
    async with hostile() as one:
        context = record("restless 50")
        failure = await failed(one, context)
        assert failure.code == "provider_error"
        assert "does not stay in the mode 'default'" in failure.message
        # It never did anything with the prompt, so another process was tried too.
        assert len(of(context, "run.error")) == 2 * turn_driver._MAX_RESTORED
        assert (await run(one, following(context, "hello"))).text == "hello"


async def test_a_flood_of_unrelated_messages_confirms_the_prompt(hostile, record):
    """Its output would be kept in memory for as long as it goes on."""
    async with hostile() as one:
        context = record("flood notification 1500 wait")
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, context)
                await context.until(lambda one: "emit backend.event" in one.calls)
                scope.cancel()
    assert context.calls.index("delivered") < context.calls.index("emit backend.event")


@pytest.mark.parametrize("session_id", ["", "  ", "a\0b", "x" * 2_000, 5, None, ["x"]])
async def test_a_session_without_a_valid_id_is_refused(hostile, record, session_id):
    async with hostile({"session": session_id}) as one:
        if session_id in (5, ["x"]):  # its JSON is a valid id
            assert (await run(one, record("hello"))).text == ""
            return
        failure = await failed(one, record("hello"))
    assert failure.code == "provider_error"
    assert "without a valid id" in failure.message


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "flood unknown 2000",
            "flood usage 2000",
            "flood mode 2000",
            "flood commands 2000",
            "flood other 2000",
        ),
        *("flood request 2000", "flood answer 2000", "flood chunk 2000", "flood call 2000"),
        *("flood output 2000", "flood text 2000", "metas 200 1000", "ids 200 1000"),
        *("calls 200 1000", "big chunk 10", "big unknown 10", "big kind 10", "big call 5"),
        *(
            "big id 20",
            "big diff 10",
            "big optionid 5",
            "big json 20",
            "big many 0.2",
            "big ask 10",
            "big askdiff 10",
        ),
    ],
)
async def test_floods_within_the_limits_are_accepted_and_the_next_turn_works(
    hostile, record, prompt
):
    async with hostile() as one:
        context = record(prompt, [APPROVED])
        await run(one, context)
        assert (await run(one, following(context, "hello"))).text == "hello"
    assert all(len(data.get("tool_id", "")) <= 256 for _, data in context.events)


@pytest.mark.parametrize("prompt", ["big stop 5", "big error 5", "big asklist 2", "big many 8"])
async def test_floods_beyond_the_limits_fail_the_run_and_the_next_turn_works(
    hostile, record, prompt
):
    async with hostile() as one:
        context = record(prompt, [APPROVED])
        assert (await failed(one, context)).code == "provider_error"
        assert (await run(one, following(context, "hello"))).text == "hello"


@pytest.mark.parametrize("moment", ["initialize", "session/new", "session/set_mode", "hello"])
@pytest.mark.parametrize("way", ["exit", "close", "kill"])
async def test_an_agent_that_ends_at_any_moment_fails_the_run(
    hostile, record, moment, way, monkeypatch
):
    monkeypatch.setattr("agent_orchestrator.runners.live.process._EXIT_S", 0.2)
    async with hostile({"ends_at": moment, "way": way}) as one:
        context = record("hello")
        failure = await failed(one, context)
    assert failure.code in ("agent_crashed", "provider_unavailable"), failure.message


async def test_a_silent_agent_times_out_and_the_next_run_works(hostile, monkeypatch):
    """As one whose model never answers. Its silence counts, whatever the provider's model does."""
    monkeypatch.setattr(stopping, "INTERRUPT_S", 0.3)
    one = hostile()
    provider = ProviderConfig(one, "hostile", silence_timeout_s=10.0)
    async with open_embedded(":memory:", providers={"hostile": provider}) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "hang")
        run = (await client.wait_run(sent.run.id, timeout_s=90)).run
        log = [event async for event in client.events(session.id)]
        assert one._pool.serving == []
        after = await client.send_message(session.id, "hello")
        assert (await client.wait_run(after.run.id, timeout_s=90)).run.result.text == "hello"
    assert (run.error.code, "silence_timeout_s" in run.error.message) == ("timeout", True)
    notes = [event.data["code"] for event in log if event.event_type == "run.error"]
    assert notes == ["agent_silent"]


def make_reader():
    return UpdateReader(ROW, UsageMeter("turn"))


def feed(reader, **fields):
    return reader.feed({"sessionId": "s", "update": fields})


def test_all_open_tool_calls_together_have_a_size_limit():
    reader, text = make_reader(), "x" * 2**20
    ended = []
    for number in range(200):
        events = feed(
            reader, sessionUpdate="tool_call", toolCallId=f"t{number}", rawInput={"text": text}
        )
        ended += [one.data["tool_id"] for one in events if one.event_type == "tool.completed"]
    assert ended == [f"t{number}" for number in range(len(ended))]
    assert (200 - len(ended)) * 2**20 <= updates._MAX_SIZE
    assert 200 - len(ended) > 100
    # Those that have ended are over, whatever else is said of them.
    assert feed(reader, sessionUpdate="tool_call_update", toolCallId="t0", rawInput={"a": 1}) == []
    reader.finish()
    assert reader._size == 0


def test_a_tool_call_that_grows_too_large_is_ended():
    reader, text = make_reader(), "x" * (60 * 2**20)
    names = ("title", "rawOutput", "name")
    events = [
        one
        for name in names
        for one in feed(reader, sessionUpdate="tool_call", toolCallId="t", **{name: text})
    ]
    assert [one.event_type for one in events] == ["tool.started", "tool.completed"]
    assert reader._size == 0
    for number in range(100):
        meta = {f"name-{number}": text}
        feed(reader, sessionUpdate="tool_call_update", toolCallId="u", _meta=meta)
    assert reader._size == 0


def test_the_output_of_a_command_is_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr("agent_orchestrator.runners.acp.tool_calls._MAX_OUTPUT", 10)
    reader = make_reader()
    for piece in ("abc", "defghi", "jkl", "m"):
        meta = {"terminal_output_delta": {"data": piece}}
        feed(reader, sessionUpdate="tool_call_update", toolCallId="t", _meta=meta)
    (ended,) = feed(reader, sessionUpdate="tool_call_update", toolCallId="t", status="completed")
    assert ended.data["output"] == "abcdefghij"
    assert reader._size == 0


def test_a_tool_call_with_a_long_id_stays_one_call():
    reader, name = make_reader(), "x" * 100_000
    feed(reader, sessionUpdate="tool_call", toolCallId=name, title="first")
    feed(reader, sessionUpdate="tool_call", toolCallId=name + "y", title="second")
    events = feed(reader, sessionUpdate="tool_call_update", toolCallId=name, status="completed")
    assert [one.data["name"] for one in events] == ["first", "first"]
    assert {len(one.data["tool_id"]) for one in events} == {64}
