"""The clock is set by an hour or a day, either way, while the engine runs or between two starts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from attrs import define

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.domain.errors import IdempotencyConflict
from agent_orchestrator.domain.ids import SortableIds
from agent_orchestrator.engine import requests
from agent_orchestrator.testing.scripted import PROVIDER, ScriptedRunner

pytestmark = pytest.mark.anyio

JUMPS = [timedelta(days=-1), timedelta(hours=-1), timedelta(hours=1), timedelta(days=1)]


@define
class Clock:
    """The machine's clock, and how far somebody has set it."""

    jump: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.jump

    def nanoseconds(self) -> int:
        return int(self().timestamp() * 1e9)


def opened(path: Path, clock: Clock):  # type: ignore[no-untyped-def]
    return open_embedded(
        path, runners=[ScriptedRunner()], clock=clock, ids=SortableIds(clock.nanoseconds)
    )


async def talk(client: Client, session_id: str, key: str) -> str:
    sent = await client.send_message(session_id, "hello", idempotency_key=key)
    assert sent.run is not None
    await client.wait_run(sent.run.id, timeout_s=60)
    return sent.run.id


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("jump", JUMPS)
async def test_order_and_idempotency_keys_survive_a_clock_jump(
    tmp_path: Path, jump: timedelta, *, restart: bool
) -> None:
    clock = Clock()
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with opened(path, clock) as client:
            session = await client.create_session(provider=PROVIDER)
            ran = [await talk(client, session.id, f"a{number}") for number in range(3)]
            if not restart:
                clock.jump = jump
                ran += [await talk(client, session.id, f"b{number}") for number in range(3)]
        clock.jump = jump
        async with opened(path, clock) as client:
            ran += [await talk(client, session.id, f"c{number}") for number in range(3)]
            # A repeated key from before the jump gets the first answer.
            again = await client.send_message(session.id, "hello", idempotency_key="a0")
            assert again.run is not None
            assert again.run.id == ran[0]
            with pytest.raises(IdempotencyConflict):
                await client.send_message(session.id, "other", idempotency_key="a0")
            assert [run.id for run in (await client.list_runs()).runs] == ran == sorted(set(ran))
            messages = [one.id for one in (await client.list_messages(session.id)).messages]
            assert messages == sorted(set(messages))
            events = (await client.list_events(session.id, limit=1000)).events
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            # Times are those of the clock; the order is the log's.
            assert abs(events[-1].created_at - clock()) < timedelta(minutes=1)
            assert (await client.check_store()).findings == ()
            assert (await client.status()).uptime_s >= 0


@pytest.mark.parametrize("jump", JUMPS)
async def test_request_expires_by_the_changed_clock(
    tmp_path: Path, jump: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "LONGEST_PAUSE_S", 0.05)
    clock = Clock()
    with anyio.fail_after(60):
        async with opened(tmp_path / "data.db", clock) as client:
            session = await client.create_session(provider="manual")
            run = await client.create_run(session.id)
            await client.transition_run(run.id, "running")
            reply = await client.reply_parent(
                run.id, "may I?", request_kind="approval_request", expires_in_s=1800
            )
            assert reply.request is not None
            clock.jump = jump
            request = await client.get_request(
                reply.request.id, wait_s=0.5 if jump < timedelta(0) else 30
            )
            assert request.status == ("pending" if jump < timedelta(0) else "expired")
