"""A copy of the product's source with one thing changed in it."""

import shutil
from pathlib import Path

from tests.chaos.daemon import SOURCE


class NotThere(Exception):
    """The line to change is not in the source, or not once: the source has moved on."""


def changed(place: Path, path: str, old: str, new: str) -> Path:
    """Copy the source, change it, and return the copy, for the front of PYTHONPATH.

    :param path: the file, from the source's root.
    :raises NotThere: unless the text to change stands there exactly once.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(SOURCE, place, ignore=shutil.ignore_patterns("__pycache__"))
    change(place, path, old, new)
    return place


def change(place: Path, path: str, old: str, new: str) -> None:
    """Change one more thing in such a copy.

    :raises NotThere: unless the text to change stands there exactly once.
    """
    file = place / path
    text = file.read_text()
    if text.count(old) != 1:
        raise NotThere(f"{path} holds {old!r} {text.count(old)} times")
    file.write_text(text.replace(old, new))
