"""The contract suite for runners, and the context its runs get.

    class TestMine(RunnerContract):
        succeeding, answer = "say hello", "hello"
        lasting = "think for an hour"
        failing = "give up"

        def make_runner(self):
            return MyRunner("mine")

The tests run on asyncio and on trio, with pytest and the pytest plugin of anyio.
"""

import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream
from attrs import evolve

from agent_orchestrator.domain.errors import AgentFailed, NotFound
from agent_orchestrator.domain.events import AGENT_EVENTS, EventType, InvalidEvent
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    FAILURE_CODES,
    Invocation,
    Message,
    Request,
    Run,
    RunResult,
    Session,
    Source,
    Thread,
    Usage,
)
from agent_orchestrator.fields import takes, values_of
from agent_orchestrator.long_work import run_long
from agent_orchestrator.operations.messages import (
    MessageReply,
    SendToSession,
    SpawnFromRun,
    SpawnReply,
)
from agent_orchestrator.operations.options import (
    AnswerOptions,
    AskOptions,
    QuestionDetails,
    SendOptions,
    SessionLimits,
    SpawnOptions,
)
from agent_orchestrator.operations.requests import (
    ListRequests,
    ReplyParent,
    ReplyParentReply,
    RequestPage,
)
from agent_orchestrator.operations.runs import WaitReply, WaitRun
from agent_orchestrator.operations.sessions import GetTree, SessionTree, TreePage
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.runner import TAG_VARIABLE, Probing, ProtectedPaths, Runner
from agent_orchestrator.tools.agent import Agent
from agent_orchestrator.tools.toolbox import AgentTools
from agent_orchestrator.wire import strict_json

Req = TypeVar("Req")
Res = TypeVar("Res")

_THEN = datetime(2030, 1, 1, tzinfo=UTC)


class RecordingContext:
    """A :class:`RunContext` that records its calls.

    :param cwd: the session's working directory.
    :param shared_cwd: the directory that the session shares with its ancestors. Default: ``cwd``.
    :param is_cwd_resolved: refuse to start an agent if ``cwd`` contains a symbolic link.
    :param protected: paths that the agent must not access.
    :param env: variables to add to this process's environment.
    :param images: images to show to the agent with the prompt.
    :ivar tag: the value of :data:`TAG_VARIABLE` in the environment of the attempt's processes.
    :ivar calls: names of the called methods, in order; for ``emit`` with the event type.
    :ivar events: types and data of the emitted events, in order.
    :ivar children: spawned children.
    :ivar sent: session ids and texts of messages to children.
    :ivar replies: texts of messages to the parent.
    :ivar tools: the tools for agents, over the methods of this context.
    :ivar has_used_token: set it as if the agent had used its token.
    :ivar is_parking: set it before a cancel as if the run were being parked.
    :ivar force_stop: set it to make a stopping runner kill its agent at once.
    """

    def __init__(
        self,
        prompt: str,
        *,
        cwd: str | Path,
        shared_cwd: str | Path | None = None,
        thread: Thread | None = None,
        model: str | None = None,
        provider: str = "runner",
        env: Mapping[str, str] | None = None,
        is_cwd_resolved: bool = False,
        protected: ProtectedPaths | None = None,
        images: Sequence[ImageContent] = (),
    ) -> None:
        self.protected = protected or ProtectedPaths()
        self.is_cwd_resolved = is_cwd_resolved
        self.shared_cwd = str(cwd if shared_cwd is None else shared_cwd)
        self.tag = uuid.uuid4().hex
        self.prompt = prompt
        self.images = images
        self.thread = thread
        self.model = model
        self.env = {**os.environ, **(env or {}), TAG_VARIABLE: self.tag}
        self.session = _session(str(cwd))
        self.run = _run(provider, model)
        self.calls: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.children: list[SpawnReply] = []
        self.sent: list[tuple[str, str]] = []
        self.replies: list[str] = []
        self.tools = AgentTools(Agent(self._call, self.run.id, self.session.id))
        self.usage: Usage | None = None
        self.pid: int | None = None
        self.invocation: Invocation | None = None
        self.confinement: dict[str, str | None] | None = None
        self.stderr = ""
        self.has_used_token = self.is_parking = False
        self.force_stop = anyio.Event()
        self._changed = anyio.Event()
        self._steering: MemoryObjectSendStream[str] | None = None

    async def emit(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Record an event.

        :raises InvalidEvent: under the same conditions as the engine.
        """
        if event_type not in AGENT_EVENTS:
            raise InvalidEvent(f"{event_type} is not an agent's to write")
        if not isinstance(data, Mapping):
            raise InvalidEvent(f"{event_type}: the data must be an object")
        try:
            if strict_json.is_long(data):  # in a thread, to keep the event loop free
                await run_long(strict_json.encode_in_slices, data)
                kept = deepcopy(dict(data))
            else:
                text = json.dumps(data, allow_nan=False, ensure_ascii=False)
                text.encode()
                kept = json.loads(text)
            strict_json.check_readable(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEvent(str(error)) from error
        self.events.append((str(event_type), kept))
        await self._note(f"emit {event_type}")

    async def delivered(self) -> None:
        """Record the delivery of the prompt."""
        await self._note("delivered")

    async def set_thread(self, thread_id: str, state: Mapping[str, Any] | None = None) -> None:
        """Set the thread.

        :raises InvalidEvent: if the id is not a string, or the state is not an object or None.
        """
        values: tuple[object, object] = (thread_id, state)
        if not isinstance(values[0], str) or not isinstance(values[1], Mapping | None):
            raise InvalidEvent("thread: id must be a string, and state must be an object or None")
        if state is None:
            same = self.thread is not None and self.thread.id == thread_id
            state = self.thread.state if self.thread is not None and same else {}
        self.thread = Thread(thread_id, dict(state))
        await self._note("set_thread")

    async def report_usage(self, usage: Usage) -> None:
        """Record the usage."""
        self.usage = usage
        await self._note("report_usage")

    async def report_process(self, pid: int, invocation: Invocation) -> None:
        """Record the process."""
        self.pid, self.invocation = pid, invocation
        await self._note("report_process")

    async def report_confinement(
        self, *, sandbox: str | None = None, approval_policy: str | None = None
    ) -> None:
        """Record the agent's confinement."""
        self.confinement = {"sandbox": sandbox, "approval_policy": approval_policy}
        await self._note("report_confinement")

    def note_stderr(self, tail: str) -> None:
        """Record the end of stderr."""
        self.stderr = tail
        self._notify()

    def touch(self) -> None:
        """Do nothing, because there is no timeout."""

    async def stop_deadline(self) -> None:
        """Wait until ``force_stop`` is set."""
        await self.force_stop.wait()

    @takes(SpawnOptions)
    async def spawn(self, options: SpawnOptions) -> SpawnReply:
        """Record a child. Its run completes at once with an empty result."""
        await self._note("spawn")
        number = len(self.children) + 1
        session = evolve(
            _session(options.cwd or self.session.cwd),
            id=f"ses_{number}",
            title=options.title,
            parent_session_id=self.session.id,
            parent_run_id=self.run.id,
            depth=1,
            notify_parent=options.notify_parent,
            approvals=options.approvals,
            **values_of(SessionLimits, options),
        )
        message = _message(session.id, f"run_{number}", options.task)
        run = evolve(
            _run(options.provider or self.run.provider, options.model),
            id=f"run_{number}",
            **values_of(AnswerOptions, options),
            session_id=session.id,
            message_id=message.id,
            parent_run_id=self.run.id,
            status=RunStatus.COMPLETED,
            result=RunResult(""),
            finished_at=_THEN,
        )
        reply = SpawnReply(session, message, run)
        self.children.append(reply)
        return reply

    @takes(SendOptions)
    async def send(self, options: SendOptions) -> MessageReply:
        """Record a message to a child, and return it with the child's run.

        :raises NotFound: if there is no such child.
        """
        await self._note("send")
        session_id = options.session_id
        for child in self.children:
            if child.session.id == session_id:
                self.sent.append((session_id, options.text))
                return MessageReply(_message(session_id, child.run.id, options.text), child.run)
        raise NotFound(f"no session {session_id}", {"session_id": session_id})

    async def wait(
        self,
        run_id: str,
        *,
        until: Literal["terminal", "attention"] = "terminal",  # noqa: ARG002 - nobody is there
        ignore: Collection[str] = (),  # noqa: ARG002 - nobody is there
        timeout_s: float | None = None,  # noqa: ARG002 - nobody is there
    ) -> WaitReply:
        """Return the completed run of a child.

        :raises NotFound: if there is no such child.
        """
        await self._note("wait")
        for child in self.children:
            if child.run.id == run_id:
                return WaitReply(child.run, timed_out=False)
        raise NotFound(f"no run {run_id}", {"run_id": run_id})

    @takes(AskOptions)
    async def ask_parent(self, question: AskOptions) -> Request:
        """Return a denied request."""
        await self._note(f"ask_parent {question.kind}")
        return Request(
            id="req_0",
            session_id=self.session.id,
            run_id=self.run.id,
            attempt=1,
            root_session_id=self.session.id,
            parent_session_id=None,
            kind=question.kind,
            text=question.text,
            detail=question.detail,
            options=question.offered,
            status="denied",
            decision="deny",
            answer=None,
            scope=None,
            decided_by=None,
            created_at=_THEN,
            expires_at=_THEN + timedelta(seconds=question.expires_in_s),
            resolved_at=_THEN,
        )

    async def _call(self, _: Operation[Req, Res], request: Req, /) -> Res:
        """Answer an operation of a tool."""
        answer: Any
        match request:
            case SpawnFromRun():
                answer = await self.spawn(**values_of(SpawnOptions, request))
            case SendToSession():
                answer = await self.send(**values_of(SendOptions, request))
            case WaitRun():
                answer = await self.wait(request.run_id, until=request.until, ignore=request.ignore)
            case ReplyParent():
                answer = await self._reply_parent(request)
            case ListRequests():
                answer = RequestPage((), None)
            case GetTree():
                nodes = [SessionTree(child.session, (child.run,), ()) for child in self.children]
                count = len(nodes)
                answer = TreePage(self.session, (self.run,), tuple(nodes), children_count=count)
            case _:
                raise NotFound("this context has no requests")
        return cast("Res", answer)

    async def _reply_parent(self, command: ReplyParent) -> ReplyParentReply:
        if command.request_kind is None:
            self.replies.append(command.text)
            await self._note("reply_parent")
            return ReplyParentReply(_message("ses_parent", "run_parent", command.text), None, None)
        request = await self.ask_parent(
            command.text, kind=command.request_kind, **values_of(QuestionDetails, command)
        )
        return ReplyParentReply(None, None, request)

    @asynccontextmanager
    async def steering(self) -> AsyncIterator[AsyncIterator[str]]:
        """Receive the texts passed to :meth:`steer`."""
        sender, receiver = anyio.create_memory_object_stream[str](100)
        with sender, receiver:
            self._steering = sender
            try:
                yield receiver
            finally:
                self._steering = None

    def steer(self, text: str) -> bool:
        """Send a text to the running agent. Return False if it does not accept any."""
        if self._steering is None:
            return False
        self._steering.send_nowait(text)
        return True

    async def until(self, happened: Callable[["RecordingContext"], bool]) -> None:
        """Wait until a condition on this context holds."""
        while not happened(self):
            await self._changed.wait()

    def texts(self, event_type: str = EventType.AGENT_MESSAGE) -> list[str]:
        """Return the texts of all events of one type."""
        return [data["text"] for kind, data in self.events if kind == event_type]

    async def _note(self, call: str) -> None:
        self.calls.append(call)
        self._notify()
        await anyio.lowlevel.checkpoint()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def tagged_processes(tag: str) -> list[int]:
    """Return the pids of live processes with this tag in their environment."""
    entry = f"{TAG_VARIABLE}={tag}".encode()
    pids = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if entry in (folder / "environ").read_bytes().split(b"\0"):
                    pids.append(int(folder.name))
            except OSError:  # it has ended, or belongs to another user
                continue
    return pids


@pytest.mark.anyio
class RunnerContract:
    """The contract of runners. Override :meth:`make_runner` and the prompts."""

    succeeding: ClassVar[str] = "succeed"
    """A prompt that succeeds."""
    answer: ClassVar[str | None] = None
    """The result for :attr:`succeeding`; None for any."""
    lasting: ClassVar[str | None] = "last"
    """A prompt that keeps the agent busy for at least 30 seconds; None if there is none."""
    failing: ClassVar[str | None] = "fail"
    """A prompt that fails; None if there is none."""
    failure_code: ClassVar[str | None] = None
    """The error code of the failure; None for any."""
    delegating: ClassVar[str | None] = None
    """A prompt on which the agent calls the tool ``session_spawn`` once; None if it has no tools."""
    shares_processes: ClassVar[bool] = False
    """True if one process serves several runs."""
    time_limit_s: ClassVar[float] = 60

    def make_runner(self) -> Runner:
        """Return a new runner."""
        raise NotImplementedError

    def make_context(self, prompt: str, cwd: Path) -> RecordingContext:
        """Return a context for one run."""
        return RecordingContext(prompt, cwd=cwd)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Runner]:
        """Make a runner, and enter it if it is a context manager."""
        runner = self.make_runner()
        with anyio.fail_after(self.time_limit_s):
            if isinstance(runner, AbstractAsyncContextManager):
                async with runner:
                    yield runner
            else:
                yield runner

    async def test_the_runner_has_a_name(self) -> None:
        async with self.opened() as runner:
            assert isinstance(runner, Runner)
            assert runner.name

    async def test_a_successful_run_has_a_text_result(self, tmp_path: Path) -> None:
        async with self.opened() as runner:
            outcome = await runner.run(self.make_context(self.succeeding, tmp_path))
        assert isinstance(outcome.text, str)
        if self.answer is not None:
            assert outcome.text == self.answer

    async def test_events_have_types_of_agents_and_are_in_order(self, tmp_path: Path) -> None:
        context = self.make_context(self.succeeding, tmp_path)
        async with self.opened() as runner:
            await runner.run(context)
        pieces: dict[str, str] = {}
        tools = set()
        for kind, data in context.events:
            match kind:
                case EventType.AGENT_MESSAGE_DELTA:
                    pieces[data["item_id"]] = pieces.get(data["item_id"], "") + data["text"]
                case EventType.AGENT_MESSAGE:
                    item = data.get("item_id", "")
                    assert pieces.pop(item, data["text"]) == data["text"]
                case EventType.TOOL_STARTED:
                    tools.add(data["tool_id"])
                case EventType.TOOL_OUTPUT:
                    assert data["tool_id"] in tools
        assert not pieces, "a message streamed in pieces never came whole"

    async def test_process_and_delivery_are_reported_before_any_effect(
        self, tmp_path: Path
    ) -> None:
        context = self.make_context(self.succeeding, tmp_path)
        async with self.opened() as runner:
            await runner.run(context)
        assert context.calls.count("delivered") == 1
        effects = ("emit", "report_usage")
        first = next(
            (place for place, call in enumerate(context.calls) if call.startswith(effects)),
            len(context.calls),
        )
        before = context.calls[:first]
        assert "delivered" in before
        if context.pid is not None:
            assert "report_process" in before
            assert context.invocation is not None

    async def test_a_run_leaves_no_process(self, tmp_path: Path) -> None:
        context = self.make_context(self.succeeding, tmp_path)
        async with self.opened() as runner:
            await runner.run(context)
            assert tagged_processes(context.tag) == []

    async def test_a_canceled_run_ends_and_leaves_no_process(self, tmp_path: Path) -> None:
        if self.lasting is None:
            pytest.skip("this runner has nothing that lasts")
        context = self.make_context(self.lasting, tmp_path)
        async with self.opened() as runner:
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                ended = anyio.Event()

                async def execute() -> None:
                    with scope:
                        await runner.run(context)
                    ended.set()

                tasks.start_soon(execute)
                await context.until(lambda c: "delivered" in c.calls)
                scope.cancel()
                with anyio.fail_after(45):
                    await ended.wait()
            assert scope.cancelled_caught, "the run ended by itself"
            assert tagged_processes(context.tag) == []
            await runner.run(self.make_context(self.succeeding, tmp_path))

    async def test_a_run_can_be_canceled_before_it_begins(self, tmp_path: Path) -> None:
        context = self.make_context(self.lasting or self.succeeding, tmp_path)
        async with self.opened() as runner:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await runner.run(context)
            assert scope.cancelled_caught
            assert tagged_processes(context.tag) == []

    async def test_concurrent_runs_do_not_mix(self, tmp_path: Path) -> None:
        contexts = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            contexts.append(self.make_context(self.succeeding, tmp_path / name))
        texts: dict[str, str] = {}
        async with self.opened() as runner, anyio.create_task_group() as tasks:

            async def execute(context: RecordingContext) -> None:
                texts[context.tag] = (await runner.run(context)).text

            for context in contexts:
                tasks.start_soon(execute, context)
        first, second = contexts
        assert set(texts) == {first.tag, second.tag}
        # Whether a short text also comes in pieces depends on the time it takes.
        kinds = [
            [kind for kind, _ in context.events if kind != EventType.AGENT_MESSAGE_DELTA]
            for context in contexts
        ]
        assert kinds[0] == kinds[1]
        if self.answer is not None:
            assert set(texts.values()) == {self.answer}
        if first.pid is not None:
            assert (first.pid == second.pid) is self.shares_processes

    async def test_the_agents_tools_act_for_its_run(self, tmp_path: Path) -> None:
        if self.delegating is None:
            pytest.skip("this runner gives its agents no tools")
        contexts = [self.make_context(self.delegating, tmp_path) for _ in range(2)]
        async with self.opened() as runner:
            for context in contexts:
                await runner.run(context)
        assert [len(context.children) for context in contexts] == [1, 1]
        for context in contexts:
            assert tagged_processes(context.tag) == []

    async def test_a_failure_has_a_known_code(self, tmp_path: Path) -> None:
        if self.failing is None:
            pytest.skip("nothing makes this runner fail")
        context = self.make_context(self.failing, tmp_path)
        async with self.opened() as runner:
            with pytest.raises(AgentFailed) as caught:
                await runner.run(context)
        assert caught.value.code in FAILURE_CODES
        assert caught.value.message
        if self.failure_code is not None:
            assert caught.value.code == self.failure_code
        assert tagged_processes(context.tag) == []

    async def test_the_probe_reports_the_runner_as_available(self) -> None:
        async with self.opened() as runner:
            if not isinstance(runner, Probing):
                pytest.skip("this runner cannot be probed")
            first, second = await runner.probe(os.environ), await runner.probe(os.environ)
        assert first.available, first.reason
        assert first == second


def _session(cwd: str) -> Session:
    return Session(
        id="ses_0",
        title=None,
        owner="local",
        provider=None,
        model=None,
        cwd=cwd,
        status="open",
        parent_session_id=None,
        parent_run_id=None,
        root_session_id="ses_0",
        depth=0,
        metadata={},
        threads={},
        last_seq=0,
        created_at=_THEN,
        updated_at=_THEN,
    )


def _message(session_id: str, run_id: str, text: str) -> Message:
    return Message(
        id=f"msg_{uuid.uuid4().hex}",
        session_id=session_id,
        role="user",
        source=Source("parent", session_id="ses_0", run_id="run_0"),
        text=text,
        run_id=run_id,
        delivery="delivered",
        created_at=_THEN,
    )


def _run(provider: str, model: str | None) -> Run:
    return Run(
        id="run_0",
        session_id="ses_0",
        message_id="msg_0",
        parent_run_id=None,
        provider=provider,
        model=model,
        status=RunStatus.RUNNING,
        waiting_on=None,
        attempt=1,
        worker_id="worker",
        thread_id=None,
        result=None,
        error=None,
        usage=None,
        exit_code=None,
        cancel_requested_at=None,
        cancel_reason=None,
        created_at=_THEN,
        started_at=_THEN,
        finished_at=None,
    )
