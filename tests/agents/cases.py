"""What the tests of the suite do with an agent."""

import os
import secrets
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import psutil
from adapters import Agent
from gateway import Daemon
from model_server import ScriptedServer

from agent_orchestrator import Client, Event, Run, Session
from agent_orchestrator.domain.model import Request

PATIENCE_S = 120.0


@attrs.frozen
class World:
    daemon: Daemon
    models: Mapping[str, ScriptedServer[Any]]
    directory: Path
    variables: Mapping[str, Mapping[str, str]]

    def revive(self) -> None:
        """Start the daemon again that a failed test has left dead or stopped."""
        with suppress(ProcessLookupError):
            self.daemon.daemon.signal(signal.SIGCONT)
        if self.daemon.daemon.process.poll() is not None:
            self.daemon.start()


@attrs.frozen
class Case:
    """One test with one agent."""

    agent: Agent
    daemon: Daemon
    models: ScriptedServer[Any]
    workspace: Path
    _begun: int
    home: Path = Path()
    variables: Mapping[str, str] = attrs.field(factory=dict[str, str])

    @property
    def requests(self) -> list[Any]:
        """What this test's agent has asked the model."""
        return self.models.requests[self._begun :]

    @property
    def prompts(self) -> list[str]:
        """The last message in each request to the model, without what makes a leading ``/`` text."""
        return [one.prompt.lstrip("\n\u200b") for one in self.requests]

    async def asked(self, prompt: str) -> None:
        """Wait until the model has a prompt."""
        await until(lambda: prompt in self.prompts)

    def has_stored(self, text: str) -> bool:
        """Return whether the agent has a text in its files."""
        for directory, _, names in os.walk(self.home):
            for name in names:
                # It has its helpers there too, which come and go.
                with suppress(OSError):
                    if text.encode() in Path(directory, name).read_bytes():
                        return True
        return False

    def client(self):
        return self.daemon.client()

    async def session(self, client: Client, **options: Any) -> Session:
        options = {"provider": self.agent.name, "cwd": str(self.workspace), **options}
        return await client.create_session(**options)

    async def restart(self) -> None:
        await anyio.to_thread.run_sync(self.daemon.stop)
        await anyio.to_thread.run_sync(self.daemon.start)


async def send(client: Client, session: Session, text: str, **options: Any) -> str:
    """Send a message. Return the id of its run."""
    sent = await client.send_message(session.id, text, **options)
    assert sent.run is not None
    return sent.run.id


async def ended(client: Client, run_id: str) -> Run:
    reply = await client.wait_run(run_id, timeout_s=PATIENCE_S)
    assert not reply.timed_out
    return reply.run


async def turn(client: Client, session: Session, text: str, **options: Any) -> Run:
    return await ended(client, await send(client, session, text, **options))


async def said(client: Client, session: Session, text: str, **options: Any) -> str:
    """Send a message. Return the answer."""
    return answer(await turn(client, session, text, **options))


def answer(run: Run) -> str:
    assert run.result is not None, run.error
    return run.result.text


async def question(client: Client, run_id: str) -> Request:
    """Wait until a run asks."""
    reply = await client.wait_run(run_id, timeout_s=PATIENCE_S, until="attention")
    assert reply.request is not None, reply.run
    return reply.request


async def log(client: Client, session: Session) -> list[Event]:
    return [event async for event in client.events(session.id)]


async def happened(client: Client, session: Session, event_type: str, after: int = 0) -> None:
    """Wait for an event."""
    with anyio.fail_after(PATIENCE_S):
        async with client.events(session.id, cursor=after, follow=True) as events:
            async for event in events:
                if event.event_type == event_type:
                    return


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.sleep(0.02)


@attrs.frozen
class Lasting:
    """A command that ends only if it is stopped, unlike any other on this machine."""

    command: str = attrs.field(
        factory=lambda: f"tail -f /dev/null -s {secrets.randbelow(10**9) + 1000}"
    )

    def processes(self) -> list[psutil.Process]:
        """Return the live processes with it in their command line."""
        return [one for one in psutil.process_iter() if is_alive(one) and self._is_in(one)]

    def _is_in(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return self.command in " ".join(process.cmdline())
        return False


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
