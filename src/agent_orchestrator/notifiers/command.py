"""Notices as the input of a program."""

import signal
from collections.abc import Mapping
from typing import Final

from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.host import ProcessSpec, StopSequence
from agent_orchestrator.hosts import current_host
from agent_orchestrator.notice_settings import CommandOptions
from agent_orchestrator.notifiers.payload import payload
from agent_orchestrator.ports.channel import NoticeContent, SendFailed
from agent_orchestrator.ports.runner import TAG_VARIABLE

_STOP: Final[StopSequence] = ((signal.SIGTERM, 1.0),)

MAX_SHOWN: Final = 200
"""Maximum number of characters of the program's last line on stderr in an error."""


@define(eq=False)
class CommandChannel:
    """Starts a program for each notice, and again when it is withdrawn.

    The program gets JSON on its standard input. It has succeeded if it exits with 0 in time. All processes
    that it started are then ended.

    :param env: its environment.
    """

    options: CommandOptions
    env: Mapping[str, str] = field(repr=False)

    @property
    def withdraws(self) -> bool:
        return True

    async def send(self, content: NoticeContent) -> None:
        host = current_host()
        spec = ProcessSpec(
            self.options.argv,
            cwd=host.current_directory(),
            env={**self.env, TAG_VARIABLE: f"notice.{content.notice_id}"},
            stdin=payload(content) + b"\n",
            stop=_STOP,
        )
        try:
            async with host.open_process(spec) as process:
                while await process.read():
                    pass  # its output means nothing, but a full pipe would block it
                code = await process.wait()
                stderr = process.stderr_tail
        except AgentFailed as error:
            raise SendFailed(f"cannot be run: {error}") from None
        if code != 0:
            lines = stderr.split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            said = f": {last[:MAX_SHOWN]}" if last.isprintable() and last else ""
            raise SendFailed(f"exited with {code}{said}")
