"""Checks whether an agent could be started now."""

import os
import re
from collections.abc import Mapping, Sequence

import anyio.to_thread
from attrs import define, field

from agent_orchestrator.hosts import current_host
from agent_orchestrator.ports.runner import Availability
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.lines import decoded
from agent_orchestrator.runners.program import NotRunnable, locate

_VERSION_S = 10.0
"""Maximum seconds to print the version. Agents in JavaScript take two seconds on a busy machine."""

_VERSION_PATTERN = re.compile(r"(?<![\w.])\d+\.\d[\w.+-]*")


@define
class Probe:
    """Checks an agent's program. Caches its version until the file changes."""

    _versions: dict[tuple[str, int], str | None] = field(factory=dict, init=False)
    """By the program's file and its modification time."""

    async def __call__(
        self, agent: AcpAgent, argv: Sequence[str], env: Mapping[str, str]
    ) -> Availability:
        """Return whether the program is installed, and its version."""
        return await anyio.to_thread.run_sync(self._check, agent, argv, env)

    def _check(self, agent: AcpAgent, argv: Sequence[str], env: Mapping[str, str]) -> Availability:
        try:
            file = locate(argv[0], env.get("PATH"))
        except NotRunnable as problem:
            hint = f"; install it with: {agent.install}" if agent.install else ""
            return Availability(available=False, reason=f"{problem}{hint}")
        if file not in self._versions:
            self._versions[file] = _version(file[0], agent, env)
        return Availability(available=True, version=self._versions[file])


def _version(program: str, agent: AcpAgent, env: Mapping[str, str]) -> str | None:
    """Return the version that a program prints; None if it prints none."""
    if not agent.version or not agent.argv:
        return None
    try:
        argv = [os.path.abspath(program), agent.version]  # noqa: PTH100 - keeps symbolic links
        output = current_host().output(argv, env=env, timeout_s=_VERSION_S)
    except OSError:
        return None
    found = _VERSION_PATTERN.search(decoded(output))
    return None if found is None else found[0].rstrip(".")
