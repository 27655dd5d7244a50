"""Runners start their processes on the host of the engine that calls them."""

import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self

import pytest
from attrs import field, frozen

from agent_orchestrator import Outcome, RunContext, open_embedded
from agent_orchestrator.host import Process, ProcessSpec
from agent_orchestrator.hosts import current_host, this_host
from agent_orchestrator.hosts.linux.host import LinuxHost
from agent_orchestrator.ports.runner import Availability
from agent_orchestrator.runners.command import CommandRunner
from agent_orchestrator.runners.process import agent_process
from agent_orchestrator.runners.supervisor import UsesForkServer

pytestmark = pytest.mark.anyio

TRUE = [sys.executable, "-S", "-c", "print('yes')"]


@frozen
class Counted(LinuxHost):
    calls: list[str] = field(factory=list)

    async def __aenter__(self) -> Self:
        self.calls.append("enter")
        return await super().__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        self.calls.append("leave")
        await super().__aexit__(*exc)

    def open_process(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        self.calls.append(spec.argv[-1])
        return super().open_process(spec)


class Custom(UsesForkServer):
    """A runner as documented, without any code for hosts."""

    name = "custom"

    async def probe(self, env: Mapping[str, str]) -> Availability:
        async with agent_process([*TRUE, "probe"], cwd="/", env=env) as process:
            return Availability(await process.wait() == 0)

    async def run(self, context: RunContext) -> Outcome:
        async with agent_process([*TRUE, "run"], cwd="/", env=context.env) as process:
            [line] = [line.data.decode() async for line in process.lines()]
        return Outcome(line)


async def result(runner: Any, host: LinuxHost, cwd: Path) -> str | None:
    async with open_embedded(":memory:", runners=[runner], host=host, cwd=str(cwd)) as client:
        await client.status()
        session = await client.create_session()
        sent = await client.send_message(session.id, "x")
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id)).run
        return run.result and run.result.text


async def test_runner_starts_processes_on_the_host_of_its_engine(tmp_path: Path) -> None:
    host = Counted()
    assert await result(Custom(), host, tmp_path) == "yes"
    assert host.calls[0] == "enter"
    assert host.calls[-1] == "leave"
    assert set(host.calls) == {"enter", "probe", "run", "leave"}


async def test_command_runner_runs_version_argv_on_the_host_of_its_engine(tmp_path: Path) -> None:
    host = Counted()
    runner = CommandRunner("c", [*TRUE, "run"], version_argv=(*TRUE, "version"))
    assert await result(runner, host, tmp_path) == "yes"
    assert set(host.calls) == {"enter", "version", "run", "leave"}


async def test_engines_with_different_hosts_use_only_their_own(tmp_path: Path) -> None:
    one, other = Counted(), Counted("other")
    runner = Custom()
    async with (
        open_embedded(":memory:", runners=[runner], host=one, cwd=str(tmp_path)) as first,
        open_embedded(":memory:", runners=[runner], host=other, cwd=str(tmp_path)) as second,
    ):
        await second.status()
        assert (set(one.calls), set(other.calls)) == ({"enter"}, {"enter", "probe"})
        await first.status()
    assert one.calls == ["enter", "probe", "leave"]
    assert current_host() == this_host()
