"""More changes and streams than the daemon can take: they are refused, and those that came before are served."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from serving import Serving, serving, sse_reader, until

from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.engine.calls import MUTATIONS
from agentd.admission import RETRY_S, Admission
from agentd.lockout import Peer

pytestmark = pytest.mark.anyio

TOKENS = ("correct-horse-battery-staple", "another" * 5)
CREATE = b"POST /sessions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n"


class Held:
    """Holds each new session until it is released, in the order in which they came."""

    def __init__(self) -> None:
        self.count = 0
        self.release = anyio.Event()

    def wrapped(self, create: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def held(*values: Any) -> Any:
            self.count += 1
            await self.release.wait()
            return await create(*values)

        return held


@contextmanager
def new_sessions_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held()
    with monkeypatch.context() as patch:
        patch.setitem(MUTATIONS, "create_session", held.wrapped(MUTATIONS["create_session"]))
        yield held


@asynccontextmanager
async def full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Serving, Held, list[int]]]:
    """Yield a daemon with two changes in progress, which is all it takes, and the answers to them."""
    answers: list[int] = []

    async def create(server: Serving) -> None:
        answers.append((await server.client.post("/sessions")).status_code)

    with new_sessions_held(monkeypatch) as held:
        async with (
            serving(tmp_path, max_changes=2) as server,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(2):
                tasks.start_soon(create, server)
            await until(lambda: held.count == 2, "two changes are in progress")
            yield server, held, answers
            held.release.set()


async def test_a_change_too_many_is_refused_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with full(tmp_path, monkeypatch) as (server, held, answers):
        refused = await server.client.post("/sessions")
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == str(RETRY_S)
        assert refused.json()["error"]["details"] == {"max_changes": 2, "retry_after_s": RETRY_S}
        assert held.count == 2
        # Reads are not limited.
        assert (await server.client.get("/sessions")).json()["sessions"] == []
        held.release.set()
        await until(lambda: answers == [201, 201], "the others are made")
        assert (await server.client.post("/sessions")).status_code == 201


async def test_a_caller_that_ignores_the_refusal_is_not_read_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        full(tmp_path, monkeypatch) as (server, _, _),
        await anyio.connect_tcp(*server.address) as caller,
    ):
        began = anyio.current_time()
        for _ in range(2):
            await caller.send(CREATE)
            with anyio.fail_after(45):
                answer = b""
                while b"max_changes" not in answer:
                    answer += await caller.receive()
            assert answer.startswith(b"HTTP/1.1 503 ")
        assert anyio.current_time() - began >= RETRY_S


def test_calls_of_agents_at_work_are_counted_but_not_refused() -> None:
    admission, agent = Admission(1), Principal.of_run("run_1", 1, "ses_1")
    with (
        admission.change(agent, Peer()),
        admission.change(agent, Peer()),
        pytest.raises(Unavailable),
        admission.change(LOCAL, Peer(is_forwarded=True)),
    ):
        pass
    with admission.change(LOCAL, Peer()):
        pass


async def test_number_of_streams_of_all_principals_is_limited(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=TOKENS, max_all_streams=1) as server:
        other = {"Authorization": f"Bearer {TOKENS[1]}"}
        path = f"/stream?sessionId={await server.session()}"
        async with sse_reader(server.client, path) as frames:
            await anext(frames)
            refused = await server.client.get(path, headers=other)
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.json()["error"]["details"]["streams"] == 1
        await until(lambda: server.readers == 0, "the stream is over")
        async with sse_reader(server.client, path, headers=other) as theirs:
            await anext(theirs)
