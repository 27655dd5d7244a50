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
    """

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self.pieces = pieces
        self.size = sum(len(piece) for piece in pieces)

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

    async def body(self, plain: Any) -> LongBody:
        return await run_long(self._body, plain, limiter=self._limiter)

    def _body(self, plain: Any) -> LongBody:
        pieces = strict_json.encode_in_pieces(plain)
        key = hash(pieces)
        body = self._bodies.get(key)
        if body is None or body.pieces != pieces:
            body = self._bodies[key] = LongBody(pieces)
        return body


_ENCODER: anyio.lowlevel.RunVar[_Encoder] = anyio.lowlevel.RunVar("encoder of long answers")


async def long_body(plain: Any) -> LongBody:
    """Return the body of a long answer, encoded in a thread.

    Slow readers of the same result share one copy.
    """
    try:
        encoder = _ENCODER.get()
    except LookupError:
        _ENCODER.set(encoder := _Encoder())
    return await encoder.body(plain)
