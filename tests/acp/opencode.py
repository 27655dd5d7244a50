"""An agentd with the real opencode."""

import json
import re
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from gateway import family
from loops import ON_ONE_LOOP
from serving import Process, agentd

from agent_orchestrator import connect

PATIENCE_S = 180.0

THROUGH_A_GATEWAY = [pytest.mark.anyio, pytest.mark.acp, pytest.mark.timeout(600), ON_ONE_LOOP]
"""Marks of tests of what another process does."""


class AcpGateway:
    """An agentd with a provider, that can be stopped and started again on its database."""

    def __init__(
        self,
        directory: Path,
        argv: list[str],
        env: dict[str, str],
        settings: str = "",
        arguments: tuple[str, ...] = (),
        name: str = "opencode",
    ) -> None:
        self._directory = directory
        self._arguments = arguments
        self._stack = ExitStack()
        values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
        (directory / "agentd.toml").write_text(
            f'[providers.{name}]\nrunner = "acp"\nargv = {json.dumps(argv)}\n'
            f"env = {{ set = {{ {values} }} }}\n{settings}\n"
        )
        self.start()

    def start(self) -> None:
        self.daemon: Process = self._stack.enter_context(
            agentd(self._directory, "--config", "agentd.toml", "--db", "data.db", *self._arguments)
        )

    def stop(self) -> None:
        """End the daemon in good order."""
        self.daemon.signal(signal.SIGTERM)
        assert self.daemon.wait() == 0
        self._stack.close()

    def client(self):
        return connect(self.daemon.url)

    def agents(self) -> list[psutil.Process]:
        """Return the processes of agents."""
        return [
            one
            for one, command in family(self.daemon.pid).items()
            if re.search(r"\bacp\b", command)
        ]


AcpGateways = Callable[..., AcpGateway]
"""Makes gateways that end with the test."""
