"""Images of messages: their agent gets them even after a restart, and they are deleted afterwards."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import anyio
import pytest
from attrs import define, field
from crashing import lose
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, Routing, RunStatus, open_embedded
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import InvalidRequest, Unavailable
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import Image, Run
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, images
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.runner import Availability, Outcome, RunContext
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
JPEG = b"\xff\xd8\xff\xe0" + b"\1" * 200
GIF = b"GIF89a" + b"\2" * 10
WEBP = b"RIFF\x10\0\0\0WEBP" + b"\3" * 10
LARGE = b"\x89PNG\r\n\x1a\n" + b"\5" * (5 * 2**20 - 8)

TIMEOUT_S = 60.0


@define
class Seeing:
    """A runner whose agents take images, and wait where a test says so."""

    name: str = "seeing"
    images: bool = True
    resumes: bool = False
    available: bool = True
    seen: list[tuple[str, list[bytes]]] = field(factory=list)
    at_work: anyio.Event = field(factory=anyio.Event)
    go: anyio.Event = field(factory=anyio.Event)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes, images=self.images, effort=self.images)

    async def probe(self, env: object) -> Availability:
        return Availability(self.available, "it is not there")

    async def run(self, context: RunContext) -> Outcome:
        self.seen.append((context.prompt, [one.data for one in context.images]))
        if "wait" in context.prompt:
            if "taken" in context.prompt:
                await context.delivered()
                await context.set_thread("t-1")
                await context.emit("agent.message", {"text": "at work"})
            async with context.steering():
                self.at_work.set()
                await self.go.wait()
        if "fail" in context.prompt:
            raise LookupError
        return Outcome("done")


Opened = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Return a function that opens the same store for one engine after another."""
    memory = MemoryStore()
    return lambda: memory if request.param == "memory" else SqliteStore(tmp_path / "d.db")


async def end_of(client: Client, run: Run | None) -> Run:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def kept(store: Store) -> int:
    return await store.read(lambda view: view.image_space())


async def test_agent_gets_the_images_of_its_message(opened: Opened) -> None:
    runner = Seeing()
    pictures = [PNG, JPEG, GIF, WEBP, PNG]
    described = tuple(
        Image(f"image/{kind}", len(data), sha256(data).hexdigest())
        for kind, data in zip(("png", "jpeg", "gif", "webp", "png"), pictures, strict=True)
    )
    store = opened()
    async with open_embedded(store, runners=[runner]) as client:
        started = await client.start_session("one", images=pictures)
        await end_of(client, started.run)
        sent = await client.send_message(started.session.id, "two", images=[JPEG])
        await end_of(client, sent.run)
        await end_of(client, await client.create_run(started.session.id, text="3", images=[GIF]))
        plain = await client.send_message(started.session.id, "four")
        await end_of(client, plain.run)
        listed = (await client.list_messages(started.session.id)).messages
        log = [event async for event in client.events(started.session.id)]
        assert await kept(store) == 0
    assert runner.seen == [("one", pictures), ("two", [JPEG]), ("3", [GIF]), ("four", [])]
    assert started.message is not None
    assert started.message.images == listed[0].images == described
    logged = [event.data for event in log if event.event_type == "message.created"]
    assert logged[0]["images"] == [
        {"media_type": one.media_type, "size": one.size, "digest": one.digest} for one in described
    ]
    assert "images" not in logged[3]


async def test_a_queued_message_has_its_images_after_a_restart(opened: Opened) -> None:
    first, second = Seeing(), Seeing()
    async with open_embedded(opened(), runners=[first], max_concurrency=1) as client:
        session = await client.create_session()
        held = await client.send_message(session.id, "wait", images=[PNG])
        queued = await client.send_message(session.id, "later", images=[JPEG])
        await first.at_work.wait()
    second.go.set()
    async with opened() as store:
        assert await kept(store) == len(PNG) + len(JPEG)
    store = opened()
    async with open_embedded(store, runners=[second], max_concurrency=1) as client:
        await end_of(client, held.run)
        await end_of(client, queued.run)
        assert await kept(store) == 0
    assert second.seen == [("wait", [PNG]), ("later", [JPEG])]


@pytest.mark.parametrize(
    ("text", "again"),
    [("wait", [PNG]), ("wait, taken", [])],
    ids=["not delivered", "in the conversation that goes on"],
)
async def test_images_are_given_again_with_their_message_after_a_crash(
    text: str, again: list[bytes]
) -> None:
    store, first, second = MemoryStore(), Seeing(resumes=True), Seeing(resumes=True)
    runs: list[Run | None] = []

    async def body(client: Client) -> None:
        session = await client.create_session()
        runs.append((await client.send_message(session.id, text, images=[PNG])).run)
        await first.at_work.wait()

    await lose(store, body, runners=[first])
    second.go.set()
    async with open_embedded(store, runners=[second]) as client:
        assert (await end_of(client, runs[0])).status is RunStatus.COMPLETED
        assert await kept(store) == 0
    assert [data for _, data in second.seen] == [again]


@pytest.mark.parametrize("end", ["canceled", "failed", "closed"])
async def test_images_are_deleted_however_a_run_ends(opened: Opened, end: str) -> None:
    runner = Seeing()
    store = opened()
    async with open_embedded(store, runners=[runner], max_concurrency=1) as client:
        session = await client.create_session()
        text = "wait and fail" if end == "failed" else "wait"
        sent = await client.send_message(session.id, text, images=[PNG])
        behind = await client.send_message(session.id, "behind", images=[PNG, GIF])
        await runner.at_work.wait()
        assert await kept(store) == len(PNG) + len(GIF)
        if end == "closed":
            await client.close_session(session.id, cascade=True)
        elif end == "canceled":
            assert behind.run is not None
            assert sent.run is not None
            await client.cancel_run(behind.run.id)
            assert await kept(store) == len(PNG)
            await client.cancel_run(sent.run.id)
        runner.go.set()
        await end_of(client, sent.run)
        await end_of(client, behind.run)
        assert await kept(store) == 0


async def test_a_message_with_images_does_not_steer(opened: Opened) -> None:
    runner = Seeing()
    store = opened()
    async with open_embedded(store, runners=[runner]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "wait")
        await runner.at_work.wait()
        queued = await client.send_message(session.id, "x", when_busy="steer", images=[PNG])
        assert sent.run is not None
        assert queued.run is not None
        assert queued.run.id != sent.run.id
        runner.go.set()
        await end_of(client, queued.run)
    assert runner.seen == [("wait", []), ("x", [PNG])]


async def test_image_sent_to_many_sessions_is_stored_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_STORED", len(LARGE) + len(PNG))
    runner = Seeing()
    store = opened()
    async with open_embedded(store, runners=[runner], max_concurrency=1) as client:
        runs = []
        for number in range(4):
            started = await client.start_session("wait", images=[LARGE])
            runs.append(started.run)
            assert await kept(store) == len(LARGE), number
        again = await client.send_message(started.session.id, "x", images=[PNG])
        with pytest.raises(Unavailable) as caught:
            await client.send_message(started.session.id, "x", images=[GIF])
        assert caught.value.details["max_bytes"] == images.MAX_STORED
        assert await kept(store) == images.MAX_STORED
        assert len((await client.list_messages(started.session.id)).messages) == 2
        runner.go.set()
        for run in [*runs, again.run]:
            await end_of(client, run)
        assert await kept(store) == 0
    assert [data for _, data in runner.seen] == [[LARGE]] * 4 + [[PNG]]


async def test_repeated_key_stores_no_further_image(opened: Opened) -> None:
    runner = Seeing()
    runner.go.set()
    store = opened()
    async with open_embedded(store, runners=[runner]) as client:
        session = await client.create_session()
        first = await client.send_message(session.id, "x", images=[PNG], idempotency_key="k")
        await end_of(client, first.run)
        again = await client.send_message(session.id, "x", images=[PNG], idempotency_key="k")
        assert again.message == first.message
        assert await kept(store) == 0
        with pytest.raises(Exception, match="key"):
            await client.send_message(session.id, "x", images=[JPEG], idempotency_key="k")


async def test_fallback_without_image_support_gets_no_message_with_images() -> None:
    config = EngineConfig(
        {
            "seeing": ProviderConfig(Seeing(available=False), "seeing"),
            "blind": ProviderConfig(Seeing("blind", images=False), "blind"),
        },
        Routing("seeing", {"seeing": ("blind",)}),
        host=this_host(),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await client.create_session()
        plain = await end_of(client, (await client.send_message(session.id, "x")).run)
        sent = await client.send_message(session.id, "x", images=[PNG])
        ended = await end_of(client, sent.run)
        with pytest.raises(InvalidRequest) as caught:
            await client.send_message(session.id, "x", provider="blind", images=[PNG])
    assert plain.status is RunStatus.COMPLETED
    assert ended.error is not None
    assert ended.error.code == "invalid_config"
    assert "images" in ended.error.message
    assert list(caught.value.details["fields"]) == ["images"]


def test_repr_of_an_image_does_not_contain_its_bytes() -> None:
    assert "x05" not in repr(ImageContent.of(LARGE))
