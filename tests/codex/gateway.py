"""An agentd with a real agent, for tests that go through it."""

import json
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import anyio.to_thread
import psutil
import pytest
from driving import FORKS
from loops import ON_ONE_LOOP
from model_server import codex_env
from serving import Process, agentd, environment

from agent_orchestrator import Client, Run, connect

PATIENCE_S = 120.0

THROUGH_A_GATEWAY = [pytest.mark.anyio, pytest.mark.codex, ON_ONE_LOOP]
"""Marks of tests of what another process does: the loop that they themselves run on changes none of it,
and the client they ask with has its own tests on both."""


class Daemon:
    """An agentd that can be stopped and started again on its database."""

    def __init__(self, directory: Path, *arguments: str, config: str = "agentd.toml") -> None:
        self._directory = directory
        self._arguments = arguments
        self._config = config
        self._stack = ExitStack()

    def configure(self, settings: str) -> None:
        (self._directory / self._config).write_text(settings)

    def start(self) -> None:
        store = () if "--store" in self._arguments else ("--db", "data.db")
        self.daemon: Process = self._stack.enter_context(
            agentd(self._directory, "--config", self._config, *store, *self._arguments)
        )

    def stop(self) -> None:
        """End the daemon in good order."""
        self.daemon.signal(signal.SIGTERM)
        assert self.daemon.wait() == 0
        self._stack.close()

    def kill(self) -> None:
        self.daemon.signal(signal.SIGKILL)
        self.daemon.wait()

    def client(self):
        return connect(self.daemon.url)


class Gateway(Daemon):
    """An agentd with a provider of a real agent."""

    def __init__(
        self,
        directory: Path,
        command: str,
        home: Path,
        *arguments: str,
        name: str = "codex",
        env: Mapping[str, str] | None = None,
        runner: str = "codex-exec",
        sandbox: str = "danger-full-access",
        settings: str = "",
        config: str = "agentd.toml",
        **variables: str,
    ) -> None:
        super().__init__(directory, *arguments, config=config)
        self._name = name
        given = {**(codex_env(home) if env is None else env), **variables}
        values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in given.items())
        own = f"command = {json.dumps(command)}\nsandbox = {json.dumps(sandbox)}\n"
        self._provider = f"{own if command else ''}env = {{ set = {{ {values} }} }}\n{settings}\n"
        self.start(runner)

    def start(self, runner: str | None = None) -> None:
        """Start the daemon; with another runner, where one is given."""
        if runner is not None:
            self.configure(
                f"[providers.{self._name}]\nrunner = {json.dumps(runner)}\n{self._provider}"
            )
        super().start()


Gateways = Callable[..., Gateway]
"""Makes gateways that end with the test."""


async def turn(client: Client, session_id: str, text: str) -> Run:
    sent = await client.send_message(session_id, text)
    assert sent.run is not None
    reply = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
    assert not reply.timed_out
    return reply.run


async def by_command_line(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run an agentctl command against a daemon."""
    run = partial(
        FORKS.run,
        ["--url", url, *arguments],
        stdin=b"",
        cwd=Path.cwd(),
        env=environment(),
        timeout=PATIENCE_S,
    )
    done = await anyio.to_thread.run_sync(run)
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def marked(run_id: str) -> list[int]:
    """Return the live processes that bear the mark of one of the run's attempts."""
    found = []
    for process in psutil.process_iter():
        try:
            tag = process.environ().get("AGENT_ORCHESTRATOR_TAG", "")
            if tag.startswith(f"{run_id}.") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def family(pid: int) -> dict[psutil.Process, str]:
    """Return what descends from a process, each with its command line."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found[process] = " ".join(process.cmdline())
    return found
