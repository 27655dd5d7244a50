"""The runner of any program."""

import hashlib
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import anyio
from anyio.to_thread import run_sync
from attrs import define, evolve, field

from agent_orchestrator.domain.capabilities import Capabilities, InputLimit
from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Invocation, Usage
from agent_orchestrator.fields import runner_option
from agent_orchestrator.ports.runner import Availability, Outcome, RunContext
from agent_orchestrator.runners.bulk import Text, read, read_object, read_text, run_in_thread
from agent_orchestrator.runners.command.mapping import MappedEvent, Rule, check_rules, map_object
from agent_orchestrator.runners.lines import MAX_LINE, Line, Truncation, decoded, limit_depth
from agent_orchestrator.runners.process import MAX_ARGUMENT, AgentProcess, agent_process
from agent_orchestrator.runners.program import NotRunnable, absolute_program, locate
from agent_orchestrator.runners.supervisor import UsesForkServer

_PLACEHOLDER: Final = re.compile(r"\{(prompt|thread)\}")
MAX_THREAD_ID: Final = 128

_THREAD_ID: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{MAX_THREAD_ID - 1}}}")
"""Valid thread ids. They become arguments, and one that begins with ``-`` would be an option."""

_VERSION_S: Final = 2.0
"""Maximum seconds for a program to print its version. Callers of the daemon's status wait for it."""

MAX_RESULT: Final = MAX_LINE
"""Maximum bytes of output in a run's result."""


@define(eq=False)
class CommandRunner(UsesForkServer):
    """Any program as an agent.

    :param argv: the program and its arguments. The program is a name on the agent's PATH, or a
        path. A relative path starts at the directory in which the daemon was started, not at the
        session's. With ``prompt = "argument"``, the prompt replaces ``{prompt}`` in an argument.
    :param prompt: how the agent gets the prompt. ``stdin`` writes it there and closes it.
        ``argument`` passes it as an argument, appended if ``argv`` has no ``{prompt}``. If a prompt
        may begin with ``-``, write ``--prompt={prompt}``, or ``--`` before it. An argument has at
        most 131,071 bytes, and every user of the machine can read it.
    :param output: the format of stdout. ``lines``: each line is a message, and all of them are the
        result. ``text``: all of it is one message, unchanged. ``jsonl``: JSON objects, to which
        ``map`` gives a meaning. Bytes that are not UTF-8 become U+FFFD.
    :param map: rules for the meaning of each object; the first that matches applies
        (:mod:`agent_orchestrator.runners.command.mapping`).
    :param resume_argv: used instead of ``argv`` to continue the session's conversation with the
        agent. The id of the conversation replaces ``{thread}``. Without this option, every message
        starts a new conversation.
    :param version_argv: a command that prints the agent's version in its first line, within two
        seconds.
    :param stop_signal: the signal that asks the agent to stop.
    """

    name: str
    argv: tuple[str, ...] = field(converter=tuple)
    prompt: Literal["stdin", "argument"] = "stdin"
    output: Literal["lines", "jsonl", "text"] = "lines"
    map: tuple[Rule, ...] = field(default=(), converter=tuple)
    resume_argv: tuple[str, ...] | None = None
    version_argv: tuple[str, ...] | None = None
    stop_signal: Literal["INT", "TERM", "HUP"] = "INT"
    stop_grace_s: float = runner_option(
        "Seconds between the stop signal and the kill of an agent that has not ended.",
        default=2.0,
        minimum=0,
        maximum=600,
    )
    _known: dict[tuple[str, int], Availability] = field(factory=dict, init=False)
    """Results of the version command, including failures, by program and its modification time."""

    def __attrs_post_init__(self) -> None:
        """Check the options against each other.

        :raises ConfigError: naming the option.
        """
        for option in ("argv", "resume_argv", "version_argv"):
            argv = getattr(self, option)
            if argv is not None and not (argv and argv[0]):
                raise ConfigError(f"{option}: must name a program")
            for index, part in enumerate(argv or ()):
                _check_argument(part, f"{option}[{index}]")
            if argv is not None:
                setattr(self, option, absolute_program(argv))
        for option in ("argv", "resume_argv"):
            argv = getattr(self, option) or ()
            if self.prompt == "stdin" and any("{prompt}" in part for part in argv):
                raise ConfigError(f'{option}: {{prompt}} is replaced only with prompt = "argument"')
        if any("{thread}" in part for part in self.argv):
            raise ConfigError("argv: {thread} is only for resume_argv")
        if self.resume_argv is not None and not any("{thread}" in p for p in self.resume_argv):
            raise ConfigError("resume_argv: must contain {thread}")
        if self.output == "jsonl":
            check_rules(self.map)
        elif self.map:
            raise ConfigError('map: needs output = "jsonl"')

    @property
    def capabilities(self) -> Capabilities:
        """The runner's capabilities. It can resume if ``resume_argv`` is set."""
        return Capabilities(resume=self.resume_argv is not None, max_input=self._max_input())

    def _max_input(self) -> InputLimit:
        """Return the limit of the prompt. In an argument it is the maximum size without the argument's
        other text; stdin has no limit.
        """
        if self.prompt == "stdin":
            return InputLimit()
        parts = [
            part
            for argv in (self.argv, self.resume_argv or ())
            for part in (*argv, "{prompt}")
            if "{prompt}" in part
        ]
        return InputLimit(size=min(map(_argument_space, parts)))

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Return whether the program exists, and its version if ``version_argv`` is set."""
        try:
            path = await run_sync(locate, self.argv[0], env.get("PATH"))
        except NotRunnable as problem:
            return Availability(available=False, reason=str(problem))
        if self.version_argv is None:
            return Availability(available=True)
        if path not in self._known:
            self._known[path] = await _with_version(self.version_argv, env)
        return self._known[path]

    async def run(self, context: RunContext) -> Outcome:
        """Start the program, pass it the prompt, and record its output.

        :raises AgentFailed: if it cannot be started, exits with a code other than 0, is killed by a signal,
            or a rule of ``map`` reports a failure.
        """
        template = self._template(context)
        argv = self._filled(template, context)
        async with agent_process(
            argv,
            cwd=context.session.cwd,
            is_cwd_resolved=context.is_cwd_resolved,
            env=context.env,
            stdin=context.prompt.encode("utf-8", "replace") if self.prompt == "stdin" else b"",
            stop=((signal.Signals[f"SIG{self.stop_signal}"], self.stop_grace_s),),
            on_stderr=context.note_stderr,
            on_stdout=context.touch,
            force_stop=context.stop_deadline,
        ) as process:
            # The prompt itself is in the message; the record needs only its place.
            invocation = Invocation(argv[0], tuple(template), context.session.cwd)
            await context.report_process(process.pid, invocation)
            # Before the program can read it. Recovery must not take the prompt for undelivered.
            await context.delivered()
            reader = _READERS[self.output](self, context)
            text = await reader.follow(process)
            code = await process.wait()
            if reader.failure is not None:
                raise AgentFailed(*reader.failure, exit_code=code)
            if code != 0:
                raise AgentFailed(
                    "agent_crashed", _stderr_message(process.stderr_tail, code), exit_code=code
                )
        return Outcome(text, exit_code=code)

    def _template(self, context: RunContext) -> list[str]:
        resumes = context.thread is not None and self.resume_argv is not None
        argv = list(self.resume_argv if resumes and self.resume_argv else self.argv)
        if self.prompt == "argument" and not any("{prompt}" in part for part in argv):
            argv.append("{prompt}")
        return argv

    def _filled(self, template: list[str], context: RunContext) -> list[str]:
        values = {}
        if self.prompt == "argument":
            values["prompt"] = context.prompt
        if context.thread is not None and self.resume_argv is not None:
            if not _THREAD_ID.fullmatch(context.thread.id):
                raise AgentFailed("thread_missing", "the session's thread id is not a valid one")
            values["thread"] = context.thread.id
        argv = [_PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), part) for part in template]
        for part in argv:
            if "\0" in part:
                raise AgentFailed(
                    "invalid_config",
                    'the prompt contains a NUL, which an argument cannot have; set prompt = "stdin"',
                )
            size = len(part.encode("utf-8", "replace"))
            if size > MAX_ARGUMENT:
                raise AgentFailed(
                    "invalid_config",
                    f"an argument of {size:,} bytes is too long (at most {MAX_ARGUMENT:,});"
                    ' set prompt = "stdin"',
                )
        return argv


def _argument_space(part: str) -> int:
    """Return the maximum bytes of a prompt in an argument."""
    beside = len(_PLACEHOLDER.sub("", part).encode("utf-8", "replace"))
    beside += part.count("{thread}") * MAX_THREAD_ID
    return max(1, (MAX_ARGUMENT - beside) // part.count("{prompt}"))


class _OutputReader:
    """Reads stdout in one of the output formats."""

    def __init__(self, runner: CommandRunner, context: RunContext) -> None:
        self.runner = runner
        self.context = context
        self.failure: tuple[str, str] | None = None

    async def follow(self, process: AgentProcess) -> str:
        """Record the agent's output, and return the run's result."""
        raise NotImplementedError


class _BoundedOutput:
    """The output as bytes, up to the limit of a result."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._size = 0
        self._digest = hashlib.sha256()

    def add(self, data: bytes | bytearray) -> None:
        self._size += len(data)
        self._digest.update(data)
        self._data += data[: max(MAX_RESULT - len(self._data), 0)]

    async def text(self) -> Text:
        """Return the output. If it is too long, it is cut, with a note at the end."""
        return await run_in_thread(self._text, None)

    def _text(self, _: None) -> Text:
        if self._size == len(self._data):
            content = read_text(Line(self._data))
            if content.truncation is None:
                return content
            # Its characters are so wide that none of the rest fits.
            del self._data[MAX_RESULT // 8 :]
        cut = read_text(Line(self._data)).text
        note = f"\n[cut: the output had {self._size:,} bytes]"
        return Text(cut + note, Truncation(self._size, self._digest.hexdigest()))


class _LineReader(_OutputReader):
    """Each line is a message."""

    async def follow(self, process: AgentProcess) -> str:
        output = _BoundedOutput()
        tag = b""
        async for line in process.lines():
            output.add(tag)
            output.add(line.data)
            tag = b"\n"
            text = await read(line, read_text)
            await self.context.emit(EventType.AGENT_MESSAGE, {"text": text.text, **text.note})
        return (await output.text()).text


class _TextReader(_OutputReader):
    """The whole output is one message."""

    async def follow(self, process: AgentProcess) -> str:
        output = _BoundedOutput()
        async for chunk in process.chunks():
            output.add(chunk)
        text = await output.text()
        if text.text:
            await self.context.emit(EventType.AGENT_MESSAGE, {"text": text.text, **text.note})
        return text.text


class _ObjectReader(_OutputReader):
    """Each line is an object, to which the rules are applied."""

    def __init__(self, runner: CommandRunner, context: RunContext) -> None:
        super().__init__(runner, context)
        self.result: str | None = None
        self.last_message = ""
        self.usage = Usage()

    async def follow(self, process: AgentProcess) -> str:
        async for line in process.lines():
            content = await read(line, self._events_of)
            del line  # frees a large line before the next one is read
            if not isinstance(content, Text):
                for meaning in content:
                    await self._take(meaning)
            elif content.text.strip():
                payload = {"text": content.text, **content.note}
                data = {"kind": "text", "payload": payload}
                await self.context.emit(EventType.BACKEND_EVENT, data)
        return self.last_message if self.result is None else self.result

    async def _take(self, event: MappedEvent) -> None:
        if event.thread is not None:
            await self._thread(event.thread)
        if event.event_type is not None:
            if event.event_type == EventType.AGENT_MESSAGE:
                self.last_message = event.data["text"]
            await self.context.emit(event.event_type, event.data)
        if event.usage:
            self.usage = evolve(self.usage, **event.usage)
            await self.context.report_usage(self.usage)
        if event.result is not None:
            self.result = event.result
        if event.fail is not None:
            self.failure = event.fail

    def _events_of(self, line: Line) -> Sequence[MappedEvent] | Text:
        """Return the results of the rules for a line's object, or the line's text if it is not an object."""
        content = read_object(line)
        if isinstance(content, Text):
            return content
        try:
            events = map_object(self.runner.map, content)
            return [evolve(event, data=limit_depth(event.data)) for event in events]
        except RecursionError:
            return read_text(line)

    async def _thread(self, thread_id: str) -> None:
        if _THREAD_ID.fullmatch(thread_id):
            await self.context.set_thread(thread_id)
        else:
            message = f"the agent's thread id {thread_id[:200]!r} is not a valid one"
            await self.context.emit(EventType.RUN_ERROR, {"message": message})


_READERS: Final = {"lines": _LineReader, "text": _TextReader, "jsonl": _ObjectReader}


async def _with_version(argv: tuple[str, ...], env: Mapping[str, str]) -> Availability:
    """Run a program's version command, and return its version or the problem."""
    version, reason = None, "it printed none"
    with anyio.move_on_after(_VERSION_S) as time_limit:
        try:
            # A program that only prints its version has nothing to clean up, so it is killed at once.
            async with agent_process(argv, cwd="/", env=env, stop=()) as process:
                async for line in process.lines():
                    version = version or decoded(line.data[:200]).strip() or None
        except AgentFailed as failure:
            reason = failure.message
    if version is not None:
        return Availability(available=True, version=version)
    if time_limit.cancelled_caught:
        reason = f"it did not answer within {_VERSION_S:g} s"
    command = " ".join(argv)[:200]
    return Availability(available=True, reason=f"`{command}` did not print its version: {reason}")


def _check_argument(argument: str, option: str) -> None:
    if "\0" in argument:
        raise ConfigError(f"{option}: contains a NUL, which an argument cannot have")
    if len(argument.encode("utf-8", "replace")) > MAX_ARGUMENT:
        raise ConfigError(f"{option}: is longer than the {MAX_ARGUMENT:,} bytes of an argument")


def _stderr_message(stderr: str, code: int) -> str:
    spoken = [line.strip() for line in stderr.split("\n") if line.strip()]
    if spoken:
        return spoken[-1][:2000]
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exited with {code}"
