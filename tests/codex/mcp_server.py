"""A small MCP server on stdio.

Its tool ``echo`` answers with the text it is given; ``ask`` elicits what is named in its arguments (a
``message`` and a ``schema``) and answers with what it was told, as JSON.
"""

import json
import sys

TOOL = {
    "name": "echo",
    "description": "Says it back.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
}

ASKING = {"name": "ask", "description": "Asks the user.", "inputSchema": {"type": "object"}}


def answer(method: str, params: dict) -> dict:
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "echo", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": [TOOL, ASKING]}
    if method == "tools/call":
        text = params["arguments"].get("text", "")
        return {"content": [{"type": "text", "text": text}], "isError": text == "fail"}
    return {}


def send(**message) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


asking = None
for line in sys.stdin:
    request = json.loads(line)
    params = request.get("params", {})
    if "method" not in request:  # what it was told
        told = json.dumps(request.get("result", request.get("error")))
        send(id=asking, result={"content": [{"type": "text", "text": told}]})
    elif request["method"] == "tools/call" and params["name"] == "ask":
        asking = request["id"]
        wanted = {name: params["arguments"][name] for name in ("message", "requestedSchema")}
        send(id="question", method="elicitation/create", params=wanted)
    elif "id" in request:
        send(id=request["id"], result=answer(request["method"], params))
