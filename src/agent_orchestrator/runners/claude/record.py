"""Claude Code's own record of a conversation, and its program for a person. Names and shapes are those of 2.1.332.

The record has the messages of the model and of the user in the shape of the protocol, and so is read by
:class:`~agent_orchestrator.runners.claude.turns.RunReader`. Entries of sub-agents and internal notes of the program are left out.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Session, Thread, Usage
from agent_orchestrator.fields import MAX_INTEGER
from agent_orchestrator.operations.takeovers import Program
from agent_orchestrator.ports.runner import Conversation, Handover
from agent_orchestrator.runners import record
from agent_orchestrator.runners.claude.locate import locate
from agent_orchestrator.runners.claude.turns import RunReader
from agent_orchestrator.runners.claude.usage import plus
from agent_orchestrator.runners.events import AgentEvent, JsonObject, agent_event, text
from agent_orchestrator.runners.live.messages import Notification
from agent_orchestrator.runners.program import NotInstalled

_OWN_TEXTS: Final = ("<local-command-", "<command-", "<bash-", "<system-reminder>", "Caveat: ")
"""The beginnings of texts that the program itself writes as the user: its commands and their output."""


def home_in(env: Mapping[str, str]) -> Path:
    """Return Claude Code's directory with its symbolic links resolved. Blocks.

    :raises AgentFailed: if this user has none.
    """
    try:
        named = env.get("CLAUDE_CONFIG_DIR")
        home = named or Path(env.get("HOME") or Path.home(), ".claude")
    except RuntimeError:
        raise AgentFailed("provider_unavailable", "this user has no home directory") from None
    return Path(os.path.realpath(home))  # Path.resolve raises for a loop of links


def record_of(home: Path, thread_id: str) -> Path:
    """Return the record of a conversation, relative to the directory of Claude Code. Blocks.

    :raises AgentFailed: if there is none.
    """
    found = record.records(home, f"projects/*/{thread_id}.jsonl") if is_uuid(thread_id) else []
    if not found:
        note = f"Claude Code has no record of conversation {thread_id} in {home}"
        raise AgentFailed("thread_missing", note)
    return found[0]


def is_uuid(value: str) -> bool:
    """Return True if a text is an id of a conversation."""
    try:
        return str(uuid.UUID(value)) == value
    except ValueError:
        return False


def find(home: Path, thread_id: str | None, cwd: str) -> Conversation:
    """Return a conversation, or the latest of a directory. Blocks.

    :raises AgentFailed: if there is none.
    """
    if thread_id is None:
        known = (one for one in record.records(home, "projects/*/*.jsonl") if is_uuid(one.stem))
        path = record.latest_of(home, known, cwd, _directory_of)
        if path is None:
            raise AgentFailed("thread_missing", f"Claude Code has no conversation in {cwd}")
    else:
        path = record_of(home, thread_id)
    try:
        directory = _directory_of(home, path)
    except OSError as error:
        raise AgentFailed("thread_missing", f"the record cannot be read: {error}") from None
    # The model is not read, because Claude Code continues with the conversation's model.
    return Conversation(Thread(path.stem, {"has_begun": True, record.PLACE: 0}), directory or cwd)


def _directory_of(home: Path, path: Path) -> str | None:
    found = (entry.get("cwd") for entry in record.last_entries(home, path))
    return next((one for one in found if isinstance(one, str) and one), None)


def handover(
    command: str,
    env: Mapping[str, str],
    session: Session,
    thread: Thread,
    options: Sequence[str],
) -> Handover:
    """Return the program that resumes a conversation, and the conversation with the end of its record. Blocks.

    :raises AgentFailed: if Claude Code is not installed, or has no record of the conversation.
    """
    home = home_in(env)
    path = record_of(home, thread.id)
    try:
        program = str(locate(command, env))
        place = record.size_of(home, path)
    except NotInstalled as problem:
        raise AgentFailed("provider_unavailable", str(problem)) from None
    except OSError as error:
        raise AgentFailed("thread_missing", f"the record cannot be read: {error}") from None
    # Only if it is set: with it Claude Code looks for its settings elsewhere.
    named = {"CLAUDE_CONFIG_DIR": str(home)} if env.get("CLAUDE_CONFIG_DIR") else {}
    argv = (program, "--resume", thread.id, *options)
    marked = evolve(thread, state={**thread.state, record.PLACE: place})
    return Handover(Program(argv, session.cwd, named), marked)


@define
class RecordReader:
    """The state of the entries of a record."""

    usage: Usage | None = field(default=None, init=False)
    _reader: RunReader = field(factory=RunReader, init=False)
    _counted: str = field(default="", init=False)
    """The id of the answer whose usage was counted last. It is in each entry of the answer."""

    @property
    def answer(self) -> str:
        return self._reader.answer

    @property
    def state(self) -> Mapping[str, Any]:
        return {}

    def feed(self, entry: JsonObject) -> list[AgentEvent]:
        message = entry.get("message")
        if entry.get("isSidechain") is True or not isinstance(message, Mapping):
            return []
        match entry.get("type"):
            case "assistant" if entry.get("isApiErrorMessage") is True:
                return [agent_event(EventType.RUN_ERROR, message=_text_of(message))]
            case "assistant":
                self._count(message)
                return self._reader.feed(Notification("assistant", entry))
            case "user" if _is_result(message):
                result = {**entry, "tool_use_result": entry.get("toolUseResult")}
                return self._reader.feed(Notification("user", result))
            case "user" if not (entry.get("isMeta") or entry.get("isCompactSummary")):
                said = _text_of(message)
                if said and not said.startswith(_OWN_TEXTS):
                    self._reader.begin_turn()
                    return [agent_event(EventType.USER_MESSAGE, text=said)]
        return []

    def finish(self) -> list[AgentEvent]:
        return self._reader.finish()

    def _count(self, message: JsonObject) -> None:
        used, answer_id = message.get("usage"), text(message.get("id"))
        if not isinstance(used, Mapping) or answer_id == self._counted:
            return
        self._counted = answer_id
        cached, written = _number(used, "cache_read_input_tokens"), "cache_creation_input_tokens"
        tokens_in = _number(used, "input_tokens") + cached + _number(used, written)
        one = Usage(min(tokens_in, MAX_INTEGER), cached, _number(used, "output_tokens"))
        self.usage = plus(self.usage, one)


def _number(used: JsonObject, name: str) -> int:
    count = used.get(name)
    return min(count, MAX_INTEGER) if type(count) is int and count >= 0 else 0


def _is_result(message: JsonObject) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") == "tool_result" for part in content
    )


def _text_of(message: JsonObject) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else record.joined_texts(content)
