"""The messages of a run: what its agent is given at first and while it works, and what becomes of the rest."""

from collections.abc import Collection, Sequence
from datetime import datetime

from attrs import evolve

from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Delivery,
    Message,
    Run,
    Thread,
)
from agent_orchestrator.engine import images
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.prompts import count_fitting, limit_of
from agent_orchestrator.engine.queueing import requeue, spawning_run
from agent_orchestrator.engine.run_changes import session_of
from agent_orchestrator.ports import Runner, Transaction, View, capabilities_of


def settle_messages(core: Core, tx: Transaction, run: Run, at: datetime) -> set[str]:
    """Say what became of the messages of a run that has ended without word of their delivery, and forget
    the images of all.

    :return: the ids of those that wait again.
    """
    returned = set()
    delivery: Delivery = "delivered" if run.status is RunStatus.COMPLETED else "undeliverable"
    messages = tx.run_messages(run.id)
    images.delete_images(tx, messages)
    for message in messages:
        if message.delivery != "queued":
            continue
        if message.is_steering:
            requeue(core, tx, run, evolve(message, is_steering=False), at)
        elif delivery == "undeliverable" and message.source.kind == "child":
            tx.put_message(evolve(message, run_id=None))  # it goes with the next turn
            returned.add(message.id)
        else:
            tx.put_message(evolve(message, delivery=delivery))
    return returned


def is_recovery_note(message: Message) -> bool:
    """Return whether a run's message is a note of what became of the attempt before."""
    return message.role == "system" and message.request_id is None


def undelivered_messages(view: View, run_id: str) -> list[Message]:
    """Return what came for a run's agent while it works and it has not taken, in order."""
    return [one for one in view.run_messages(run_id) if _is_undelivered(one)]


def _is_undelivered(message: Message) -> bool:
    return message.is_steering and message.delivery == "queued"


def prompt_messages(core: Core, tx: Transaction, run: Run, thread: Thread | None) -> list[Message]:
    """Return what an attempt that begins is to give its agent: as much as it takes at once.

    What came for the agent of one before, and was not taken, is among it: it steers nobody any more.
    The rest follows: outcomes of children wait for the next turn, other messages become runs.

    :param thread: the conversation it goes on with, if its session has one.
    """
    messages = []
    for message in tx.run_messages(run.id):
        if _is_undelivered(message):
            message = evolve(message, is_steering=False)  # noqa: PLW2901
            tx.put_message(message)
        messages.append(message)
    config = core.config.providers.get(run.provider)
    given = messages if config is None else unseen_messages(messages, thread, config.runner)
    fit = count_fitting(given, limit_of(core, run.provider))
    later = given[fit:]
    for message in later:
        put_off = evolve(message, delivery="queued", delivered_attempt=None)
        if message.source.kind == "child":
            tx.put_message(evolve(put_off, run_id=None))
        elif is_recovery_note(message):  # of no use by itself
            tx.put_message(evolve(message, delivery="undeliverable"))
        else:
            requeue(core, tx, run, put_off, core.now())
    return [message for message in messages if message not in later]


def unseen_messages(
    messages: Sequence[Message], thread: Thread | None, runner: Runner
) -> Sequence[Message]:
    """Return those of a run's messages that its agent is to be given: where it goes on with a
    conversation, only those that the conversation does not have.
    """
    fresh = [message for message in messages if message.delivery == "queued"]
    resumes = capabilities_of(runner).resumes
    return fresh if thread is not None and fresh and resumes else messages


def mark_delivered(tx: Transaction, message_id: str | None, attempt: int) -> None:
    """Record that the agent has the message, and by which attempt of its run."""
    message = tx.message(message_id) if message_id else None
    if message is not None and message.delivery != "delivered":
        tx.put_message(evolve(message, delivery="delivered", delivered_attempt=attempt))


def drop_steering(tx: Transaction, run: Run, canceled: Collection[str]) -> None:
    """Keep what a run was to be told on its way from becoming a run of its own, where that would be
    reached by the cancel of one above as the run itself is.
    """
    if not canceled:
        return
    session = session_of(tx, run)
    for message in undelivered_messages(tx, run.id):
        if spawning_run(tx, session, message) in canceled:
            tx.put_message(evolve(message, delivery="undeliverable"))
