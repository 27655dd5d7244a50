"""The context of an attempt, which its runner uses."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property, partial
from typing import Any, Final, Literal, TypeVar

import anyio
import anyio.lowlevel
from attrs import asdict, evolve

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.events import AGENT_EVENTS, EventType, InvalidEvent
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import (
    MAX_THREAD_ID,
    Invocation,
    Message,
    Request,
    Run,
    Session,
    Thread,
    Usage,
    is_thread_id,
)
from agent_orchestrator.domain.search import searchable
from agent_orchestrator.engine import questions, requests, run_changes, steering
from agent_orchestrator.engine.calls import dispatch
from agent_orchestrator.engine.confinement import Confinement
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.notifier import Waiter
from agent_orchestrator.engine.persistence import read_with_retry, transact_with_retry
from agent_orchestrator.engine.prompts import join_messages
from agent_orchestrator.engine.recorder import IDLE_DELAY_S, Recorder
from agent_orchestrator.fields import MAX_INTEGER, check, shared, takes
from agent_orchestrator.long_work import run_long
from agent_orchestrator.operations.messages import (
    SEND_TO_SESSION,
    SPAWN_FROM_RUN,
    MessageReply,
    SendToSession,
    SpawnFromRun,
    SpawnReply,
)
from agent_orchestrator.operations.options import AskOptions, SendOptions, SpawnOptions
from agent_orchestrator.operations.requests import ReplyParent
from agent_orchestrator.operations.runs import WAIT_RUN, WaitReply, WaitRun
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.changes import Draft, Transaction, line_said
from agent_orchestrator.ports.queries import MessageQueries
from agent_orchestrator.ports.runner import ProtectedPaths
from agent_orchestrator.tools.agent import Agent
from agent_orchestrator.tools.toolbox import AgentTools
from agent_orchestrator.wire import strict_json
from agent_orchestrator.wire.codec import to_plain
from agent_orchestrator.wire.encoded import Encoded
from agent_orchestrator.wire.strict_json import json_copy

Req = TypeVar("Req")
Res = TypeVar("Res")

MAX_WAIT_S: Final = 86_400.0
"""Maximum seconds that one call waits."""


class AttemptContext:
    """The implementation of :class:`agent_orchestrator.ports.runner.RunContext`."""

    def __init__(
        self,
        core: Core,
        recorder: Recorder,
        run: Run,
        session: Session,
        *,
        shared_cwd: str,
        messages: Sequence[Message],
        images: Sequence[ImageContent],
        thread: Thread | None,
        env: Mapping[str, str],
    ) -> None:
        self._core = core
        self._recorder = recorder
        self.run = run
        self.session = session
        self.shared_cwd = shared_cwd
        self.is_cwd_resolved = bool(core.config.workspace_roots)
        self._messages = tuple(message.id for message in messages)
        self.prompt = join_messages(messages)
        self.images = images
        self.thread = thread
        self.env = env
        self.model = run.model
        self.tools = AgentTools(Agent(self._call, run.id, session.id, hold_s=MAX_WAIT_S))
        self.stderr_tail = ""
        self.has_begun = False
        """Whether the agent may have had effects. A fallback may not replace it then."""
        self._delivered = False
        self._is_thread_recorded = thread is not None and run.thread_id == thread.id
        self._question_lock = anyio.Lock()
        """A run waits for one question at a time."""

    @cached_property
    def protected(self) -> ProtectedPaths:
        return self._core.config.protected(self.session.cwd)

    @property
    def has_used_token(self) -> bool:
        return self._core.workers.has_used_token(self.run.id)

    @property
    def is_parking(self) -> bool:
        return self._core.workers.is_parking(self.run.id)

    async def emit(self, event_type: str, data: Mapping[str, Any]) -> None:
        if event_type not in AGENT_EVENTS:
            raise InvalidEvent(f"{event_type!r} is not an event a runner may emit")
        if not isinstance(data, Mapping):
            raise InvalidEvent(f"{event_type}: the data must be an object")
        self.has_begun |= event_type != EventType.RUN_ERROR
        self._recorder.last_activity_at = anyio.current_time()
        # From the data itself: to read it encoded would decode all of it here, on the event loop.
        found, line = searchable(event_type, data), line_said(event_type, data)
        if strict_json.is_long(data):
            with anyio.CancelScope(shield=True):  # a stopped agent's last output is kept
                encoded = await run_long(_encoded, data, event_type)
            draft = Draft(event_type, encoded, self.run.id, self.run.attempt, None, found, line)
        else:
            text = _as_json(data, event_type)
            draft = Draft(event_type, {}, self.run.id, self.run.attempt, text, found, line)
        await self._recorder.put(draft)
        for observer in self._core.config.observers:
            observer.emitted(self.run, event_type, data)

    async def delivered(self) -> None:
        if self._delivered:
            return
        self.has_begun = self._delivered = True
        now = self._core.now()

        def write(tx: Transaction, run: Run) -> None:
            for message_id in self._messages:
                steering.mark_delivered(tx, message_id, run.attempt)
            run_changes.amend_attempt(tx, run, delivered_at=now)

        await self._recorder.put(write)
        await self._recorder.settle()

    async def set_thread(self, thread_id: str, state: Mapping[str, Any] | None = None) -> None:
        _check_thread(thread_id, state)
        _as_json({"id": thread_id, "state": state}, "a thread")
        self._recorder.last_activity_at = anyio.current_time()
        self.has_begun = True
        known = self.thread
        if state is None:
            state = known.state if known is not None and known.id == thread_id else {}
        thread = Thread(thread_id, json_copy(state))
        if thread == known and self._is_thread_recorded:
            return
        is_new = known is None or known.id != thread_id
        self.thread = thread
        self._is_thread_recorded = True
        provider = self.run.provider

        def write(tx: Transaction, run: Run) -> None:
            before = tx.thread(run.session_id, provider)
            tx.put_thread(run.session_id, provider, thread)
            if run.thread_id != thread_id:
                tx.put_run(evolve(run, thread_id=thread_id))
            if before is None or before.id != thread_id:
                data = {"provider": provider, "thread_id": thread_id}
                event_type = EventType.THREAD_STARTED
                if before is not None:
                    data["previous_thread_id"] = before.id
                    event_type = EventType.THREAD_REPLACED
                run_changes.log(tx, run, event_type, data, self._core.now())

        await self._recorder.put(write)
        if is_new:  # a new state of a known id may wait for the next commit
            await self._recorder.settle()

    async def report_usage(self, usage: Usage) -> None:
        _check_usage(usage)
        _as_json(to_plain(usage), "usage")
        self._recorder.last_activity_at = anyio.current_time()

        def write(tx: Transaction, run: Run) -> None:
            tx.put_run(evolve(run, usage=usage))
            run_changes.log(tx, run, EventType.USAGE_UPDATED, to_plain(usage), self._core.now())

        await self._recorder.put(write)

    async def report_process(self, pid: int, invocation: Invocation) -> None:
        self.has_begun = True
        start_id = self._core.config.host.process_start_id(pid)

        def write(tx: Transaction, run: Run) -> None:
            run_changes.amend_attempt(
                tx, run, pid=pid, process_start_id=start_id, invocation=invocation
            )

        await self._recorder.put(write, within_s=IDLE_DELAY_S)

    async def report_confinement(
        self, *, sandbox: str | None = None, approval_policy: str | None = None
    ) -> None:
        reported = Confinement.reported(approval_policy, sandbox)
        actual = reported.or_else(Confinement.of(self.run))
        if actual == Confinement.of(self.run):
            return
        self.run = evolve(self.run, sandbox=actual.sandbox, approval_policy=actual.approval_policy)

        def write(tx: Transaction, run: Run) -> None:
            tx.put_run(evolve(run, sandbox=actual.sandbox, approval_policy=actual.approval_policy))
            values = {"sandbox": sandbox, "approval policy": approval_policy}
            text = ", ".join(f"{name} {value}" for name, value in values.items() if value)
            note = f"the agent is not confined as requested, but with {text}"
            run_changes.log(tx, run, EventType.RUN_ERROR, {"message": note}, self._core.now())

        await self._recorder.put(write)

    def note_stderr(self, tail: str) -> None:
        self.stderr_tail = storable(tail)
        self.touch()

    def touch(self) -> None:
        self._recorder.last_activity_at = anyio.current_time()

    async def stop_deadline(self) -> None:
        await self._core.stop_deadline.wait()

    @takes(SpawnOptions)
    async def spawn(self, options: SpawnOptions) -> SpawnReply:
        command = shared(SpawnFromRun, options, run_id=self.run.id)
        return await self._call(SPAWN_FROM_RUN, command)

    @takes(SendOptions)
    async def send(self, options: SendOptions) -> MessageReply:
        command = shared(SendToSession, options, from_run_id=self.run.id)
        return await self._call(SEND_TO_SESSION, command)

    async def wait(
        self,
        run_id: str,
        *,
        until: Literal["terminal", "attention"] = "terminal",
        ignore: Collection[str] = (),
        timeout_s: float | None = None,
    ) -> WaitReply:
        limit = MAX_WAIT_S if timeout_s is None else timeout_s
        command = WaitRun(run_id, timeout_s=limit, until=until, ignore=ignore)
        while (reply := await self._call(WAIT_RUN, command)).timed_out and timeout_s is None:
            pass  # one call may be too short
        return reply

    async def _call(self, operation: Operation[Req, Res], command: Req, /) -> Res:
        """Call an operation with the access of this attempt's token.

        :raises Forbidden: if the attempt has ended.
        """
        self.has_begun = True
        await self._recorder.settle()
        caller = Principal.of_run(self.run.id, self.run.attempt, self.session.id)
        try:
            return (await dispatch(self._core, caller, operation, command)).answer
        except Unavailable:
            if not self._core.draining:
                raise
        # The engine drains, which is not an error of the agent. The end of the grace period cancels this
        # and releases the attempt.
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    @takes(AskOptions)
    async def ask_parent(self, question: AskOptions) -> Request:
        self.has_begun = True
        check(AskOptions, question)
        command = shared(
            ReplyParent, question, run_id=self.run.id, request_kind=question.kind, wait=True
        )
        async with self._question_lock:
            self._recorder.asking = None  # the agent may have given up the last one
            return await self._ask(command)

    async def _ask(self, question: ReplyParent) -> Request:
        await self._recorder.settle()

        def change(tx: Transaction) -> str:
            asked = self._recorder.asking
            if asked is not None and tx.request(asked) is not None:
                return asked  # committed by an earlier try that seemed to fail
            questions.withdraw_requests(self._core, tx, self._recorder.withdrawn)
            run = run_changes.require_current_attempt(self._core, tx, self.run.id, self.run.attempt)
            session = tx.session(run.session_id)
            assert session is not None
            # Its id is made in the change, so that it sorts after those of all earlier changes.
            request = requests.send_to_parent(self._core, tx, run, session, question).request
            assert request is not None
            self._recorder.asking = request.id
            return request.id

        try:
            request_id = await transact_with_retry(self._core, change)
            request = await self._resolution(request_id)
        except anyio.get_cancelled_exc_class():
            # The question was given up, or the whole attempt is stopped. The worker distinguishes them.
            if self._recorder.asking is not None:
                self._recorder.withdrawn.append(self._recorder.asking)
            self._core.notifier.notify([f"run:{self.run.id}"])
            raise
        self._recorder.asking = None
        self._recorder.reported.add(request_id)
        return request

    async def _resolution(self, request_id: str) -> Request:
        with self._core.notifier.subscribe(f"request:{request_id}") as waiter:
            while True:
                waiter.clear()
                request = await read_with_retry(self._core, lambda view: view.request(request_id))
                if request is not None and not request.is_open:
                    return request
                await waiter.wait()

    def steering(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        return self._steering()

    @asynccontextmanager
    async def _steering(self) -> AsyncIterator[AsyncIterator[str]]:
        with self._core.notifier.subscribe(run_changes.steer_topic(self.run.id)) as waiter:
            self.has_begun = True
            await self._recorder.put(partial(run_changes.amend_attempt, steerable=True))
            await self._recorder.settle()
            try:
                yield _Steering(self._core, self._recorder, self.run, waiter)
            finally:
                await self._recorder.put(partial(run_changes.amend_attempt, steerable=False))


class _Steering:
    """Iterates over the messages for a running agent, and marks each as delivered.

    It is no async generator, so that a runner may stop iterating without closing it.
    """

    def __init__(self, core: Core, recorder: Recorder, run: Run, waiter: Waiter) -> None:
        self._core = core
        self._recorder = recorder
        self._run = run
        self._waiter = waiter
        self._has_received = False

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if not self._has_received:
            await self._waiter.wait()  # no message can exist before it was steerable
            self._has_received = True
        while True:
            self._waiter.clear()
            if (message := await read_with_retry(self._core, self._next)) is not None:
                await self._take(message.id)
                return message.text
            await self._waiter.wait()

    async def _take(self, message_id: str) -> None:
        """Mark a message as delivered. If this is cancelled, the message is queued again."""
        try:
            with anyio.CancelScope(shield=True):
                await self._recorder.put(partial(_mark_taken, self._core, message_id))
                await self._recorder.settle()
            await anyio.lowlevel.checkpoint_if_cancelled()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._recorder.put(partial(_mark_untaken, self._core, message_id))
            raise

    def _next(self, view: MessageQueries) -> Message | None:
        return next(iter(steering.undelivered_messages(view, self._run.id)), None)


def _mark_taken(core: Core, message_id: str, tx: Transaction, run: Run) -> None:
    steering.mark_delivered(tx, message_id, run.attempt)
    if (message := tx.message(message_id)) is not None:
        run_changes.log_delivery(tx, run, message, core.now())


def _mark_untaken(core: Core, message_id: str, tx: Transaction, run: Run) -> None:
    message = tx.message(message_id)
    if message is not None and (message.delivery, message.delivered_attempt) == (
        "delivered",
        run.attempt,
    ):
        returned = evolve(message, delivery="queued", delivered_attempt=None)
        tx.put_message(returned)
        run_changes.log_delivery(tx, run, returned, core.now())


def _check_thread(thread_id: Any, state: Any) -> None:
    """Check a thread from a runner, which may be third-party code.

    :raises InvalidEvent: if the id is not a valid thread id, or the state is neither an object nor None.
    """
    if not isinstance(thread_id, str) or not isinstance(state, Mapping | None):
        raise InvalidEvent("thread: id must be a string, and state must be an object or None")
    if not is_thread_id(thread_id):
        problem = f"must have 1 to {MAX_THREAD_ID:,} characters, not all blank, and no NUL"
        raise InvalidEvent(f"thread: id {problem}")


def _check_usage(usage: Any) -> None:
    if not isinstance(usage, Usage):
        raise InvalidEvent(f"usage: is a {type(usage).__name__}, not a Usage")
    for name, value in asdict(usage).items():
        kinds = (int, float, type(None)) if name == "cost_usd" else (int,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InvalidEvent(f"usage: {name} must be a number")
        if value is not None and not 0 <= value <= MAX_INTEGER:
            raise InvalidEvent(f"usage: {name} must be between 0 and {MAX_INTEGER:,}")


def _encoded(data: Mapping[str, Any], subject: str) -> Encoded:
    """Return long data as JSON, as :func:`_as_json` does, in slices."""
    try:
        encoded = Encoded(strict_json.encode_in_slices(data))
        strict_json.check_readable(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"{subject} cannot be stored as JSON: {error}") from error
    if len(encoded.text) > strict_json.MAX_STORED_SIZE:
        raise InvalidEvent(f"{subject} has more than {strict_json.MAX_STORED_SIZE:,} bytes of JSON")
    return encoded


def _as_json(data: Mapping[str, Any], subject: str) -> str:
    """Return data as JSON text.

    :raises InvalidEvent: if JSON cannot express it, the store cannot store it, or a client cannot read it.
    """
    try:
        text = strict_json.dumps(data)
        text.encode()
        strict_json.check_readable(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"{subject} cannot be stored as JSON: {error}") from error
    return text


def storable(text: str) -> str:
    """Return the text with lone surrogates replaced."""
    if text.isascii():
        return text
    starts = range(0, len(text), strict_json.SLICE_SIZE)
    slices = (text[start : start + strict_json.SLICE_SIZE] for start in starts)
    return "".join(part.encode("utf-8", "replace").decode() for part in slices)
