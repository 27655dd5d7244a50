"""One attempt of a run as its runner sees it, and the recorder behind it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import psutil
from attrs import evolve

from agent_orchestrator.domain.events import AGENT_EVENTS, EventType, InvalidEvent
from agent_orchestrator.domain.model import Invocation, Message, Run, Session, Thread, Usage
from agent_orchestrator.engine import ledger
from agent_orchestrator.engine.bells import Bell
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports import Draft, Transaction, View
from agent_orchestrator.wire import strict_json
from agent_orchestrator.wire.codec import to_plain

Write = Callable[[Transaction, Run], None]
"""A change an attempt asks for besides events; it gets the run as the fence found it."""

MAX_PENDING = 2_000
"""Writes an attempt may have under way before its runner is made to wait."""

MAX_BATCH = 500
"""Writes in one commit: other callers' changes wait behind it."""


class Recorder:
    """Writes what one attempt says, in order, behind the fence of its number.

    Writes gather while a commit is under way and go into the next one together.
    """

    def __init__(self, core: Core, run: Run) -> None:
        self._core = core
        self._run = run
        self._pending: list[Draft | Write] = []
        self._work = anyio.Event()
        self._settled = anyio.Event()
        self.last_output_at: datetime | None = None

    async def put(self, write: Draft | Write) -> None:
        """Put a write behind all before it; waits only while too many are under way."""
        self._pending.append(write)
        self._work.set()
        if len(self._pending) >= MAX_PENDING:
            await self.settle()
        else:
            # Lets the commits go on even where a runner emits without ever waiting.
            await anyio.lowlevel.checkpoint()

    async def settle(self) -> None:
        """Wait until everything put so far is durable."""
        while self._pending:
            await self._settled.wait()

    async def write(self) -> None:
        """Commit what is put, for as long as the attempt lasts.

        :raises StaleAttempt: if the run has moved on.
        """
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            while self._pending:
                await self._commit(self._pending[:MAX_BATCH])
            self._settled.set()
            self._settled = anyio.Event()

    async def _commit(self, batch: list[Draft | Write]) -> None:
        def change(tx: Transaction) -> None:
            ledger.fenced(tx, self._run.id, self._run.attempt)
            self.apply(tx, batch)

        # Shielded: what is committed must leave the list, or the commit that ends the attempt
        # would write it again.
        with anyio.CancelScope(shield=True):
            await self._core.store.transact(change)
            del self._pending[: len(batch)]

    def take(self) -> list[Draft | Write]:
        """Return what is not written yet, for the commit that ends the attempt."""
        return self._pending

    def apply(self, tx: Transaction, batch: list[Draft | Write]) -> None:
        """Make these writes part of a change."""
        now = self._core.now()
        drafts: list[Draft] = []
        for write in batch:
            if isinstance(write, Draft):
                drafts.append(write)
                continue
            if drafts:
                tx.append(self._run.session_id, drafts, now)
                drafts = []
            write(tx, ledger.fenced(tx, self._run.id, self._run.attempt))
        if drafts:
            tx.append(self._run.session_id, drafts, now)


class AttemptContext:
    """What a runner is given: see :class:`agent_orchestrator.ports.RunContext`."""

    def __init__(
        self,
        core: Core,
        recorder: Recorder,
        run: Run,
        session: Session,
        *,
        prompt: str,
        thread: Thread | None,
        env: Mapping[str, str],
    ) -> None:
        self._core = core
        self._recorder = recorder
        self.run = run
        self.session = session
        self.prompt = prompt
        self.thread = thread
        self.env = env
        self.model = run.model
        self.stderr_tail = ""
        self.is_delivered = False

    async def emit(self, event_type: str, data: Mapping[str, Any]) -> None:
        if event_type not in AGENT_EVENTS:
            raise InvalidEvent(f"{event_type!r} is not an event a runner may emit")
        try:
            strict_json.dumps(data).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEvent(f"the data of {event_type} is not JSON: {error}") from error
        self._recorder.last_output_at = self._core.now()
        await self._recorder.put(Draft(event_type, data, self.run.id, self.run.attempt))

    async def delivered(self) -> None:
        if self.is_delivered:
            return
        self.is_delivered = True
        now = self._core.now()

        def write(tx: Transaction, run: Run) -> None:
            ledger.mark_delivered(tx, run.message_id)
            for attempt in tx.attempts(run.id):
                if attempt.attempt == run.attempt:
                    tx.put_attempt(evolve(attempt, delivered_at=now))

        await self._recorder.put(write)

    async def set_thread(self, thread_id: str, state: Mapping[str, Any] | None = None) -> None:
        known = self.thread
        if state is None:
            state = known.state if known is not None and known.id == thread_id else {}
        thread = Thread(thread_id, state)
        if thread == known:
            return
        self.thread = thread
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
                ledger.log(tx, run, event_type, data, self._core.now())

        await self._recorder.put(write)
        await self._recorder.settle()

    async def report_usage(self, usage: Usage) -> None:
        def write(tx: Transaction, run: Run) -> None:
            tx.put_run(evolve(run, usage=usage))
            ledger.log(tx, run, EventType.USAGE_UPDATED, to_plain(usage), self._core.now())

        await self._recorder.put(write)

    async def report_process(self, pid: int, invocation: Invocation) -> None:
        try:
            started_at = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            started_at = None

        def write(tx: Transaction, run: Run) -> None:
            for attempt in tx.attempts(run.id):
                if attempt.attempt == run.attempt:
                    tx.put_attempt(
                        evolve(attempt, pid=pid, pid_started_at=started_at, invocation=invocation)
                    )

        await self._recorder.put(write)
        await self._recorder.settle()

    def note_stderr(self, tail: str) -> None:
        self.stderr_tail = tail

    def steering(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        return self._steering()

    @asynccontextmanager
    async def _steering(self) -> AsyncIterator[AsyncIterator[str]]:
        with self._core.bells.take(ledger.steer_topic(self.run.id)) as bell:
            await self._recorder.put(lambda tx, run: _set_steerable(tx, run, steerable=True))
            await self._recorder.settle()
            try:
                yield _Steering(self._core, self._recorder, self.run, bell)
            finally:
                await self._recorder.put(lambda tx, run: _set_steerable(tx, run, steerable=False))


class _Steering:
    """The messages that come for a running agent; taking one marks it delivered.

    Not an async generator: a runner may leave it in the middle, with nothing to close.
    """

    def __init__(self, core: Core, recorder: Recorder, run: Run, bell: Bell) -> None:
        self._core = core
        self._recorder = recorder
        self._run = run
        self._bell = bell

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            self._bell.hush()
            if (message := await self._core.store.read(self._next)) is not None:
                await self._recorder.put(partial(_take, message.id))
                await self._recorder.settle()
                return message.text
            await self._bell.wait()

    def _next(self, view: View) -> Message | None:
        for message in view.run_messages(self._run.id):
            if message.id != self._run.message_id and message.delivery == "queued":
                return message
        return None


def _take(message_id: str, tx: Transaction, _: Run) -> None:
    ledger.mark_delivered(tx, message_id)


def _set_steerable(tx: Transaction, run: Run, *, steerable: bool) -> None:
    for attempt in tx.attempts(run.id):
        if attempt.attempt == run.attempt:
            tx.put_attempt(evolve(attempt, steerable=steerable))
