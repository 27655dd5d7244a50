"""How runs are routed, fenced, bounded and recorded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from agent_orchestrator import (
    AgentFailed,
    Availability,
    Client,
    EnvPolicy,
    Outcome,
    ProviderConfig,
    Routing,
    RunContext,
    RunStatus,
    open_embedded,
)
from agent_orchestrator.domain.errors import ConfigError, Unavailable
from agent_orchestrator.domain.events import InvalidEvent
from agent_orchestrator.domain.model import MANUAL, Usage
from agent_orchestrator.engine import EngineConfig, Orchestrator
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations.messages import SEND_MESSAGE, SendMessage
from agent_orchestrator.operations.sessions import CREATE_SESSION as CREATE
from agent_orchestrator.operations.sessions import CreateSession
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.scripted import ScriptedRunner
from agent_orchestrator.wire import strict_json

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@define
class Absent:
    """A runner whose agent is not installed."""

    name: str = "absent"
    tried: int = 0

    async def probe(self, env: Mapping[str, str]) -> Availability:
        return Availability(available=False, reason="absent is not installed")

    async def run(self, context: RunContext) -> Outcome:
        self.tried += 1
        return Outcome("never")


@define
class Late:
    """A runner that finds its agent unavailable at the start, or after it has begun."""

    name: str = "late"
    begins: bool = False

    async def run(self, context: RunContext) -> Outcome:
        if self.begins:
            await context.delivered()
        raise AgentFailed("provider_unavailable", "gone since")


async def test_fallback_is_used_before_an_agent_began_and_is_recorded() -> None:
    absent, scripted = Absent(), ScriptedRunner()
    routing = Routing("absent", {"absent": ("late", "scripted")})
    async with open_embedded(":memory:", runners=[absent, Late(), scripted], routing=routing) as c:
        session = await c.create_session()
        sent = await c.send_message(session.id, "say hi")
        assert sent.run is not None
        run = (await c.wait_run(sent.run.id)).run
        log = [event async for event in c.events(session.id)]
    assert (run.status, run.provider) == (RunStatus.COMPLETED, "scripted")
    assert absent.tried == 0
    errors = [event.data for event in log if event.event_type == "run.error"]
    assert [(one["provider"], one["fallback"]) for one in errors] == [
        ("absent", "late"),
        ("late", "scripted"),
    ]


async def test_default_provider_is_the_first_preferred_one_that_is_ready() -> None:
    store = MemoryStore()
    absent = Absent()
    routing = Routing("absent", prefer=("absent", "scripted"))
    async with open_embedded(store, runners=[absent, ScriptedRunner()], routing=routing) as client:
        session = await client.create_session()
        chosen = await client.create_session(provider="absent")
        run = (await client.send_message(session.id, "say hi")).run
        assert run is not None
        assert (await client.wait_run(run.id)).run.provider == "scripted"
        defaults = {one.name: one.default for one in (await client.status()).providers}
    assert (session.provider, chosen.provider) == ("scripted", "absent")
    assert defaults == {"absent": False, "scripted": True}


async def test_run_fails_with_the_first_preferred_provider_if_none_is_ready() -> None:
    routing = Routing("absent", prefer=("absent", "other"))
    other = Absent("other")
    async with open_embedded(":memory:", runners=[other, Absent()], routing=routing) as client:
        session = await client.create_session()
        run = (await client.send_message(session.id, "say hi")).run
        assert run is not None
        error = (await client.wait_run(run.id)).run.error
    assert session.provider == "absent"
    assert error is not None
    assert error.message == "absent is not installed"


@pytest.mark.parametrize(
    ("runner", "code"),
    [(Absent(), "provider_unavailable"), (Late(begins=True), "provider_unavailable")],
)
async def test_no_fallback_is_used_after_an_agent_began_or_without_a_route(
    runner: Any, code: str
) -> None:
    routes = {"late": ("scripted",)}
    scripted = ScriptedRunner()
    routing = Routing(runner.name, routes if runner.name == "late" else {})
    async with open_embedded(":memory:", runners=[runner, scripted], routing=routing) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "say hi")
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id)).run
    assert run.error is not None
    assert (run.status, run.error.code) == (RunStatus.FAILED, code)
    assert scripted.prompts == []


@define
class Keeping:
    """A runner with its own thread; its agent may be unavailable."""

    name: str
    gone: bool = False
    went_on: list[str | None] = field(factory=list)

    async def probe(self, env: Mapping[str, str]) -> Availability:
        return Availability(available=not self.gone, reason="gone")

    async def run(self, context: RunContext) -> Outcome:
        self.went_on.append(context.thread and context.thread.id)
        await context.set_thread(f"of {self.name}")
        return Outcome("done")


async def test_each_provider_of_a_session_resumes_its_own_thread() -> None:
    usual, stand_in = Keeping("usual"), Keeping("stand-in")
    routing = Routing("usual", {"usual": ("stand-in",)})
    async with open_embedded(":memory:", runners=[usual, stand_in], routing=routing) as client:
        session = await client.create_session()
        for is_gone in (False, True, False, True):
            usual.gone = is_gone
            sent = await client.send_message(session.id, "go on")
            assert sent.run is not None
            run = (await client.wait_run(sent.run.id)).run
            assert run.status == RunStatus.COMPLETED
    assert usual.went_on == [None, "of usual"]
    assert stand_in.went_on == [None, "of stand-in"]


@define
class Inspect:
    """Records its contexts."""

    name: str = "inspect"
    seen: list[RunContext] = field(factory=list)

    async def run(self, context: RunContext) -> Outcome:
        self.seen.append(context)
        return Outcome("")


async def test_an_agent_gets_the_environment_its_provider_allows() -> None:
    environ = {
        "PATH": "/bin",
        "OPENAI_API_KEY": "k",
        "AGENTD_AUTH_TOKEN": "secret",
        "AGENTCTL_AUTH_TOKEN": "secret",
        TAG_VARIABLE: "outer",
    }
    policies: Mapping[str, EnvPolicy] = {
        "all": EnvPolicy(),
        "none": EnvPolicy("none", {"A": "1"}),
        "some": EnvPolicy(("PATH", "MISSING", "AGENTD_AUTH_TOKEN")),
    }
    runner = Inspect()
    providers = {name: ProviderConfig(runner, "x", env=env) for name, env in policies.items()}
    async with open_embedded(
        ":memory:",
        providers=providers,
        routing=Routing("all"),
        environ=environ,
        url="http://127.0.0.1:1",
    ) as client:
        session = await client.create_session()
        for name in policies:
            sent = await client.send_message(session.id, "x", provider=name)
            assert sent.run is not None
            await client.wait_run(sent.run.id)
    assert "secret" not in {value for context in runner.seen for value in context.env.values()}
    own = {f"AGENTCTL_{name}" for name in ("RUN_ID", "SESSION_ID", "URL", "AUTH_TOKEN")}
    own.add(TAG_VARIABLE)
    kept = [set(context.env) - own for context in runner.seen]
    assert kept == [{"PATH", "OPENAI_API_KEY"}, {"A"}, {"PATH"}]
    assert len({context.env[TAG_VARIABLE] for context in runner.seen}) == 3
    assert {context.env["AGENTCTL_URL"] for context in runner.seen} == {"http://127.0.0.1:1"}
    assert all("secret" not in context.env.values() for context in runner.seen)


async def written(client: Client, session_id: str) -> list[int]:
    """Return the events that the agent does not write, as it may still add some."""
    return [
        event.seq
        async for event in client.events(session_id)
        if event.event_type in ("message.created", "run.queued")
    ]


async def test_message_is_refused_and_not_stored_if_the_queue_is_full() -> None:
    async with open_embedded(
        ":memory:", runners=[ScriptedRunner()], max_concurrency=1, max_queue=2
    ) as client:
        session = await client.create_session()
        await client.send_message(session.id, "hold")
        with anyio.fail_after(45):
            while (await client.status()).queue_counts.running_count == 0:
                await anyio.sleep(0.01)
        for _ in range(2):
            await client.send_message(session.id, "say x")
        before = await written(client, session.id)
        with pytest.raises(Unavailable) as refusal:
            await client.send_message(session.id, "say x", idempotency_key="k")
        assert refusal.value.retry_after_s > 0
        assert await written(client, session.id) == before
        await client.send_message(session.id, "by hand", provider=MANUAL)


@define
class Flood:
    """Emits without ever waiting for anything else."""

    name: str = "flood"
    count: int = 5_000

    async def run(self, context: RunContext) -> Outcome:
        for number in range(self.count):
            await context.emit("agent.message", {"text": str(number)})
        return Outcome("done")


async def test_many_events_are_stored_in_order(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "d.db", runners=[Flood()]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id, timeout_s=60)).run
        log = [event async for event in client.events(session.id)]
        assert [event async for event in client.events()] == log
    assert run.status is RunStatus.COMPLETED
    texts = [event.data["text"] for event in log if event.event_type == "agent.message"]
    assert texts == [str(number) for number in range(5_000)]
    assert log[-1].event_type == "run.completed"
    assert [event.seq for event in log] == list(range(1, len(log) + 1))


def nested(levels: int) -> Any:
    value: Any = 1
    for number in range(levels):
        value = [value] if number % 2 else {"k": value}
    return value


def unreadable() -> list[Any]:
    """Return values that Python can write as JSON and that clients refuse to read."""
    return [
        nested(400),  # the data itself is one more
        nested(499),
        nested(900),
        10**100,
        [-(10**100)],
        {1: "a", "1": "b"},
        {None: "a", "null": "b"},
    ]


@define
class Forger:
    """Emits what no runner may."""

    name: str = "forger"

    async def run(self, context: RunContext) -> Outcome:
        bad: list[tuple[str, Any]] = [
            ("run.completed", {}),
            ("agent.message", {"text": float("nan")}),
            ("agent.message", {"text": "\ud800"}),
            ("agent.message", {"text": object()}),
            ("agent.message", ["text"]),
            *[("agent.message", {"text": "x", "more": more}) for more in unreadable()],
            *[("agent.message", {"text": "x" * 100_000, "more": more}) for more in unreadable()],
        ]
        for event_type, data in bad:
            with pytest.raises(InvalidEvent):
                await context.emit(event_type, data)
        for more in unreadable():
            with pytest.raises(InvalidEvent):
                await context.set_thread("t", {"more": more})
        odd: Any
        for odd in (None, 1, b"t", ["t"], {"id": "t"}, "", " ", "a\0b", "t" * 1_025):
            with pytest.raises(InvalidEvent, match="thread:"):
                await context.set_thread(odd)
        for odd in (1, "state", [], [("a", 1)], b"{}"):
            with pytest.raises(InvalidEvent, match="thread:"):
                await context.set_thread("t", odd)
        for odd in (
            *(Usage(input_tokens=10**100), Usage(2**63), Usage(-1), Usage(cost_usd=-0.5)),
            *(None, {}, Usage("1")),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidEvent):
                await context.report_usage(odd)
        return Outcome("caught")


@pytest.mark.parametrize(
    ("outcome", "field"),
    [
        (Outcome("x", 2**63), "Outcome.exit_code"),
        (Outcome("x", "1"), "Outcome.exit_code"),  # type: ignore[arg-type]
        (Outcome("x", exit_code=True), "Outcome.exit_code"),
        (Outcome(None), "Outcome.text"),  # type: ignore[arg-type]
    ],
)
async def test_outcome_with_wrong_types_fails_the_run_and_names_the_field(
    outcome: Outcome, field: str
) -> None:
    class Odd:
        name = "odd"

        async def run(self, context: RunContext) -> Outcome:
            return outcome

    async with open_embedded(":memory:", runners=[Odd()]) as client:
        started = await client.start_session("go")
        run = (await client.wait_run(started.run.id)).run
    assert run.error is not None
    assert (run.error.code, field in run.error.message) == ("agent_crashed", True)


class Chatty(MemoryStore):
    """Delays each commit until the agent has emitted another event."""

    said = 0
    is_talking = False

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        before = self.said
        while self.is_talking and self.said == before:
            await anyio.lowlevel.checkpoint()
        return await super().transact(change, reserve=reserve)


async def test_stream_of_events_does_not_delay_other_writes_of_its_run() -> None:
    store = Chatty()
    done = anyio.Event()
    most = 500

    async def talk(context: RunContext) -> None:
        store.is_talking = True
        try:
            while not done.is_set() and store.said < most:
                await context.emit("agent.message", {"text": str(store.said)})
                store.said += 1
        finally:
            store.is_talking = False

    async def agent(context: RunContext) -> str:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk, context)
            while store.said < 3:
                await anyio.lowlevel.checkpoint()
            await context.set_thread("t-1")
            done.set()
        return str(store.said)

    async with open_embedded(store, runners=[FunctionRunner("talker", agent)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "talk")
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id, timeout_s=60)).run
    assert run.result is not None, run.error
    assert int(run.result.text) < most


async def test_runner_cannot_emit_invalid_or_reserved_events() -> None:
    async with open_embedded(":memory:", runners=[Forger()]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id)).run
        log = [event async for event in client.events(session.id)]
    assert run.result is not None, run.error
    assert "agent.message" not in [event.event_type for event in log]


@define
class Stubborn:
    """Emits an event after it was stopped."""

    name: str = "stubborn"
    started: anyio.Event = field(factory=anyio.Event)
    stopped: anyio.Event = field(factory=anyio.Event)
    late: list[BaseException] = field(factory=list)

    async def run(self, context: RunContext) -> Outcome:
        self.started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self.stopped.wait()
                await context.emit("agent.message", {"text": "too late"})


@pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.RUNNING])
async def test_writes_of_an_earlier_attempt_are_refused(status: RunStatus) -> None:
    """The fence: the run goes to another attempt while the first one's worker still writes.

    Also when another worker has that attempt already.
    """
    runner = Stubborn()
    providers = {"stubborn": ProviderConfig(runner, "x")}
    config = EngineConfig(
        providers=providers, routing=Routing("stubborn"), max_concurrency=1, host=this_host()
    )
    store = MemoryStore()
    async with store, Orchestrator(store, config) as engine:
        session = (await engine.call(CREATE, CreateSession())).answer.session
        sent = (await engine.call(SEND_MESSAGE, SendMessage(session.id, "go"))).answer
        assert sent.run is not None
        run_id = sent.run.id
        await runner.started.wait()

        def move_on(tx: Any) -> None:
            from attrs import evolve

            run = tx.run(run_id)
            tx.put_run(evolve(run, attempt=2, status=status))

        await engine.pool.stop_starting()
        await store.transact(move_on)
        engine.pool.release("test")
        runner.stopped.set()
        with anyio.fail_after(45):
            await engine.pool.wait_idle()
        run = await store.read(lambda view: view.run(run_id))
        events = await store.read(lambda view: view.events(session.id, after=0, limit=100))
    assert run is not None
    assert (run.status, run.attempt) == (status, 2)
    assert "agent.message" not in [event.event_type for event in events]
    assert [event.event_type for event in events].count("run.queued") == 1


@pytest.mark.parametrize(
    ("routing", "place"),
    [
        (Routing("nobody"), "routing.default"),
        (Routing("scripted", prefer=("scripted", "nobody")), "routing.prefer"),
        (Routing("scripted", {"scripted": ("nobody",)}), "routing.fallback.scripted"),
        (Routing("scripted", {"nobody": ("scripted",)}), "routing.fallback.nobody"),
        (Routing("scripted", {"scripted": (MANUAL,)}), "routing.fallback.scripted"),
        (Routing("scripted", {"scripted": ("scripted",)}), "routing.fallback.scripted"),
    ],
)
async def test_route_to_an_unusable_provider_is_a_configuration_error(
    routing: Routing, place: str
) -> None:
    with pytest.raises(ConfigError, match=place):
        async with open_embedded(":memory:", runners=[ScriptedRunner()], routing=routing):
            pass


async def test_closed_event_readers_leave_no_subscription() -> None:
    store = MemoryStore()
    providers = {"scripted": ProviderConfig(ScriptedRunner(), "x")}
    config = EngineConfig(providers=providers, routing=Routing("scripted"), host=this_host())
    from agent_orchestrator import Client

    async with store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await client.create_session()
        await anyio.wait_all_tasks_blocked()  # the engine's own tasks have subscribed
        before = len(engine.core.notifier)
        for _ in range(50):
            async with client.events(session.id, follow=True) as events:
                await anext(events)
            assert [event async for event in client.events()]
            await client.list_events(session.id, cursor=1, wait_s=0.001)
        assert len(engine.core.notifier) == before


@pytest.mark.parametrize(
    "settings", [{"max_queue": 0}, {"max_queue": 10**30}, {"max_concurrency": -1}]
)
async def test_setting_out_of_bounds_is_a_configuration_error(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        async with open_embedded(":memory:", runners=[ScriptedRunner()], **settings):
            pass


async def test_an_event_larger_than_clients_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(strict_json, "MAX_STORED_SIZE", 200_000)
    monkeypatch.setattr(strict_json, "MAX_STORED_VALUES", 2_000)

    async def say_much(context: RunContext) -> str:
        for more in ("x" * 200_000, [[]] * 2_000, {str(n): 0 for n in range(2_000)}):
            with pytest.raises(InvalidEvent, match="more than"):
                await context.emit("agent.message", {"text": "x", "more": more})
        await context.emit("agent.message", {"text": "x" * 199_000, "more": [0] * 300})
        return "caught"

    async with open_embedded(":memory:", runners=[FunctionRunner("much", say_much)]) as client:
        session = await client.create_session(provider="much")
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id)).run
        assert run.result is not None
        assert run.result.text == "caught"


@pytest.mark.parametrize("unit", ["x", "\x01", "中"])
async def test_result_larger_than_clients_read_fails_the_run(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "MAX_STORED_SIZE", 600_000)
    most = (600_000 - 2) // (6 if unit == "\x01" else len(unit.encode()))

    sizes = iter((most, most + 1))

    class Large(FunctionRunner):
        async def run(self, _: RunContext) -> Outcome:
            return Outcome(unit * next(sizes))

    async def nothing(_: RunContext) -> str:
        return ""

    async with open_embedded(":memory:", runners=[Large("much", nothing)]) as client:
        session = await client.create_session(provider="much")
        ended = []
        for _ in range(2):
            sent = await client.send_message(session.id, "go")
            assert sent.run is not None
            ended.append((await client.wait_run(sent.run.id)).run)
        assert ended[0].result is not None
        assert ended[0].result.text == unit * most
        assert ended[1].result is None
        assert ended[1].error is not None
        assert "Outcome.text has more than 600,000 bytes" in ended[1].error.message
