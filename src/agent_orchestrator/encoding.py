"""Text that the system hands over as bytes: arguments, paths, what a process says of itself."""

import codecs
import os
import sys


def decode_for_display(text: str) -> str:
    r"""Return text from the system (decoded as Python does, PEP 383) as valid Unicode.

    Bytes that are not UTF-8 are escaped: ``caf\xe9``.
    """
    return os.fsencode(text).decode(errors="backslashreplace")


def ensure_utf8() -> None:
    """Run this program anew in Python's UTF-8 mode where Python takes the system for ASCII only.

    That is what ``LC_ALL=C`` means where ``PYTHONUTF8=0`` or a wrapper keeps Python from the mode. All
    that is not ASCII would be lost in arguments, paths and output, and nothing in a running Python
    can change that. To be called first of all, in a process that is this program's alone.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and not sys.flags.utf8_mode:
        _, *arguments = sys.orig_argv
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *arguments])  # noqa: S606
