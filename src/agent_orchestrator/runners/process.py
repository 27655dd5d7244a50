"""An agent's process for runners: started on the engine's host, with stdout in lines."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio.lowlevel

from agent_orchestrator.host import DEFAULT_STOP, Process, ProcessSpec, StopSequence
from agent_orchestrator.hosts import current_host
from agent_orchestrator.runners.lines import Line, LineFramer

MAX_ARGUMENT: Final = 131_071
"""Maximum bytes of one argument on Linux (MAX_ARG_STRLEN without the final NUL)."""


class AgentProcess:
    """A running agent; see :func:`agent_process` and :class:`agent_orchestrator.host.Process`.

    :ivar pid: the id of its process, process group and session.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.start_id = process.start_id
        self.read = process.read
        self.write = process.write
        self.wait = process.wait

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the agent runs."""
        return self._process.returncode

    @property
    def stderr_tail(self) -> str:
        """The end of the agent's stderr so far."""
        return self._process.stderr_tail

    def lines(self) -> AsyncIterator[Line]:
        """Return an iterator over the lines of stdout. Iterate it once, in one task."""
        return _StdoutLines(self._process)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield stdout in chunks of bytes, instead of its :meth:`lines`."""
        while chunk := await self._process.read():
            yield chunk


@asynccontextmanager
async def agent_process(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    is_cwd_resolved: bool = False,
    stdin: bytes | None = b"",
    stop: StopSequence = DEFAULT_STOP,
    on_stderr: Callable[[str], None] | None = None,
    on_stdout: Callable[[], None] | None = None,
    force_stop: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[AgentProcess]:
    """Run a program on the engine's host in a new session. Leaving the scope ends it and all processes it started.

    The parameters are those of :class:`agent_orchestrator.host.ProcessSpec`. Without an engine, the host is
    this machine.

    :raises AgentFailed: see :meth:`agent_orchestrator.host.Host.open_process`.
    """
    spec = ProcessSpec(
        argv,
        cwd=cwd,
        env=env,
        is_cwd_resolved=is_cwd_resolved,
        stdin=stdin,
        stop=stop,
        on_stderr=on_stderr,
        on_stdout=on_stdout,
        force_stop=force_stop,
    )
    async with current_host().open_process(spec) as process:
        yield AgentProcess(process)


_TURN: Final = 256
"""Number of lines after which other tasks get a turn. A chunk may consist of line ends only."""


class _StdoutLines:
    """An iterator over the lines of a process's stdout. Unlike an async generator, it need not be closed."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._framer = LineFramer()
        self._ready: Iterator[Line] = iter(())
        self._ended = False
        self._given = 0

    def __aiter__(self) -> "_StdoutLines":
        return self

    async def __anext__(self) -> Line:
        self._given += 1
        if self._given % _TURN == 0:
            await anyio.lowlevel.checkpoint()
        while (line := next(self._ready, None)) is None:
            if self._ended:
                raise StopAsyncIteration
            if chunk := await self._process.read():
                self._ready = self._framer.feed(chunk)
            else:
                self._ended = True
                self._ready = self._framer.finish()
        return line
