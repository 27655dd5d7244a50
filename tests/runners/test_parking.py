"""What a runner hears when its run is stopped: whether it is parked, and so needs no process for now."""

import anyio
import pytest
from attrs import define, field

from agent_orchestrator import Outcome, open_embedded
from agent_orchestrator.domain.capabilities import Capabilities

pytestmark = pytest.mark.anyio


@define
class Asking:
    """A runner that asks, and keeps whether it was parked when it was stopped."""

    name: str = "asking"
    stops: list[bool] = field(factory=list)
    has_stopped: anyio.Event = field(factory=anyio.Event)

    @property
    def capabilities(self):
        return Capabilities(resume=True)

    async def run(self, context):
        await context.set_thread("t-1")
        await context.delivered()
        assert not context.is_parking
        try:
            await context.ask_parent("May I?", kind="approval_request")
        except anyio.get_cancelled_exc_class():
            self.stops.append(context.is_parking)
            self.has_stopped.set()
            raise
        return Outcome("told")


@pytest.mark.parametrize("is_parked", [True, False], ids=["parked", "canceled"])
async def test_a_runner_can_see_whether_its_run_is_parked(is_parked):
    runner = Asking()
    park_after_s = 0 if is_parked else 3600
    async with open_embedded(":memory:", runners=[runner], park_after_s=park_after_s) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "go")
        if not is_parked:
            await client.wait_run(sent.run.id, timeout_s=60, until="attention")
            await client.cancel_run(sent.run.id)
        with anyio.fail_after(45):
            await runner.has_stopped.wait()
    assert runner.stops == [is_parked]
