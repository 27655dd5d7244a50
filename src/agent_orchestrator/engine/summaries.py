"""Summaries of requests and results for the logs of ancestors.

Ancestors get no full copies: a long question would otherwise be stored once per ancestor.
"""

from collections.abc import Mapping
from typing import Any, Final

MAX_SUMMARY: Final = 1_000
"""Maximum number of characters of a text in a summary."""

_OMITTED: Final = ("detail", "options")
_SHORTENED: Final = ("text", "answer")


def shortened(text: str) -> str:
    """Return the text, or its beginning and an ellipsis."""
    return text if len(text) <= MAX_SUMMARY else text[:MAX_SUMMARY] + "…"


def request_summary(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a request, both as JSON objects.

    ``detail`` and ``options`` are null and texts are cut. ``cut`` names the fields that differ.
    """
    summary = dict(request)
    for name in _OMITTED:
        summary[name] = None
    for name in _SHORTENED:
        if summary[name] is not None:
            summary[name] = shortened(summary[name])
    if cut := [name for name in (*_SHORTENED, *_OMITTED) if summary[name] != request[name]]:
        summary["cut"] = cut
    return summary


def text_summary(name: str, text: str | None) -> dict[str, Any]:
    """Return an object with the shortened text as field ``name``, and ``cut`` if it was cut."""
    if text is None or (short := shortened(text)) == text:
        return {name: text}
    return {name: short, "cut": [name]}
