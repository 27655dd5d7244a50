"""Runner for ``codex exec``: one process per run, which reads the prompt from its stdin."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from attrs import evolve, frozen

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Invocation, Thread
from agent_orchestrator.hosts import current_host
from agent_orchestrator.ports.runner import Availability, Outcome, ProtectedPaths, RunContext
from agent_orchestrator.runners.bulk import read
from agent_orchestrator.runners.codex.argv import (
    exec_argv,
    is_thread_id,
)
from agent_orchestrator.runners.codex.base import CodexRunnerBase
from agent_orchestrator.runners.codex.capabilities import codex_capabilities
from agent_orchestrator.runners.codex.confinement import ExecConfinement, exec_confinement
from agent_orchestrator.runners.codex.failures import is_busy, startup_failure, turn_failure
from agent_orchestrator.runners.codex.locate import locate
from agent_orchestrator.runners.codex.parser import ExecParser
from agent_orchestrator.runners.codex.probe import environment, home_of, profile_warning
from agent_orchestrator.runners.codex.tools import ToolOptions, served_tools
from agent_orchestrator.runners.codex.trust import (
    check_home,
    untrusted_config,
    untrusted_directories,
    untrusted_environment,
)
from agent_orchestrator.runners.codex.usage import usage_between
from agent_orchestrator.runners.codex.versions import has_profiles
from agent_orchestrator.runners.conversations import ConversationMissing
from agent_orchestrator.runners.events import AgentEvent, error_words, text
from agent_orchestrator.runners.process import AgentProcess, agent_process
from agent_orchestrator.runners.program import NotInstalled
from agent_orchestrator.runners.proxies import without_proxy_for

_BUSY_DELAYS: Final = (0.1, 0.2, 0.4, 0.8)
"""Seconds before each retry of a thread that another process has open. The lock of a killed process
is free within moments (codex 0.169)."""

_EXIT_GRACE: Final = 30.0
"""Maximum seconds from the end of the turn to codex's exit, which normally takes milliseconds."""


@frozen
class _ProcessResult:
    """How a codex process ended."""

    parser: ExecParser
    exit_code: int | None
    stderr: str


@frozen(kw_only=True, eq=False)
class CodexExecRunner(CodexRunnerBase):
    """Runs ``codex exec`` once per message, in the session's thread."""

    @property
    def capabilities(self) -> Capabilities:
        return codex_capabilities(self.sandbox, None, tools=self.tools, is_exec=True)

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Return whether codex is installed and logged in."""
        codex_env = environment(env, self.home)
        if self._probe.is_cached(self.command, codex_env):
            # In this thread, because a cached result takes less time than a switch of threads.
            return self.probe_now(codex_env)
        return await anyio.to_thread.run_sync(self.probe_now, codex_env)

    def probe_now(self, env: Mapping[str, str]) -> Availability:
        """Do the same as :meth:`probe`, but block. For worker threads."""
        availability = self._probe(
            self.command,
            env,
            profile=self.profile,
            config=self.config,
            extra_args=self.extra_args,
        )
        return evolve(availability, capabilities=self.capabilities)

    async def run(self, context: RunContext) -> Outcome:
        """Run the turn.

        :raises AgentFailed: if codex cannot be started, fails, or ends before its turn does.
        """
        # A directory may not answer, and a canceled run must not wait for it.
        program, env, without, warning = await anyio.to_thread.run_sync(
            self._prepare, context, abandon_on_cancel=True
        )
        if warning is not None:
            await context.emit(EventType.RUN_ERROR, {"message": warning, "code": "invalid_config"})
        async with AsyncExitStack() as stack:
            tools = ToolOptions()
            if self.tools:
                served = served_tools(context, is_private=False)
                tools = await stack.enter_async_context(served)
            if tools.url is not None:
                env = without_proxy_for(env, tools.url)
            config = self._config(tools.config, without)
            turn = partial(self._turn, context, program, {**env, **tools.env}, config)
            return await self.deliver(context, turn)

    def _prepare(
        self, context: RunContext
    ) -> tuple[Path, Mapping[str, str], Sequence[str], str | None]:
        """Return codex, its environment, the directories from which it must execute nothing, and a warning."""
        without = untrusted_directories(context.session.cwd, context.shared_cwd)
        env = untrusted_environment(environment(context.env, self.home), without)
        sandbox = context.run.sandbox or self.sandbox
        check_home(str(home_of(env)), context.session.cwd, sandbox)
        try:
            return locate(self.command, env), env, without, profile_warning(self.profile, env)
        except NotInstalled as problem:
            raise AgentFailed("provider_unavailable", str(problem)) from problem

    async def _turn(
        self,
        context: RunContext,
        program: Path,
        env: Mapping[str, str],
        config: Mapping[str, Any],
        thread: Thread | None,
    ) -> Outcome:
        """Run codex, again while another process has the thread open, and return the turn's outcome.

        :param thread: the thread to resume; None means a new thread.
        :raises ConversationMissing: if the thread to resume does not exist.
        """
        resume = None if thread is None else thread.id
        if resume is not None and not is_thread_id(resume):
            raise ConversationMissing(f"{resume!r} is not a thread id")
        ended = await self._process(context, program, env, config, resume)
        for delay in _BUSY_DELAYS:
            if ended.parser.thread_id is not None or not is_busy(ended.stderr):
                break
            await anyio.sleep(delay)
            ended = await self._process(context, program, env, config, resume)
        return self._conclude(ended, resume)

    def _config(self, tools: Mapping[str, Any], without: Sequence[str]) -> Mapping[str, Any]:
        """Return the overrides of codex's configuration, by dotted key.

        Of the sources that set the same key, trust overrides the provider's ``config``, which overrides
        the tools.

        :param tools: the configuration of the tools.
        :param without: directories from which codex must execute nothing.
        """
        last = untrusted_config(without, self.config, self.extra_args)
        configured = {name: value for name, value in self.config.items() if name not in last}
        return {**tools, **configured, **last}

    async def _process(
        self,
        context: RunContext,
        program: Path,
        env: Mapping[str, str],
        config: Mapping[str, Any],
        resume: str | None,
    ) -> _ProcessResult:
        confinement = await anyio.to_thread.run_sync(self._confinement, context, env)
        parser = ExecParser()
        exit_code = None
        async with _option_files(context) as files:
            argv = exec_argv(
                str(program),
                extra_args=confinement.extra_args,
                profile=self.profile,
                config={**config, **confinement.config, **_effort(context)},
                sandbox=confinement.sandbox,
                model=context.model or self.model,
                output_schema=files.schema,
                images=files.images,
                resume=resume,
            )
            invocation = Invocation(
                self.command, argv, context.session.cwd, self.profile, tuple(self.extra_args)
            )
            async with agent_process(
                argv,
                cwd=context.session.cwd,
                is_cwd_resolved=context.is_cwd_resolved,
                env=env,
                stdin=_stdin(context.prompt),
                on_stdout=context.touch,
                force_stop=context.stop_deadline,
            ) as process:
                await context.report_process(process.pid, invocation)
                try:
                    exit_code = await self._follow(context, process, parser, resume)
                finally:
                    context.note_stderr(process.stderr_tail)
        await _emit(context, parser.finish())
        return _ProcessResult(parser, exit_code, process.stderr_tail)

    def _confinement(self, context: RunContext, env: Mapping[str, str]) -> ExecConfinement:
        protected, settings = ProtectedPaths(), dict[str, Any]()
        if has_profiles(self.probe_now(env).version):
            protected = context.protected
            settings, _ = self._probe.settings(env, self.profile, self.config, self.extra_args)
        return exec_confinement(
            protected,
            cwd=context.session.cwd,
            sandbox=context.run.sandbox or self.sandbox,
            extra_args=self.extra_args,
            settings=settings,
            tmpdir=env.get("TMPDIR"),
        )

    async def _follow(
        self, context: RunContext, process: AgentProcess, parser: ExecParser, resume: str | None
    ) -> int | None:
        """Record codex's output while it runs. Return its exit code; None if it did not exit in time.

        Codex 0.169 reports the thread after it has read the prompt and before it asks the model.
        """
        delivered = False
        with anyio.CancelScope() as exit_scope:
            async for line in process.lines():
                had_ended = parser.ended
                events = await read(line, parser.feed)
                del line  # frees a large line before the next one is read
                if parser.thread_id is not None and not delivered:
                    delivered = True
                    await self._take_thread(context, parser.thread_id, resume)
                await _emit(context, events)
                if any(_is_sandbox_refused(event) for event in events):
                    await context.report_confinement(sandbox="read-only")
                if parser.ended and not had_ended:
                    exit_scope.deadline = anyio.current_time() + _EXIT_GRACE
                    # Reported before the exit, which may take up to `_EXIT_GRACE`.
                    await _report_usage(context, parser)
            return await process.wait()
        return None

    async def _take_thread(self, context: RunContext, thread_id: str, resume: str | None) -> None:
        """Record that codex has the prompt, and its thread.

        Codex 0.169 starts a new thread if it takes the id to resume for an unknown name.

        :raises AgentFailed: if the thread's id is invalid, or if it is not the thread to resume and
            ``on_missing_thread`` is ``fail``.
        """
        if not is_thread_id(thread_id):
            await context.delivered()
            raise AgentFailed(
                "provider_error", f"codex returned an invalid thread id: {thread_id!r}"
            )
        if resume is not None and thread_id != resume:
            await context.delivered()
            note = f"codex started thread {thread_id} instead of resuming thread {resume}"
            if self.on_missing_thread == "fail":
                raise AgentFailed("thread_missing", note)
            await context.emit(EventType.RUN_ERROR, {"message": note, "code": "thread_missing"})
        async with anyio.create_task_group() as both:  # in one commit
            both.start_soon(context.set_thread, thread_id)
            await context.delivered()

    def _conclude(self, ended: _ProcessResult, resume: str | None) -> Outcome:
        parser = ended.parser
        if parser.failure is not None:
            code = turn_failure(parser.failure)
            raise AgentFailed(code, error_words(parser.failure), exit_code=ended.exit_code)
        if parser.completed:
            return Outcome(parser.last_message or "", ended.exit_code)
        code, message = startup_failure(ended.exit_code, ended.stderr)
        if code == "thread_missing" and resume is not None and parser.thread_id is None:
            raise ConversationMissing(message)
        raise AgentFailed(code, message, exit_code=ended.exit_code)


async def _report_usage(context: RunContext, parser: ExecParser) -> None:
    """Record the usage of the turn.

    Codex 0.169 reports totals of the thread. They are stored with the thread, and subtracted.
    """
    if parser.totals is None or parser.thread_id is None:
        return
    state: Mapping[str, Any] = {}
    if context.thread is not None and context.thread.id == parser.thread_id:
        state = context.thread.state
    await context.report_usage(usage_between(state.get("usage") or {}, parser.totals))
    await context.set_thread(parser.thread_id, {**state, "usage": parser.totals})


def _stdin(prompt: str) -> bytes:
    """Return the prompt as input for codex.

    Codex 0.169 drops a byte order mark at the beginning of its stdin, so one is added to a prompt that
    begins with one.
    """
    return (prompt if prompt[:1] != "\ufeff" else f"\ufeff{prompt}").encode()


@frozen
class _OptionFiles:
    """Paths of the files that are passed to ``codex exec`` as options."""

    schema: str | None = None
    images: tuple[str, ...] = ()


@asynccontextmanager
async def _option_files(context: RunContext) -> AsyncIterator[_OptionFiles]:
    """Write the run's output schema and images to private files, and delete them on leaving.

    :raises AgentFailed: if they cannot be written, or codex does not accept their path.
    """
    schema, images = context.run.output_schema, context.images
    if schema is None and not images:
        yield _OptionFiles()
        return
    files: dict[str, bytes] = {}
    if schema is not None:
        files["schema.json"] = json.dumps(schema).encode()
    for number, content in enumerate(images, 1):
        files[f"{number}.{content.image.media_type.partition('/')[2]}"] = content.data
    async with AsyncExitStack() as stack:
        try:
            directory = await stack.enter_async_context(current_host().private_files(files))
        except OSError as problem:
            note = f"the input for codex cannot be written to a file: {problem}"
            raise AgentFailed("provider_error", note) from problem
        if images and "," in str(directory):
            note = f"codex accepts no image whose path contains a comma: {directory}"
            raise AgentFailed("invalid_config", note)
        paths = {name: str(directory / name) for name in files}
        yield _OptionFiles(paths.pop("schema.json", None), tuple(paths.values()))


def _effort(context: RunContext) -> Mapping[str, str]:
    """Return the configuration for the reasoning effort that the run asks for."""
    effort = context.run.effort
    return {} if effort is None else {"model_reasoning_effort": effort}


def _is_sandbox_refused(event: AgentEvent) -> bool:
    """Return whether codex reports that an administrator does not allow its sandbox.

    Codex 0.169 then uses ``read-only`` instead.
    """
    message = text(event.data.get("message"))
    is_error = event.event_type == EventType.RUN_ERROR
    return is_error and "disallowed by requirements" in message and "`sandbox_mode`" in message


async def _emit(context: RunContext, events: Iterable[AgentEvent]) -> None:
    for event in events:
        await context.emit(event.event_type, event.data)
