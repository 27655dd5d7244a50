"""Text for times, durations and counts."""

from datetime import date, datetime, timedelta


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def elapsed(seconds: float) -> str:
    """Return a growing duration. It has no fractions, which would flicker."""
    return f"{int(seconds)} s" if seconds < 60 else duration(seconds)


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was. Up to a minute in the future counts as "now"."""
    seconds = (now - moment).total_seconds()
    if seconds < 1:
        return "now" if seconds > -60 else f"in {duration(-seconds)}"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "now"


def clock(moment: datetime) -> str:
    """Return a moment's local date and time."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def today() -> date:
    """Return the local date."""
    return datetime.now().astimezone().date()


def between(start: datetime | None, end: datetime | None) -> timedelta | None:
    """Return the time between two moments; None if one is unknown."""
    return end - start if start is not None and end is not None else None


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if needed."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
