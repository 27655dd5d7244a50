"""The messages of a run: its prompt, steering messages, and the messages that it did not deliver."""

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
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import MessageQueries
from agent_orchestrator.ports.runner import Runner, capabilities_of


def settle_messages(core: Core, tx: Transaction, run: Run, at: datetime) -> set[str]:
    """Set the delivery of an ended run's undelivered messages, and delete the images of all.

    :return: the ids of the children's results that wait for another run.
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
            tx.put_message(evolve(message, run_id=None))  # the next run delivers it
            returned.add(message.id)
        else:
            tx.put_message(evolve(message, delivery=delivery))
    return returned


def is_recovery_note(message: Message) -> bool:
    """Return True if a message is the note about an interrupted attempt."""
    return message.role == "system" and message.request_id is None


def undelivered_messages(view: MessageQueries, run_id: str) -> list[Message]:
    """Return the steering messages that a run's agent has not taken, in order."""
    return [message for message in view.run_messages(run_id) if _is_undelivered(message)]


def _is_undelivered(message: Message) -> bool:
    return message.is_steering and message.delivery == "queued"


def prompt_messages(core: Core, tx: Transaction, run: Run, thread: Thread | None) -> list[Message]:
    """Return the messages for the prompt of a new attempt, as many as fit.

    Steering messages that an earlier attempt did not take are included. Of the messages that do not fit,
    results of children wait for the next turn, and each other message starts another run.

    :param thread: the conversation to resume, if there is one.
    """
    messages = []
    for message in tx.run_messages(run.id):
        if _is_undelivered(message):
            message = evolve(message, is_steering=False)  # noqa: PLW2901
            tx.put_message(message)
        messages.append(message)
    config = core.config.providers.get(run.provider)
    unseen = messages if config is None else unseen_messages(messages, thread, config.runner)
    later = unseen[count_fitting(unseen, limit_of(core, run.provider)) :]
    for message in later:
        postponed = evolve(message, delivery="queued", delivered_attempt=None)
        if message.source.kind == "child":
            tx.put_message(evolve(postponed, run_id=None))
        elif is_recovery_note(message):  # useless without the other messages
            tx.put_message(evolve(message, delivery="undeliverable"))
        else:
            requeue(core, tx, run, postponed, core.now())
    return [message for message in messages if message not in later]


def unseen_messages(
    messages: Sequence[Message], thread: Thread | None, runner: Runner
) -> Sequence[Message]:
    """Return the messages for the agent: if it resumes a conversation, the undelivered ones if any."""
    undelivered = [message for message in messages if message.delivery == "queued"]
    resumes = capabilities_of(runner).resume
    return undelivered if thread is not None and undelivered and resumes else messages


def mark_delivered(tx: Transaction, message_id: str | None, attempt: int) -> None:
    """Record that an attempt has delivered a message."""
    message = tx.message(message_id) if message_id else None
    if message is not None and message.delivery != "delivered":
        tx.put_message(evolve(message, delivery="delivered", delivered_attempt=attempt))


def drop_steering(tx: Transaction, run: Run, canceled: Collection[str]) -> None:
    """Mark a canceled run's steering messages as undeliverable if the cancel would reach their own runs.

    :param canceled: ids of the runs that the cancel has reached so far.
    """
    if not canceled:
        return
    session = session_of(tx, run)
    for message in undelivered_messages(tx, run.id):
        if spawning_run(tx, session, message) in canceled:
            tx.put_message(evolve(message, delivery="undeliverable"))
