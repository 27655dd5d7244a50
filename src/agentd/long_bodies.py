"""Long answers: encoded one at a time, and shared by all readers of the same answer."""

from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel
from quart.wrappers.response import ResponseBody

from agent_orchestrator.long_work import run_long
from agent_orchestrator.wire import strict_json


class LongBody(ResponseBody):
    """The body of a long answer. Several responses can have one body.

    :param pieces: the body, in pieces. Pieces of long data are shared with the owner of the data.
    :param source: an object that exists as long as the body.
    """

    def __init__(self, pieces: tuple[bytes, ...], source: object = None) -> None:
        self.pieces = pieces
        self.size = sum(len(piece) for piece in pieces)
        self._source = source

    def between(self, head: bytes, tail: bytes) -> "LongBody":
        """Return a body with more bytes before and after the same pieces."""
        return LongBody((head, *self.pieces, tail), self)

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._each()

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def _each(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


class _Encoder:
    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(1)
        self._bodies: WeakValueDictionary[int, LongBody] = WeakValueDictionary()
        self._of_sources: WeakValueDictionary[tuple[int, str], LongBody] = WeakValueDictionary()

    async def body(self, plain: Any) -> LongBody:
        return await run_long(self._body, plain, limiter=self._limiter)

    def _body(self, plain: Any) -> LongBody:
        pieces = strict_json.encode_in_pieces(plain)
        key = hash(pieces)
        body = self._bodies.get(key)
        if body is None or body.pieces != pieces:
            body = self._bodies[key] = LongBody(pieces)
        return body

    async def body_of(self, source: object, form: str, plain: Any) -> LongBody:
        return await run_long(self._body_of, source, form, plain, limiter=self._limiter)

    def _body_of(self, source: object, form: str, plain: Any) -> LongBody:
        key = id(source), form  # the body keeps the source, so no other object gets its id
        body = self._of_sources.get(key)
        if body is None:
            pieces = strict_json.encode_in_pieces(plain)
            body = self._of_sources[key] = LongBody(pieces, source)
        return body


_ENCODER: anyio.lowlevel.RunVar[_Encoder] = anyio.lowlevel.RunVar("encoder of long answers")


async def long_body(plain: Any) -> LongBody:
    """Return the body of a long answer, encoded in a thread.

    Slow readers of the same result share one copy.
    """
    return await _encoder().body(plain)


async def long_body_of(source: object, form: str, plain: Any) -> LongBody:
    """Return the body of a long answer that is made from an object, encoded in a thread.

    It is encoded once for all who read the same form of the object.
    """
    return await _encoder().body_of(source, form, plain)


def _encoder() -> _Encoder:
    try:
        return _ENCODER.get()
    except LookupError:
        _ENCODER.set(encoder := _Encoder())
        return encoder
