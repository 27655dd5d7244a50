"""The runner of any program."""

import re
import signal
from collections.abc import Mapping
from typing import Any, Final, Literal

import anyio
from anyio.to_thread import run_sync
from attrs import define, evolve, field

from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Invocation, Usage
from agent_orchestrator.ports import Availability, Outcome, RunContext
from agent_orchestrator.runners.command.mapping import Meaning, Rule, check_rules, meaning
from agent_orchestrator.runners.command.program import NotRunnable, anchored, locate
from agent_orchestrator.runners.keepers import Guarded
from agent_orchestrator.runners.lines import MAX_LINE, Line, decoded, json_object, shallow
from agent_orchestrator.runners.process import MAX_ARGUMENT, agent_process

_PLACEHOLDER: Final = re.compile(r"\{(prompt|thread)\}")
_THREAD_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""A thread id becomes an argument: one that begins with ``-`` would be an option."""

_VERSION_S: Final = 2.0
"""Seconds a program has to print its version: who asks for the daemon's status waits for it."""

MAX_RESULT: Final = MAX_LINE
"""Bytes of a run's result; the rest of a longer output is in the events alone."""


@define(eq=False)
class CommandRunner(Guarded):
    """Any program as an agent.

    :param argv: the program and its arguments. The program is a name on the agent's PATH, or a
        path; a relative one begins where the runner is made, which is the directory the daemon was
        started in, and not the session's. In a text of it, ``{prompt}`` is replaced by the
        prompt where ``prompt`` is ``argument``.
    :param prompt: how the agent gets the prompt: on its ``stdin``, which is then closed, or as an
        ``argument``, appended when ``argv`` has no ``{prompt}``. Where a prompt might begin with
        ``-``, write ``--prompt={prompt}`` or put ``--`` before it. An argument has at most 131,071
        bytes and can be read by every user of the machine.
    :param output: what stdout is: ``lines``, each a message; one message of ``text``; or ``jsonl``,
        objects that mean what ``map`` says.
    :param map: rules that say what each object means; the first that fits is taken
        (:mod:`agent_orchestrator.runners.command.mapping`).
    :param resume_argv: instead of ``argv`` when the session has a conversation with the agent,
        whose id replaces ``{thread}``. Without it every message starts anew.
    :param version_argv: prints the version on its first line, within two seconds.
    :param stop_signal: asks the agent to stop.
    :param stop_grace_s: seconds after which it is killed if it has not.
    """

    name: str
    argv: tuple[str, ...] = field(converter=tuple)
    prompt: Literal["stdin", "argument"] = "stdin"
    output: Literal["lines", "jsonl", "text"] = "lines"
    map: tuple[Rule, ...] = field(default=(), converter=tuple)
    resume_argv: tuple[str, ...] | None = None
    version_argv: tuple[str, ...] | None = None
    stop_signal: Literal["INT", "TERM", "HUP"] = "INT"
    stop_grace_s: float = 2.0
    _known: dict[tuple[str, int], Availability] = field(factory=dict, init=False)
    """By program and its time of change: what was asked once, also in vain, is not asked again."""

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot work.

        :raises ConfigError: naming the option.
        """
        for option in ("argv", "resume_argv", "version_argv"):
            argv = getattr(self, option)
            if argv is not None and not (argv and argv[0]):
                raise ConfigError(f"{option}: must name a program")
            for index, part in enumerate(argv or ()):
                _check_argument(part, f"{option}[{index}]")
            if argv is not None:
                setattr(self, option, anchored(argv))
        for option in ("argv", "resume_argv"):
            argv = getattr(self, option) or ()
            if self.prompt == "stdin" and any("{prompt}" in part for part in argv):
                raise ConfigError(f'{option}: {{prompt}} is replaced only with prompt = "argument"')
        if any("{thread}" in part for part in self.argv):
            raise ConfigError("argv: {thread} belongs into resume_argv")
        if self.resume_argv is not None and not any("{thread}" in p for p in self.resume_argv):
            raise ConfigError("resume_argv: must hold {thread}")
        if self.output == "jsonl":
            check_rules(self.map)
        elif self.map:
            raise ConfigError('map: is of no use unless output = "jsonl"')
        if not 0 <= self.stop_grace_s <= 600:
            raise ConfigError("stop_grace_s: must be between 0 and 600")

    @property
    def resumes(self) -> bool:
        """It goes on with a conversation where it was told how."""
        return self.resume_argv is not None

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Tell whether the program is there, and its version where ``version_argv`` asks for it."""
        try:
            found = await run_sync(locate, self.argv[0], env.get("PATH"))
        except NotRunnable as problem:
            return Availability(available=False, reason=str(problem))
        if self.version_argv is None:
            return Availability(available=True)
        if found not in self._known:
            self._known[found] = await _versioned(self.version_argv, env)
        return self._known[found]

    async def run(self, context: RunContext) -> Outcome:
        """Start the program, hand it the prompt, and pass on what it prints.

        :raises AgentFailed: if it cannot be started, exits with another code than 0, is killed by a
            signal, or says by the table that it failed.
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
            on_stdout=context.heard,
            hurry=context.out_of_patience,
        ) as process:
            # The prompt itself is in the message; the record needs only its place.
            invocation = Invocation(argv[0], tuple(template), context.session.cwd)
            await context.report_process(process.pid, invocation)
            # Said before the program can read it: whoever recovers the run must not take it for
            # one that never began.
            await context.delivered()
            reading = _READINGS[self.output](self, context)
            async for line in process.lines():
                await reading.take(line)
            text = await reading.end()
            code = await process.wait()
            if reading.failure is not None:
                raise AgentFailed(*reading.failure, exit_code=code)
            if code != 0:
                raise AgentFailed(
                    "agent_crashed", _last_words(process.stderr_tail, code), exit_code=code
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
                    'the prompt holds a NUL, which an argument cannot; set prompt = "stdin"',
                )
            size = len(part.encode("utf-8", "replace"))
            if size > MAX_ARGUMENT:
                raise AgentFailed(
                    "invalid_config",
                    f"an argument of {size:,} bytes is too long (at most {MAX_ARGUMENT:,});"
                    ' set prompt = "stdin"',
                )
        return argv


class _Reading:
    """What stdout comes to, for one way to read it."""

    def __init__(self, runner: CommandRunner, context: RunContext) -> None:
        self.runner = runner
        self.context = context
        self.failure: tuple[str, str] | None = None

    async def take(self, line: Line) -> None:
        """Take the next line."""
        raise NotImplementedError

    async def end(self) -> str:
        """Return the run's result."""
        raise NotImplementedError


class _Lines(_Reading):
    """Each line is a message."""

    def __init__(self, runner: CommandRunner, context: RunContext) -> None:
        super().__init__(runner, context)
        self.kept: list[str] = []
        self.size = 0

    async def take(self, line: Line) -> None:
        text = self.keep(line)
        await self.context.emit(EventType.AGENT_MESSAGE, {"text": text, **_cut(line)})

    def keep(self, line: Line) -> str:
        text = decoded(line.data)
        if self.size <= MAX_RESULT:
            room = MAX_RESULT - self.size
            self.kept.append(text if len(line.data) <= room else decoded(line.data[:room]))
        self.size += (line.truncation.size if line.truncation else len(line.data)) + 1
        return text

    async def end(self) -> str:
        if self.size > MAX_RESULT + 1:
            self.kept.append(f"[cut: the output had {self.size:,} bytes]")
        return "\n".join(self.kept)


class _Text(_Lines):
    """All of it is one message."""

    async def take(self, line: Line) -> None:
        self.keep(line)

    async def end(self) -> str:
        text = await super().end()
        if text:
            await self.context.emit(EventType.AGENT_MESSAGE, {"text": text})
        return text


class _Objects(_Reading):
    """Each line is an object that means what the table says."""

    def __init__(self, runner: CommandRunner, context: RunContext) -> None:
        super().__init__(runner, context)
        self.result: str | None = None
        self.last_message = ""
        self.usage = Usage()

    async def take(self, line: Line) -> None:
        found = self._meaning(line)
        if found is None:
            payload = {"text": decoded(line.data), **_cut(line)}
            if line.data.strip():
                await self.context.emit(
                    EventType.BACKEND_EVENT, {"kind": "text", "payload": payload}
                )
            return
        if found.thread is not None:
            await self._thread(found.thread)
        if found.event_type is not None:
            if found.event_type == EventType.AGENT_MESSAGE:
                self.last_message = found.data["text"]
            await self.context.emit(found.event_type, found.data)
        if found.usage:
            self.usage = evolve(self.usage, **found.usage)
            await self.context.report_usage(self.usage)
        if found.result is not None:
            self.result = found.result
        if found.fail is not None:
            self.failure = found.fail

    def _meaning(self, line: Line) -> Meaning | None:
        """Return what an object comes to; None for a line that holds none."""
        value = None if line.truncation else json_object(line.data)
        if value is None:
            return None
        try:
            found = meaning(self.runner.map, value)
            return evolve(found, data=shallow(found.data))
        except RecursionError:
            return None

    async def _thread(self, thread_id: str) -> None:
        if _THREAD_ID.fullmatch(thread_id):
            await self.context.set_thread(thread_id)
        else:
            message = f"the agent's thread id {thread_id[:200]!r} is not a valid one"
            await self.context.emit(EventType.RUN_ERROR, {"message": message})

    async def end(self) -> str:
        return self.last_message if self.result is None else self.result


_READINGS: Final = {"lines": _Lines, "text": _Text, "jsonl": _Objects}


def _cut(line: Line) -> dict[str, Any]:
    if line.truncation is None:
        return {}
    return {"truncated": {"size": line.truncation.size, "sha256": line.truncation.sha256}}


async def _versioned(argv: tuple[str, ...], env: Mapping[str, str]) -> Availability:
    """Ask a program that can be run for its version, and say when it does not tell."""
    version, reason = None, "it printed none"
    with anyio.move_on_after(_VERSION_S) as patience:
        try:
            # Who only prints a version has nothing to clean up: it is killed without asking.
            async with agent_process(argv, cwd="/", env=env, stop=()) as process:
                async for line in process.lines():
                    version = version or decoded(line.data[:200]).strip() or None
        except AgentFailed as failure:
            reason = failure.message
    if version is not None:
        return Availability(available=True, version=version)
    if patience.cancelled_caught:
        reason = f"it did not answer within {_VERSION_S:g} s"
    asked = " ".join(argv)[:200]
    return Availability(available=True, reason=f"`{asked}` did not tell its version: {reason}")


def _check_argument(argument: str, place: str) -> None:
    if "\0" in argument:
        raise ConfigError(f"{place}: holds a NUL, which an argument cannot")
    if len(argument.encode("utf-8", "replace")) > MAX_ARGUMENT:
        raise ConfigError(f"{place}: is longer than the {MAX_ARGUMENT:,} bytes of an argument")


def _last_words(stderr: str, code: int) -> str:
    spoken = [line.strip() for line in stderr.split("\n") if line.strip()]
    if spoken:
        return spoken[-1][:2000]
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exited with {code}"
