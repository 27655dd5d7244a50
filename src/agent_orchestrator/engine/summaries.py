"""What a log says of a thing that is kept elsewhere: which it is, and how its texts begin.

A log above holds no copies. What an agent puts into a question or a result would otherwise be
written once for each session above it.
"""

from collections.abc import Mapping
from typing import Any, Final

MAX_SUMMARY: Final = 1_000
"""Characters that a log above keeps of a text."""

_OMITTED: Final = ("detail", "options")
_SHORTENED: Final = ("text", "answer")


def shortened(text: str) -> str:
    """Return the text, or its first characters and an ellipsis."""
    return text if len(text) <= MAX_SUMMARY else text[:MAX_SUMMARY] + "…"


def request_summary(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request, as JSON has it, for the logs above its session.

    :return: all its fields; ``detail`` and ``options`` are null, the texts are cut. ``cut`` names
        those that differ.
    """
    found = dict(request)
    for name in _OMITTED:
        found[name] = None
    for name in _SHORTENED:
        if found[name] is not None:
            found[name] = shortened(found[name])
    if cut := [name for name in (*_SHORTENED, *_OMITTED) if found[name] != request[name]]:
        found["cut"] = cut
    return found


def text_summary(name: str, text: str | None) -> dict[str, Any]:
    """Return a text by its name, and ``cut`` with that name where it is not the whole text."""
    if text is None or (kept := shortened(text)) == text:
        return {name: text}
    return {name: kept, "cut": [name]}
