"""Runs an agent's own program on a session's conversation, and shows what was recorded of it."""

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from anyio.to_thread import run_sync

from agent_orchestrator.domain.errors import Unreachable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Event, Run
from agent_orchestrator.operations.runs import GET_RUN
from agent_orchestrator.operations.sessions import GET_SESSION
from agent_orchestrator.operations.takeovers import ATTACH_SESSION, Program
from agent_orchestrator.processes import process_start_id
from agentctl.connection import DaemonConnection
from agentctl.event_text import ends_run
from agentctl.failures import DONE, FAILED, usage_failure
from agentctl.output import Output
from agentctl.terminal import one_line
from agentctl.times import counted

_LAUNCHER: Final = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
with os.fdopen(int(sys.argv[1])) as pipe:
    text = pipe.read()
if not text:
    sys.exit()
program = json.loads(text)
try:
    os.chdir(program["cwd"])
    os.execve(program["argv"][0], program["argv"], {**os.environ, **program["env"]})
except OSError as error:
    sys.exit(f"agentctl: {program['argv'][0]} cannot be started: {error}")
"""
"""The script of the process until it becomes the program. The daemon records the process before that."""


async def attach(connection: DaemonConnection, output: Output, **values: Any) -> int:
    """Open an agent's own program on a session's conversation, and wait until it is recorded."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise usage_failure("attach needs a terminal for the agent's program")
    cursor = (await connection.call(GET_SESSION, session_id=values["session_id"])).session.last_seq
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-c", _LAUNCHER, str(reading)]
    process = subprocess.Popen(command, pass_fds=[reading])  # noqa: ASYNC220 - it starts in no time
    os.close(reading)
    try:
        with os.fdopen(writing, "w") as pipe:
            start_id = process_start_id(process.pid)
            reply = await connection.call(
                ATTACH_SESSION, pid=process.pid, process_start_id=start_id, **values
            )
            output.note(
                f"agentctl: session {reply.run.session_id} is held until you leave this program"
            )
            pipe.write(json.dumps(_plain(reply.program)))
        with terminal_left_to_program():
            await run_sync(process.wait)
    finally:
        process.wait()  # at once if nothing was written
    return await show_recorded(connection, output, reply.run, cursor)


def _plain(program: Program) -> dict[str, Any]:
    return {"argv": program.argv, "cwd": program.cwd, "env": dict(program.env)}


@contextmanager
def terminal_left_to_program() -> Iterator[None]:
    """Let only a program handle the keyboard's signals, and restore the terminal's mode after it."""
    signals = (signal.SIGINT, signal.SIGQUIT)
    # A program that is started inside would inherit SIG_IGN.
    before = [signal.signal(one, lambda *_: None) for one in signals]
    settings = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


async def show_recorded(connection: DaemonConnection, output: Output, run: Run, cursor: int) -> int:
    """Wait until a run has read the agent's record, and print the result. Return the exit code."""
    turns = 0

    def take(event: Event) -> bool:
        nonlocal turns
        turns += event.run_id == run.id and event.event_type == EventType.USER_MESSAGE
        return ends_run(event, run.id)

    try:
        await connection.follow(run.session_id, cursor, take)
        ended = (await connection.call(GET_RUN, run_id=run.id)).run
    except Unreachable:
        output.note(
            "agentctl: agentd cannot be reached; it will record the conversation when it runs again"
        )
        return FAILED
    if output.structured:
        output.answer({"run": ended, "turns": turns}, lambda *_: ())
    else:
        output.lines([f"{counted(turns, 'turn')} recorded in session {run.session_id}"])
    if ended.status is not RunStatus.COMPLETED:
        why = f"{ended.error.code}: {ended.error.message}" if ended.error else ended.status
        output.note(f"agentctl: the rest is not recorded: {one_line(why)}")
        return FAILED
    output.hint(f'continue with: agentctl ask --session-id {run.session_id} "…"')
    return DONE
