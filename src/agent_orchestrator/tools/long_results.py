"""Long answers of tools: encoded one at a time, and shared by all agents that get the same answer."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from agent_orchestrator.long_work import run_long
from agent_orchestrator.ports.runner import ToolResult
from agent_orchestrator.wire import strict_json


class _Encoder:
    def __init__(self) -> None:
        self._limiter = CapacityLimiter(1)
        self._results: WeakValueDictionary[int, ToolResult] = WeakValueDictionary()

    async def result(self, content: Mapping[str, Any], *, is_error: bool) -> ToolResult:
        return await run_long(self._result, content, is_error, limiter=self._limiter)

    def _result(self, content: Mapping[str, Any], is_error: bool) -> ToolResult:
        for held in [*self._results.values()]:
            # Quick, because equal answers have the same long texts.
            if held.is_error == is_error and held.content == content:
                return held
        result = ToolResult(content, strict_json.text_of(content), is_error)
        self._results[id(result)] = result
        return result


_ENCODER: RunVar[_Encoder] = RunVar("encoder of long answers of tools")


async def long_result(content: Mapping[str, Any], *, is_error: bool) -> ToolResult:
    """Return the result of a tool with a long answer, encoded in a thread.

    Those who hold an equal result share it.
    """
    try:
        encoder = _ENCODER.get()
    except LookupError:
        _ENCODER.set(encoder := _Encoder())
    return await encoder.result(content, is_error=is_error)
