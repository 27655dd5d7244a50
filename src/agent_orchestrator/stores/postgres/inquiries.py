"""What a daemon asks another one about its machine. The rows are not part of the log."""

import json
from typing import Final

from agent_orchestrator.ports.store import INQUIRIES_TOPIC, answer_topic
from agent_orchestrator.stores.encoding import new_epoch
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.daemons import CHANNEL

_FORGET: Final = "DELETE FROM inquiries WHERE asked_at < clock_timestamp() - interval '1 minute'"
_ASK: Final = "INSERT INTO inquiries (id, daemon_id, question) VALUES (?, ?, ?)"
_OPEN: Final = (
    "SELECT id, question FROM inquiries WHERE daemon_id = ? AND answer IS NULL ORDER BY id"
)
_ANSWER: Final = "UPDATE inquiries SET answer = ? WHERE id = ? AND daemon_id = ?"
_ANSWERED: Final = "SELECT answer FROM inquiries WHERE id = ?"
_TAKE: Final = "DELETE FROM inquiries WHERE id = ?"
_NOTIFY: Final = f"SELECT pg_notify('{CHANNEL}', ?)::text"


def ask(connection: Connection, sender: str, daemon_id: str, question: str) -> str:
    """Record a question to a daemon, notify it, and return the question's id."""
    inquiry_id = f"inq_{new_epoch()}"
    connection.execute(_FORGET)
    connection.execute(_ASK, (inquiry_id, daemon_id, question))
    connection.execute(_NOTIFY, (json.dumps([sender, INQUIRIES_TOPIC]),))
    return inquiry_id


def open_inquiries(connection: Connection, daemon_id: str) -> list[tuple[str, str]]:
    """Return the ids and texts of the questions to a daemon that have no answer."""
    return [(row[0], row[1]) for row in connection.execute(_OPEN, (daemon_id,))]


def answer(connection: Connection, daemon_id: str, inquiry_id: str, text: str) -> None:
    """Record the answer to a question, and notify whoever asked."""
    connection.execute(_ANSWER, (text, inquiry_id, daemon_id))
    connection.execute(_NOTIFY, (json.dumps([daemon_id, answer_topic(inquiry_id)]),))


def take_answer(connection: Connection, inquiry_id: str) -> str | None:
    """Return the answer to a question, and delete both. Return None if there is none yet."""
    row = connection.first_row(_ANSWERED, (inquiry_id,))
    if row is None or row[0] is None:
        return None
    connection.execute(_TAKE, (inquiry_id,))
    found: str = row[0]
    return found
