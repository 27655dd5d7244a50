"""The stream-json protocol of Claude Code: JSON objects in lines, with requests from both sides.

Texts and names are those of Claude Code 2.1.332.
"""

import re
from typing import Any, Final

from attrs import frozen

from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Answer,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.process import AgentProtocol

TEXT_DELTA: Final = "stream_event/text_delta"
LIFECYCLE: Final = "command_lifecycle"
RESULT: Final = "result"
INIT: Final = "system/init"

_NUMBER: Final = re.compile("[0-9]{1,18}")


@frozen
class StreamJson:
    """The messages of the protocol.

    A request of ours is a ``control_request`` with the method as its subtype. A notification is named by
    its type, and by its subtype where it has one.
    """

    def request(self, number: int, method: str, params: JsonObject) -> JsonObject:
        request = {"subtype": method, **params}
        return {"type": "control_request", "request_id": str(number), "request": request}

    def notification(self, method: str, params: JsonObject) -> JsonObject:
        return {"type": method, **params}

    def result(self, request: AgentRequest, result: Any) -> JsonObject:
        return _response({"subtype": "success", "request_id": request.id, "response": result})

    def error(self, request: AgentRequest, _code: int, message: str) -> JsonObject:
        return _response({"subtype": "error", "request_id": request.id, "error": message})

    def read(self, message: JsonObject, size: int) -> Notification | AgentRequest | Answer | None:
        kind = message.get("type")
        match kind:
            case "control_response":
                return _answer(message.get("response"), size)
            case "control_request":
                request, request_id = message.get("request"), message.get("request_id")
                if not isinstance(request, dict) or not isinstance(request_id, str):
                    return None
                return AgentRequest(request_id, str(request.get("subtype")), request, size)
            case "stream_event":
                return _stream_event(message, size)
            case str():
                subtype = message.get("subtype")
                name = f"{kind}/{subtype}" if kind == "system" else kind
                return Notification(name, message, size)
        return None


def _response(response: dict[str, Any]) -> JsonObject:
    return {"type": "control_response", "response": response}


def _answer(response: Any, size: int) -> Answer | None:
    if not isinstance(response, dict):
        return None
    number = response.get("request_id")
    if not isinstance(number, str) or _NUMBER.fullmatch(number) is None:
        return None
    if response.get("subtype") == "error":
        return Answer(int(number), error=RpcError(0, str(response.get("error"))), size=size)
    return Answer(int(number), response.get("response"), size=size)


def _stream_event(message: JsonObject, size: int) -> Notification:
    """Return a part of the model's answer, without what differs between the pieces of one text."""
    event = message.get("event")
    event = event if isinstance(event, dict) else {}
    parent = message.get("parent_tool_use_id")
    delta = event.get("delta")
    if event.get("type") == "content_block_delta" and isinstance(delta, dict):
        name = f"stream_event/{delta.get('type')}"
        fields = {"parent_tool_use_id": parent, "index": event.get("index")}
        if name == TEXT_DELTA:
            fields["text"] = delta.get("text")
        return Notification(name, fields, size)
    return Notification(
        f"stream_event/{event.get('type')}", {"parent_tool_use_id": parent, "event": event}, size
    )


PROTOCOL: Final = AgentProtocol(
    "Claude Code",
    StreamJson(),
    streams={TEXT_DELTA: (("text",),)},
    never_dropped=frozenset({LIFECYCLE, RESULT}),
)
