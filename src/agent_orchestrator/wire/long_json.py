"""Reading of long JSON text in slices. Each call of C code holds the interpreter lock, and so blocks all threads."""

import codecs
import json
import re
import secrets
from collections.abc import Callable, Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Final, Literal

SLICE_SIZE: Final = 64 * 2**10
"""Maximum bytes that one call of C code handles."""

_SHORT: Final = 32
"""Maximum bytes of a string that is read together with its surroundings."""

_STRING_END: Final = re.compile(rb'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
"""The content of a string, without splitting escapes."""

_KEY: Final = re.compile(rb"[ \t\r]*+:")

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def loads(data: bytes) -> Any:
    """Return the value of JSON text that :mod:`agent_orchestrator.wire.strict_json` has written."""
    skeleton, strings = take_strings(data)

    def number_or_string(digits: str) -> Any:
        return strings[digits] if digits in strings else float(digits)

    return json.loads(skeleton, parse_float=number_or_string)


def take_strings(
    data: bytes | bytearray,
    *,
    check_kept: Callable[[bytes | bytearray, Literal["string", "other"]], None] = lambda *_: None,
    check_string: Callable[[list[str]], None] = lambda _: None,
    errors: Literal["replace", "strict"] = "replace",
) -> tuple[bytes, dict[str, str]]:
    """Return the text with numbers in place of its long strings, and the strings by these numbers. Keys stay.

    :param check_kept: called with each part of the new text: a string or the number in place of one, or what is between
        two of them. Raises if the text is not to be read.
    :param check_string: called with the pieces of each string. Raises likewise.
    :param errors: whether invalid UTF-8 and lone surrogates become U+FFFD, or are refused.
    :raises ValueError: if a string has no end, or is refused.
    """
    skeleton: list[bytes | bytearray] = []
    strings: dict[str, str] = {}
    key = secrets.randbelow(10**12)  # no number in the text is likely to begin so
    position = 0
    while position < len(data):
        quote = data.find(b'"', position, position + SLICE_SIZE)
        end = quote if quote >= 0 else min(position + SLICE_SIZE, len(data))
        skeleton.append(data[position:end])
        check_kept(skeleton[-1], "other")
        position = end
        if quote >= 0:
            ends = list(_string_slices(data, quote + 1))
            position = ends[-1] + 1
            if position - quote <= _SHORT or _KEY.match(data, position):
                skeleton.append(data[quote:position])
            else:
                # Decoders pass numbers with a point to a function as text.
                number = f"{key}.{len(strings)}"
                pieces = _string_pieces(data, quote + 1, ends, errors)
                check_string(pieces)
                strings[number] = "".join(pieces)
                skeleton.append(b" %s " % number.encode())
            check_kept(skeleton[-1], "string")
    return b"".join(skeleton), strings


def _string_slices(data: bytes | bytearray, start: int) -> Iterator[int]:
    """Yield the end positions of a string's slices. The last one is that of its closing quote.

    :raises ValueError: if the string has no closing quote.
    """
    while True:
        match = _STRING_END.match(data, start, start + SLICE_SIZE)
        end = start if match is None else match.end()
        if end == start and data[end : end + 1] != b'"':
            raise ValueError("a string without an end")
        yield end
        if data[end : end + 1] == b'"':
            return
        start = end


def _string_pieces(data: bytes | bytearray, start: int, ends: list[int], errors: str) -> list[str]:
    """Return the string whose slices end at these positions, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    pieces: list[str] = []
    half = ""
    for end in ends:
        raw = decoder.decode(data[start:end], end == ends[-1])
        start = end
        text = half + scanstring(f'{raw}"', 0)[0]
        # The halves of a surrogate pair may be on both sides of a border.
        half = text[-1:] if end != ends[-1] and "\ud800" <= text[-1:] <= "\udbff" else ""
        pieces.append(_join_surrogates(text[: len(text) - len(half)], errors))
    return pieces


def _join_surrogates(text: str, errors: str) -> str:
    """Return text with surrogate pairs joined, and U+FFFD for lone surrogates, if they are not refused."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", errors)
