"""What an agent is given at once: messages put together, as many as its runner takes."""

from collections.abc import Sequence
from typing import Final

from agent_orchestrator.domain.model import Message
from agent_orchestrator.engine.core import Core
from agent_orchestrator.fields import MAX_TEXT
from agent_orchestrator.ports import InputLimit, capabilities_of

NO_LIMIT: Final = InputLimit()

_SEPARATOR: Final = "\n\n"


def join_messages(messages: Sequence[Message]) -> str:
    """Return the messages as one prompt."""
    return _SEPARATOR.join(message.text for message in messages)


def limit_of(core: Core, provider: str) -> InputLimit:
    """Return how much text an agent of a provider takes at once."""
    config = core.config.providers.get(provider)
    if config is None:
        return NO_LIMIT
    return capabilities_of(config.runner).max_input


def count_fitting(messages: Sequence[Message], limit: InputLimit) -> int:
    """Return how many of the messages, from the first on, an agent takes together: at least one."""
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
    """Return a text, or as much of it as the limit holds together with a note at its end."""
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
    """Return a text as long as a message may be, and as an agent of the provider takes it."""
    note = f"cut here; {where}"
    text = cut_to_limit(text, InputLimit(characters=MAX_TEXT), note)
    return cut_to_limit(text, limit_of(core, provider), note)
