"""The time of day."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The time of day. Tests pass a clock that they set."""

    def __call__(self) -> datetime:
        """Return now, aware and in UTC."""
        ...
