"""Checks how an agent starts against its row in the table and its recording. No model is asked."""

import math
import os
import uuid
from collections.abc import Mapping, Sequence
from signal import SIGKILL
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio
import anyio.to_thread
from attrs import asdict, evolve, field, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.runners.acp.failures import AUTHENTICATION_REQUIRED
from agent_orchestrator.runners.acp.probe import Probe
from agent_orchestrator.runners.acp.process import VERSION, AcpProcess, Spec
from agent_orchestrator.runners.acp.recording import (
    STARTS,
    Outline,
    RecordingDialect,
    outline,
    read_start,
)
from agent_orchestrator.runners.acp.sessions import Requested, open_session
from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.runners.live.pool import ProcessPool

_COMPARED: Final = {
    "protocol": "the version of the protocol",
    "capabilities": "its capabilities",
    "logins": "the ways to log in",
    "refusal": "the error for a new session",
    "modes": "the modes",
    "first_mode": "the mode of a new session",
    "options": "the options of a session",
}


@frozen
class Finding:
    """A result.

    :param fits: None for a note, which is neither good nor bad.
    """

    fits: bool | None
    message: str


def _fits(message: str) -> Finding:
    return Finding(fits=True, message=message)


def _differs(message: str) -> Finding:
    return Finding(fits=False, message=message)


def _note(message: str) -> Finding:
    return Finding(fits=None, message=message)


@frozen
class Start:
    """How an agent has started and ended.

    :ivar lines: the recording.
    :ivar failure: why it has no session; None if it has one.
    :ivar ended_s: seconds from the request to end until its processes were gone; None if it did not start.
    :ivar exit_code: negative for a signal.
    """

    lines: list[JsonObject]
    failure: AgentFailed | None
    ended_s: float | None
    exit_code: int | None


@frozen
class Report:
    """The results of a check.

    :ivar version: the version of the agent; None if unknown.
    :ivar lines: the recording.
    """

    name: str
    version: str | None
    findings: tuple[Finding, ...]
    lines: list[JsonObject] = field(repr=False)

    @property
    def fits(self) -> bool:
        return all(one.fits is not False for one in self.findings)


async def check_agent(name: str, argv: Sequence[str] = ()) -> Report:
    """Start an agent in an empty directory, and check it.

    :param argv: the program and its arguments. Default: those of the known agent of that name.
    :raises LookupError: if the agent is not known, and there are no arguments.
    """
    known = AGENTS.get(name)
    if known is None and not argv:
        raise LookupError(name)
    agent = evolve(known or AcpAgent(argv=()), argv=tuple(argv) or AGENTS[name].argv)
    found = await Probe()(agent, agent.argv, os.environ)
    if not found.available:
        return Report(name, None, (_differs(found.reason or "it cannot be started"),), [])
    start = await record_start(name, agent)
    seen = outline(start.lines)
    stored = await anyio.to_thread.run_sync(read_start, STARTS / f"{name}.jsonl")
    findings = [
        *_of_start(agent, found.version, start, seen),
        *(_of_row(agent, seen) if known is not None else [_note("it has no row in the table")]),
        *_of_end(agent, start),
        *(_of_recording(seen, outline(stored)) if stored else [_note("it has no recording")]),
    ]
    return Report(name, seen.version or found.version, tuple(findings), start.lines)


async def record_start(name: str, agent: AcpAgent) -> Start:
    """Start an agent, open a session in the mode that asks, and end it."""
    dialect = RecordingDialect()
    failure: AgentFailed | None = None
    began_at: float | None = None
    with TemporaryDirectory() as directory:
        cwd = os.path.realpath(directory)  # noqa: ASYNC240 - of a directory in memory or nearly
        env = frozenset({**agent.default_env, **os.environ, **agent.env}.items())
        spec = Spec(name, agent, agent.argv, cwd, is_cwd_resolved=True, env=env)
        process = AcpProcess.of(spec, f"acp.{uuid.uuid4().hex}", math.inf, dialect)
        async with ProcessPool[AcpProcess]() as pool:
            try:
                async with pool.lease(pool.start(process)):
                    with process.open_mailbox() as mailbox:
                        requested = Requested(cwd, None, agent.ask_mode, None)
                        await open_session(process, mailbox, None, requested)
            except AgentFailed as problem:
                failure = problem
            if process.failure is None:
                began_at = anyio.current_time()
                process.fail(AgentFailed("provider_error", "the check is over"))
            await process.ended.wait()
        ended_s = None if began_at is None else anyio.current_time() - began_at
        home = os.path.expanduser("~")  # noqa: ASYNC240, PTH111 - there may be none, and then it is "~"
        lines = dialect.lines({cwd: "<cwd>", **({home: "<home>"} if len(home) > 1 else {})})
    return Start(lines, failure, ended_s, process.exit_code)


def _of_start(agent: AcpAgent, printed: str | None, start: Start, seen: Outline) -> list[Finding]:
    found = [_note(f"its version is {seen.version or printed or 'not known'}")]
    if seen.protocol != VERSION:
        why = start.failure.message if start.failure is not None else "it said nothing"
        return [*found, _differs(f"it does not speak version {VERSION} of ACP: {why}")]
    found.append(_fits(f"it speaks version {VERSION} of ACP"))
    if seen.refusal == AUTHENTICATION_REQUIRED:
        hint = f"; run {agent.login}" if agent.login else ""
        found.append(_note(f"it is not logged in, so its modes are not known{hint}"))
    elif start.failure is not None:
        found.append(_differs(start.failure.message))
    else:
        found.append(_fits("it opened a session, so it is logged in or needs no login for that"))
    return found


def _of_row(agent: AcpAgent, seen: Outline) -> list[Finding]:
    can = seen.capabilities
    told = {
        "continue a conversation in another process": (
            agent.resumes,
            "loadSession" in can or "sessionCapabilities.resume" in can,
        ),
        "take tools by MCP over HTTP": (agent.takes_tools, "mcpCapabilities.http" in can),
        "take images": (agent.images, "promptCapabilities.image" in can),
        "take messages during a turn": (agent.steers, "_meta.steering.supported" in can),
    }
    found = []
    for ability, (in_row, is_told) in told.items():
        says = "can" if is_told else "cannot"
        if in_row == is_told:
            found.append(_fits(f"it says that it {says} {ability}, as in its row"))
        elif is_told:
            found.append(_note(f"it says that it can {ability}, which its row does not use"))
        else:
            found.append(_differs(f"it does not say that it can {ability}, unlike its row"))
    if seen.refusal is not None:
        return found
    modes = ", ".join(sorted(seen.modes)) or "none"
    if agent.ask_mode is None:
        note = f"its row names no mode that asks; its modes: {modes}"
        return [*found, _differs(note) if seen.modes else _note(note)]
    if agent.ask_mode not in seen.modes:
        note = f"it does not have the mode {agent.ask_mode!r} of its row; its modes: {modes}"
        return [*found, _differs(note)]
    note = (
        f"it starts in the mode {seen.first_mode!r}, and was set to {agent.ask_mode!r}, which asks"
    )
    return [*found, _fits(note)]


def _of_end(agent: AcpAgent, start: Start) -> list[Finding]:
    if start.ended_s is None:
        return []
    took = f"{start.ended_s:.1f} s"
    if start.exit_code != -SIGKILL:
        return [_fits(f"it ended on SIGTERM in {took}")]
    if agent.stop_s == 0:
        return [_fits("it was killed, as its row says that SIGTERM does not end it")]
    note = f"it did not end on SIGTERM within {agent.stop_s:g} s, as in its row, and was killed"
    return [_differs(note)]


def _of_recording(seen: Outline, stored: Outline) -> list[Finding]:
    before, now = (_shown(one) for one in (stored, seen))
    found = [
        _differs(f"{words}: {_difference(before[name], now[name])}")
        for name, words in _COMPARED.items()
        if before[name] != now[name]
        and not (seen.refusal and name in ("modes", "first_mode", "options"))
    ]
    of = f"the recording of version {stored.version or 'unknown'}"
    return [
        _differs(f"it differs from {of}:") if found else _fits(f"it starts as in {of}"),
        *found,
    ]


def _shown(seen: Outline) -> Mapping[str, Any]:
    return asdict(seen)


def _difference(before: Any, now: Any) -> str:
    if not isinstance(before, frozenset):
        return f"{before!r} in the recording, {now!r} now"
    new, gone = sorted(now - before), sorted(before - now)
    parts = [f"new: {', '.join(new)}"] if new else []
    return "; ".join([*parts, f"gone: {', '.join(gone)}"] if gone else parts)
