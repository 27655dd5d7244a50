"""Turns of the real agents that are ended."""

from behaviours import behaviour
from cases import Case, Lasting, answer, ended, send, until

from agent_orchestrator import RunStatus


@behaviour("interrupt")
async def test_a_message_interrupts(case: Case) -> None:
    lasting = Lasting()
    async with case.client() as client:
        session = await case.session(client, sandbox="danger-full-access")
        run_id = await send(client, session, f"shell {lasting.command}\nsay unheard")
        await until(lasting.processes)
        queued = await send(client, session, "say queued")
        last = await send(client, session, "say last", when_busy="interrupt")
        assert answer(await ended(client, last)) == "last"
        assert lasting.processes() == []
        assert (await client.get_run(run_id)).status is RunStatus.CANCELED
        assert answer(await ended(client, queued)) == "queued"
