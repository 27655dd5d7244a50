"""Prompts of agents: messages joined and cut to the length that the runner accepts."""

from collections.abc import Sequence
from typing import Final

from agent_orchestrator.domain.capabilities import InputLimit
from agent_orchestrator.domain.model import Message
from agent_orchestrator.engine.core import Core
from agent_orchestrator.fields import MAX_TEXT
from agent_orchestrator.ports.runner import capabilities_of

NO_LIMIT: Final = InputLimit()

_SEPARATOR: Final = "\n\n"


def join_messages(messages: Sequence[Message]) -> str:
    """Return the messages as one prompt."""
    return _SEPARATOR.join(message.text for message in messages)


def limit_of(core: Core, provider: str) -> InputLimit:
    """Return the maximum length of a prompt for a provider."""
    config = core.config.providers.get(provider)
    if config is None:
        return NO_LIMIT
    return capabilities_of(config.runner).max_input


def count_fitting(messages: Sequence[Message], limit: InputLimit) -> int:
    """Return how many of the messages, from the first on, fit into one prompt: at least one."""
    characters = size = -len(_SEPARATOR)
    for count, message in enumerate(messages):
        characters += len(_SEPARATOR) + len(message.text)
        if limit.size is not None:
            size += len(_SEPARATOR) + len(message.text.encode("utf-8", "replace"))
        is_over = (limit.characters is not None and characters > limit.characters) or (
            limit.size is not None and size > limit.size
        )
        if is_over and count:
            return count
    return len(messages)


def cut_to_limit(text: str, limit: InputLimit, note: str) -> str:
    """Return a text, or its beginning and a note at the end if it exceeds the limit."""
    if limit.excess(text) is None:
        return text
    end = f"{_SEPARATOR}[{note}]"
    if limit.characters is not None:
        text = text[: max(0, limit.characters - len(end))]
    if limit.size is not None:
        room = max(0, limit.size - len(end.encode()))
        text = text.encode("utf-8", "replace")[:room].decode(errors="ignore")
    return text + end


def fit_prompt(core: Core, provider: str, text: str, where: str) -> str:
    """Return a text cut to the length of a message and of a prompt for the provider.

    :param where: where the whole text is, for the note.
    """
    note = f"cut here; {where}"
    text = cut_to_limit(text, InputLimit(characters=MAX_TEXT), note)
    return cut_to_limit(text, limit_of(core, provider), note)
