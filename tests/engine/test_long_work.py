"""Work on long values shortens the thread switch interval, so that the event loop stays responsive."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent_orchestrator import Outcome, RunContext, open_embedded
from agent_orchestrator.long_work import SHORT_TURN_S, run_long, short_turns
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.wire import long_json

USUAL_S = 0.004


@pytest.fixture(autouse=True)
def usual_switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL_S)
    yield
    sys.setswitchinterval(before)


@pytest.mark.anyio
async def test_switch_interval_is_short_while_a_long_value_is_handled() -> None:
    assert await run_long(sys.getswitchinterval) == pytest.approx(SHORT_TURN_S, abs=1e-5)
    assert sys.getswitchinterval() == pytest.approx(USUAL_S, abs=1e-5)


@pytest.mark.anyio
async def test_switch_interval_stays_short_until_the_last_call_ends() -> None:
    ends = [threading.Event(), threading.Event()]
    begun = threading.Barrier(3)

    def wait(end: threading.Event) -> None:
        begun.wait(60)
        end.wait(60)

    async def handle(end: threading.Event, ended: anyio.Event) -> None:
        await run_long(wait, end)
        ended.set()

    first, second = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle, ends[0], first)
        tasks.start_soon(handle, ends[1], second)
        await anyio.to_thread.run_sync(begun.wait, 60)
        ends[0].set()
        await first.wait()
        assert sys.getswitchinterval() == pytest.approx(SHORT_TURN_S, abs=1e-5)
        ends[1].set()
        await second.wait()
        assert sys.getswitchinterval() == pytest.approx(USUAL_S, abs=1e-5)


@pytest.mark.anyio
async def test_switch_interval_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="bad"):
        await run_long(_fail)
    assert sys.getswitchinterval() == pytest.approx(USUAL_S, abs=1e-5)


def _fail() -> None:
    raise ValueError("bad")


def test_shorter_switch_interval_is_kept() -> None:
    sys.setswitchinterval(SHORT_TURN_S / 5)
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(SHORT_TURN_S / 5, abs=1e-5)


@pytest.mark.anyio
async def test_a_long_message_of_an_agent_is_recorded_without_decoding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was decoded on the event loop for its last line, which took seconds of a text of 50 MB."""
    sizes: list[int] = []
    decode = long_json.loads

    def loads(text: bytes) -> Any:
        sizes.append(len(text))
        return decode(text)

    monkeypatch.setattr(long_json, "loads", loads)

    async def agent(context: RunContext) -> Outcome:
        await context.emit("agent.message", {"text": "x" * 100_000 + "\nthe last line\n"})
        return Outcome("done")

    runner = FunctionRunner("agent", agent)
    async with open_embedded(tmp_path / "data.db", runners=[runner]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        with anyio.fail_after(60):
            assert (await client.wait_run(sent.run.id)).run.status == "completed"
        assert sizes == []
