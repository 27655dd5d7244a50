"""An observer is called at each attempt's start and end, and for each of its events."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field

from agent_orchestrator import (
    AgentFailed,
    Client,
    FunctionRunner,
    Outcome,
    RunContext,
    open_embedded,
)
from agent_orchestrator.domain.model import Run, Session

pytestmark = pytest.mark.anyio


@define
class Diary:
    entries: list[tuple[Any, ...]] = field(factory=list)

    def started(self, run: Run, session: Session) -> None:
        assert run.session_id == session.id
        self.entries.append(("started", run.id, run.attempt, str(run.status)))

    def emitted(self, run: Run, event_type: str, data: Mapping[str, Any]) -> None:
        self.entries.append(("emitted", run.id, event_type, data["text"]))

    def ended(self, run: Run, after: Run | None) -> None:
        assert after is not None
        assert after.id == run.id
        self.entries.append(("ended", run.id, run.attempt, str(after.status)))


async def agent(context: RunContext) -> Outcome:
    await context.emit("agent.message", {"text": context.prompt})
    if context.prompt == "fail":
        raise AgentFailed("provider_error", "no")
    if context.prompt == "stay":
        await anyio.sleep_forever()
    return Outcome(context.prompt)


async def spoken(client: Client, session_id: str, text: str, *, after: int) -> int:
    """Wait until an agent has emitted a text and return the event's ``seq``."""
    with anyio.fail_after(45):
        async with client.events(session_id, cursor=after, follow=True) as events:
            async for event in events:
                if event.event_type == "agent.message" and event.data["text"] == text:
                    return event.seq
    raise AssertionError


async def test_observer_is_called_in_order(tmp_path: Path) -> None:
    diary = Diary()
    runners = [FunctionRunner("agent", agent)]
    path = tmp_path / "data.db"
    async with open_embedded(path, runners=runners, observers=(diary,)) as client:
        session = await client.create_session()
        expected: list[tuple[Any, ...]] = []
        for text, end in (("work", "completed"), ("fail", "failed")):
            sent = await client.send_message(session.id, text)
            assert sent.run is not None
            await client.wait_run(sent.run.id)
            expected += [
                ("started", sent.run.id, 1, "running"),
                ("emitted", sent.run.id, "agent.message", text),
                ("ended", sent.run.id, 1, end),
            ]
        sent = await client.send_message(session.id, "stay")
        assert sent.run is not None
        seq = await spoken(client, session.id, "stay", after=0)
    # Closing the engine queues the run again; the observer is called for that, too.
    expected += [
        ("started", sent.run.id, 1, "running"),
        ("emitted", sent.run.id, "agent.message", "stay"),
        ("ended", sent.run.id, 1, "queued"),
    ]
    assert diary.entries == expected
    async with open_embedded(path, runners=runners, observers=(diary,)) as client:
        await spoken(client, session.id, "stay", after=seq)
        await client.cancel_run(sent.run.id)
        await client.wait_run(sent.run.id)
    assert diary.entries[-1] == ("ended", sent.run.id, 2, "canceled")
    assert diary.entries[len(expected)] == ("started", sent.run.id, 2, "running")
