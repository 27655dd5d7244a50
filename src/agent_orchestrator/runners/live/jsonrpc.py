"""JSON-RPC 2.0, one message per line, with requests from both sides.

Each side numbers its requests itself, so both can use the same id at the same time.
"""

import json
from typing import Any

from attrs import frozen

from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Answer,
    Notification,
    RpcError,
)


@frozen
class JsonRpc:
    """The messages of JSON-RPC.

    :param has_version: whether messages have the field ``jsonrpc``. Not all agents send it.
    """

    has_version: bool = True

    def request(self, number: int, method: str, params: JsonObject) -> JsonObject:
        return self._message({"id": number, "method": method, "params": params})

    def notification(self, method: str, params: JsonObject) -> JsonObject:
        return self._message({"method": method, **({"params": params} if params else {})})

    def result(self, request: AgentRequest, result: Any) -> JsonObject:
        return self._message({"id": request.id, "result": result})

    def error(self, request: AgentRequest, code: int, message: str) -> JsonObject:
        return self._message({"id": request.id, "error": {"code": code, "message": message}})

    def read(self, message: JsonObject, size: int) -> Notification | AgentRequest | Answer | None:
        number = message.get("id")
        if isinstance(method := message.get("method"), str):
            params = message.get("params")
            fields = params if isinstance(params, dict) else {}
            if "id" not in message:
                return Notification(method, fields, size)
            # A request whose id has another type cannot be answered.
            return (
                AgentRequest(number, method, fields, size)
                if isinstance(number, (str, int))
                else None
            )
        if not isinstance(number, int):
            return None
        if "error" in message:
            return Answer(number, error=_error(message["error"]), size=size)
        return Answer(number, message["result"], size=size) if "result" in message else None

    def _message(self, fields: dict[str, Any]) -> JsonObject:
        return {"jsonrpc": "2.0", **fields} if self.has_version else fields


def _error(error: Any) -> RpcError:
    if not isinstance(error, dict):
        return RpcError(0, json.dumps(error))
    code, message = error.get("code"), error.get("message")
    return RpcError(
        code if isinstance(code, int) else 0,
        message if isinstance(message, str) else json.dumps(error),
        error.get("data"),
    )
