"""Version numbers of agents."""


def numbers(version: str | None, count: int) -> tuple[int, ...] | None:
    """Return the first numbers of a version such as ``2.1.332``; None if there are fewer."""
    parts = (version or "").split(".")[:count]
    if len(parts) < count or not all(part.isdecimal() and len(part) < 10 for part in parts):
        return None
    return tuple(map(int, parts))
