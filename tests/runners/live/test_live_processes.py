"""Processes that stay alive between runs, with a real program: leases, idle ends, replacement and death."""

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from attrs import define
from pids import is_gone

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.live.jsonrpc import JsonRpc
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import Answer
from agent_orchestrator.runners.live.pool import NotStarted, ProcessPool
from agent_orchestrator.runners.live.process import AgentProtocol, Launch, LiveProcess

pytestmark = pytest.mark.anyio

PROGRAM = Path(__file__).with_name("agent_program.py")
PROTOCOL = AgentProtocol("the agent", JsonRpc(), {"piece": ("delta",)})


@define(eq=False)
class Program(LiveProcess):
    fault: str = ""
    greeting_s: float = 20

    async def launch(self):
        return Launch((sys.executable, str(PROGRAM), self.fault), dict(os.environ))

    async def initialize(self):
        await self.request("hello", {}, self.greeting_s)

    def exit_failure(self, exit_code, stderr):
        return AgentFailed("agent_crashed", f"exit code {exit_code}: {stderr.strip()}")


def made(fault="", idle_s=60.0, **more):
    return Program(PROTOCOL, f"live-test.{os.urandom(8).hex()}", idle_s, fault, **more)


@asynccontextmanager
async def pool_of(**options):
    with anyio.fail_after(60):
        async with ProcessPool(**options) as pool:
            yield pool


async def until_gone(pid):
    while not is_gone(pid):
        await anyio.sleep(0.01)


async def test_a_process_serves_one_run_after_the_other():
    async with pool_of() as pool:
        process = pool.start(made())
        async with pool.lease(process):
            pid = process.pid
        async with pool.lease(process), pool.lease(process):
            assert process.leases == 2
            assert await process.request("hello", {}, 20) == {"pid": pid}
        assert pool.serving == [process]
    await process.ended.wait()
    assert is_gone(pid)


async def test_a_process_without_a_run_ends_when_it_was_idle_long_enough():
    async with pool_of() as pool:
        process = pool.start(made(idle_s=0.2))
        async with pool.lease(process):
            child = await process.request("child", {}, 20)
            await anyio.sleep(0.4)
            process.check()
            assert not is_gone(child)
        await process.ended.wait()
        assert process.failure.message == "the agent was idle"
        await until_gone(child)
        while pool.ending:
            await anyio.sleep(0.01)


async def test_the_processes_longest_without_a_run_end_first():
    async with pool_of(max_idle=1) as pool:
        async with pool.lease(pool.start(made())) as busy:
            async with pool.lease(pool.start(made())) as first:
                async with pool.lease(pool.start(made())) as second:
                    pass
                assert pool.serving == [busy, first, second]
            # The second has been without a run for longer.
            assert pool.serving == [busy, first]
            assert second.failure is not None
        assert pool.serving == [busy]
        assert first.failure is not None


async def test_the_process_of_a_key_is_replaced_after_its_end_if_it_is_not_usable():
    async with pool_of() as pool:
        async with pool.lease_by_key("k", lambda _: True, made) as first:
            pass
        async with pool.lease_by_key("k", lambda _: True, made) as again:
            assert again is first
        async with pool.lease_by_key("other", lambda _: True, made) as other:
            assert other is not first
        ended = first.ended
        async with pool.lease_by_key("k", lambda _: False, made) as second:
            assert ended.is_set()
            assert second is not first
            second.kill()
        async with pool.lease_by_key("k", lambda _: True, made) as third:
            assert third is not second


async def test_a_process_that_dies_fails_all_its_runs_and_is_cleaned_up():
    async with pool_of() as pool:
        process = pool.start(made())
        async with pool.lease(process):
            child = await process.request("child", {}, 20)
            with process.open_mailbox() as mailbox:
                process.notify("die", {})
                with pytest.raises(AgentFailed, match="exit code 3"):
                    await process.request("hello", {}, 20)
                with pytest.raises(AgentFailed):
                    process.submit("turn", {}, mailbox)
                assert (await mailbox.take()).method == "welcome"
                with pytest.raises(anyio.EndOfStream):
                    await mailbox.take()
        # The lease ends when all that the process started has ended.
        assert is_gone(child)


@pytest.mark.parametrize(
    ("fault", "code", "is_incompatible"),
    [
        ("refuses", "provider_unavailable", True),
        ("exits", "agent_crashed", False),
        ("mute", "provider_error", False),
    ],
)
async def test_a_process_that_does_not_start_fails_its_lease(fault, code, is_incompatible):
    async with pool_of() as pool:
        process = pool.start(made(fault, greeting_s=0.5 if fault == "mute" else 20))
        with pytest.raises(NotStarted) as caught:
            async with pool.lease(process):
                pytest.fail("it did not start")
        assert (caught.value.code, caught.value.is_incompatible) == (code, is_incompatible)
        assert process.ended.is_set()


async def test_the_answer_to_a_turn_comes_between_the_messages_around_it():
    async with pool_of() as pool, pool.lease(pool.start(made())) as process:
        with process.open_mailbox() as mailbox:
            process.submit("turn", {}, mailbox)
            heard = [await mailbox.take() for _ in range(4)]
    # What came before the run is there too.
    assert [getattr(one, "method", None) for one in heard] == ["welcome", "piece", None, "after"]
    assert isinstance(heard[2], Answer)
    assert heard[2].value() == {"reason": "done"}


async def test_a_question_reaches_the_run_and_without_one_is_refused():
    async with pool_of() as pool, pool.lease(pool.start(made())) as process:
        process.notify("ask", {})
        await process.request("hello", {}, 20)
        with process.open_mailbox() as mailbox:
            heard = await until_method(mailbox, "answered")
            assert "no run answers may_i" in heard.params["error"]["message"]
            process.notify("ask", {})
            process.respond(await until_method(mailbox, "may_i"), {"yes": True})
            heard = await until_method(mailbox, "answered")
            assert heard.params["answer"] == {"yes": True}


async def until_method(mailbox: Mailbox, method):
    while True:
        if (message := await mailbox.take()).method == method:
            return message


async def test_a_retired_process_ends_with_its_last_run():
    async with pool_of() as pool:
        process = pool.start(made())
        async with pool.lease(process):
            process.retire("it is out of date")
            assert await process.request("hello", {}, 20)
        assert process.ended.is_set()
        assert process.failure.message == "it is out of date"
