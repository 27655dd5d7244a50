"""What a daemon asks the others that share its store: the processes of a run are on another machine.

The question and its answer go through the store. So they need no address of the other daemon, and no token:
whoever asks has checked that the caller may read the run, and only daemons can write to the store.
"""

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
from attrs import frozen

from agent_orchestrator.domain.daemons import DaemonRecord
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.model import Attempt, Run
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations.runs import ProcessView
from agent_orchestrator.ports.store import INQUIRIES_TOPIC, Inquiring, answer_topic
from agent_orchestrator.wire import codec

logger = logging.getLogger("agent_orchestrator.sharing")

ANSWER_S: Final = 3.0
"""Seconds to wait for another daemon's answer."""

RETRY_S: Final = 1.0
"""Seconds until the next look for questions after the store could not be reached."""

MAX_PROCESSES: Final = 200
"""Maximum number of processes of a run that are shown."""


@frozen
class _Question:
    run_id: str
    attempt: int


@frozen
class _Answer:
    """The processes of an attempt, or why they are not known."""

    processes: tuple[ProcessView, ...] = ()
    problem: str | None = None


async def processes_here(core: Core, attempt: Attempt) -> tuple[ProcessView, ...]:
    """Return the processes of an attempt's agent on this host, the agent first."""
    if attempt.pid is None:
        return ()
    query = partial(
        core.config.host.process_tree, attempt.pid, attempt.process_start_id, MAX_PROCESSES
    )
    return tuple(await anyio.to_thread.run_sync(query))


async def processes_elsewhere(
    core: Core, daemon: DaemonRecord, attempt: Attempt
) -> tuple[tuple[ProcessView, ...], str | None]:
    """Ask the daemon that executes an attempt for its agent's processes.

    :return: the processes, and why they are not known, in words; None if they are.
    """
    name = f"the daemon {daemon.id} on {daemon.node} (process {daemon.pid})"
    if daemon.away_since is not None:
        return (), f"{name} has them, and is away since {daemon.away_since:%Y-%m-%dT%H:%M:%SZ}"
    question = json.dumps(codec.to_plain(_Question(attempt.run_id, attempt.attempt)))
    try:
        with anyio.fail_after(ANSWER_S):
            text = await _ask(core, daemon.id, question)
        answer = codec.from_plain(_Answer, json.loads(text))
    except TimeoutError:
        return (), f"{name} has them, and did not answer within {ANSWER_S:g} s"
    except Unavailable as error:
        return (), f"{name} has them, and could not be asked: {error.message}"
    except ValueError:
        return (), f"{name} has them, and its answer cannot be read: it may be of another version"
    if answer.problem is not None:
        return (), f"{name} says: {answer.problem}"
    return answer.processes, None


async def _ask(core: Core, daemon_id: str, question: str) -> str:
    """Ask a daemon and wait for its answer.

    :raises Unavailable: if the store cannot be reached, or its daemons cannot ask each other.
    """
    store = core.store
    if not isinstance(store, Inquiring):
        raise Unavailable("the store has no way to ask")
    inquiry_id = await store.ask(daemon_id, question)
    with core.notifier.subscribe(answer_topic(inquiry_id)) as waiter:
        while True:
            waiter.clear()
            if (text := await store.take_answer(inquiry_id)) is not None:
                return text
            await waiter.wait()


async def answer_inquiries(core: Core) -> None:
    """Answer the other daemons until cancelled. Returns at once if there can be none."""
    store = core.store
    if not isinstance(store, Inquiring):
        return
    with core.notifier.subscribe(INQUIRIES_TOPIC) as waiter:
        while True:
            waiter.clear()
            try:
                for inquiry_id, question in await store.inquiries():
                    answer = await _safely_answer(core, question)
                    await store.answer(inquiry_id, json.dumps(codec.to_plain(answer)))
            except Unavailable as error:
                logger.info("questions of other daemons cannot be read now: %s", error)
                await anyio.sleep(RETRY_S)
            else:
                await waiter.wait()


async def _safely_answer(core: Core, text: str) -> _Answer:
    try:
        return await _answer(core, text)
    except Unavailable:
        raise
    except Exception as error:
        logger.exception("a question of another daemon could not be answered")
        return _Answer(problem=f"looking for them failed: {error!r}")


async def _answer(core: Core, text: str) -> _Answer:
    try:
        question = codec.from_plain(_Question, json.loads(text))
    except ValueError:
        return _Answer(problem="the question cannot be read: it may be of another version")
    run, attempts = await core.store.read(
        lambda view: (view.run(question.run_id), view.attempts(question.run_id))
    )
    attempt = _current(core, run, attempts, question.attempt)
    if attempt is None:
        return _Answer(problem="it does not execute the run any more")
    return _Answer(await processes_here(core, attempt))


def _current(
    core: Core, run: Run | None, attempts: Sequence[Attempt], number: int
) -> Attempt | None:
    """Return an attempt if this engine executes it now."""
    if run is None or run.attempt != number or run.id not in core.workers.running:
        return None
    return next((one for one in attempts if one.attempt == number), None)
