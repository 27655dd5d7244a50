"""Protocols that the tests speak: JSON-RPC, and one in which every message has a type, as Claude Code's."""

from agent_orchestrator.runners.live.jsonrpc import JsonRpc
from agent_orchestrator.runners.live.messages import AgentRequest, Answer, Notification, RpcError


class Control:
    def request(self, number, method, params):
        fields = {"subtype": method, **params}
        return {"type": "control_request", "request_id": f"r{number}", "request": fields}

    def notification(self, method, params):
        return {"type": method, **params}

    def result(self, request, result):
        answer = {"subtype": "success", "request_id": request.id, "response": result}
        return {"type": "control_response", "response": answer}

    def error(self, request, code, message):
        answer = {"subtype": "error", "request_id": request.id, "error": message}
        return {"type": "control_response", "response": answer}

    def read(self, message, size):
        match message:
            case {"type": "control_request", "request_id": str(name), "request": dict(fields)}:
                return AgentRequest(name, str(fields.get("subtype")), fields, size)
            case {"type": "control_response", "response": {"request_id": str(name), **fields}}:
                number = int(name.removeprefix("r"))
                if fields["subtype"] == "error":
                    return Answer(number, error=RpcError(0, fields["error"]), size=size)
                return Answer(number, fields["response"], size=size)
            case {"type": str(kind)}:
                return Notification(kind, message, size)
        return None


DIALECTS = {
    "json-rpc": JsonRpc(),
    "json-rpc-without-version": JsonRpc(has_version=False),
    "control": Control(),
}
