"""Text that the system provides as bytes: arguments, paths, environment variables."""

import codecs
import os
import sys


def decode_for_display(text: str) -> str:
    r"""Return text that Python decoded from bytes of the system (PEP 383) as valid Unicode.

    Bytes that are not UTF-8 are escaped: ``caf\xe9``.
    """
    return os.fsencode(text).decode(errors="backslashreplace")


def ensure_utf8() -> None:
    """Restart this program in Python's UTF-8 mode if its file system encoding is ASCII.

    With ``LC_ALL=C`` and ``PYTHONUTF8=0`` it is, and other characters of arguments, paths and output
    are lost. A running Python cannot change it. Call this first, and only in a process of this program.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and not sys.flags.utf8_mode:
        _, *arguments = sys.orig_argv
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *arguments])  # noqa: S606
