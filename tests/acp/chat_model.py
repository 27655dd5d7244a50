"""A model server for agents that use the API of OpenAI's chat completions. It does what the prompt says.

A prompt is a script, one step per line:

======================== =====================================================================
``say TEXT``             a message
``reason TEXT``          a thought
``big N``                a message of N characters
``stream N MS WORD``     a message of N words, each sent as a piece, MS milliseconds apart
``tool NAME JSON``       call a tool
``mcp SERVER.TOOL JSON`` call a tool of an MCP server
``shell COMMAND``        call ``bash``
``add PATH TEXT``        call ``write``
``update PATH OLD -> NEW``  call ``edit``
``relay``                say what the last tool answered
``& STEP``               do this in the same answer as the step before (parallel calls)
``usage IN CACHED OUT``  the tokens that this answer and the later ones report (100 0 10 without it)
``slow SECONDS``         wait before going on
``wait PATH``            wait until a file is there
``hang``                 never answer
``disconnect``           end the connection in the middle of the answer
``reset``                break the connection here, the first time that the model is asked this (TCP reset)
``http STATUS [TEXT]``   refuse the request with this status
======================== =====================================================================

A ``say``, ``mcp`` or ``tool`` step may contain ``<2.run.id>``: the field ``run.id`` of the JSON that the third tool of
this turn returned.

A prompt with any line that is none of these is answered with ``got N characters, sha256 H``. A request without tools,
such as the one for a title, is answered with ``a title``. Every request with tools is recorded in
:attr:`ChatModel.requests`.
"""

import base64
import contextlib
import json
import os
import struct
import time
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final, Self

import attrs
from model_server import (
    BrokenOff,
    ModelHandler,
    Refused,
    ScriptedServer,
    Step,
    acknowledgement,
    answers_of,
    filled,
    parse_script,
    words,
)

__all__ = ["ChatModel", "Request", "acknowledgement"]

CALLS: Final = frozenset({"tool", "mcp", "shell", "add", "update"})
VERBS: Final = CALLS | {
    *("say", "reason", "big", "stream", "relay"),
    *("usage", "slow", "wait", "hang", "disconnect", "reset", "http"),
}


@attrs.frozen
class Request:
    """What an agent asked for once.

    :param prompt: the last message of the user.
    :param step: the number of answers that this turn had before.
    """

    prompt: str
    step: int
    body: dict[str, Any] = attrs.field(repr=False)

    @property
    def images(self) -> list[bytes]:
        """The images of the last message, in order."""
        content = [one for one in self.body["messages"] if one["role"] == "user"][-1]["content"]
        urls = (one["image_url"]["url"] for one in content if one["type"] == "image_url")
        return [base64.b64decode(url.partition(";base64,")[2], validate=True) for url in urls]

    @property
    def user_texts(self) -> list[str]:
        return [_text(one) for one in self.body["messages"] if one["role"] == "user"]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _turn_of(body: dict[str, Any]) -> tuple[str, int, list[str]]:
    """Return the last message of the user, the number of answers since, and what tools said since."""
    messages = body["messages"]
    last = max(index for index, one in enumerate(messages) if one["role"] == "user")
    turn = messages[last + 1 :]
    step = sum(one["role"] == "assistant" for one in turn)
    return _text(messages[last]), step, [_text(one) for one in turn if one["role"] == "tool"]


def _tool(step: Step) -> tuple[str, dict[str, Any]]:
    name, _, rest = step.rest.partition(" ")
    match step.verb:
        case "shell":
            return "bash", {"command": step.rest, "description": "a command"}
        case "add":
            return "write", {"filePath": name, "content": rest + "\n"}
        case "update":
            old, _, new = rest.partition(" -> ")
            return "edit", {"filePath": name, "oldString": old, "newString": new}
        case "mcp":
            return name.replace(".", "_", 1), json.loads(rest or "{}")
    return name, json.loads(rest or "{}")


class _Handler(ModelHandler):
    server: Any
    _breaks = False
    """Whether this answer breaks off."""

    def do_POST(self) -> None:  # noqa: N802 - the name of the base class
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(body)

    def begin_stream(self) -> None:
        """The stream ends with the connection. To opencode, one that ends early is an answer that it goes on with.

        One that breaks off is sent in chunks, as model servers do.
        """
        if self._breaks:
            super().begin_stream()
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def chunk(self, data: bytes) -> None:
        if self._breaks:
            super().chunk(data)
            return
        self.wfile.write(data)
        self.wfile.flush()

    def _answer(self, body: dict[str, Any]) -> None:
        prompt, number, outputs = _turn_of(body)
        steps, usage = [Step("say", "a title", joined=False)], (1, 0, 1)
        if body.get("tools"):
            self.server.record(Request(prompt, number, body))
            answers = answers_of(parse_script(prompt, VERBS), CALLS)
            usage = (100, 0, 10)
            # opencode goes on by itself after an answer that broke off.
            end = [Step("say", "done", joined=False)]
            steps = answers[number] if number < len(answers) else end
            for step in [step for answer in answers[: number + 1] for step in answer]:
                if step.verb == "usage":
                    first, second, third = step.rest.split()
                    usage = (int(first), int(second), int(third))
        if any(step.verb == "reset" for step in steps):
            self._breaks = prompt not in self.server.broken
            self.server.broken.add(prompt)
        try:
            self._refuse_if_asked(steps)
            self._stream(steps, outputs, usage, body.get("model"))
        except Refused as refusal:
            self.send_json(refusal.status, {"error": refusal.error})
        except BrokenOff:
            self.close_connection = True

    def _refuse_if_asked(self, steps: list[Step]) -> None:
        for step in steps:
            if step.verb == "http":
                status, _, text = step.rest.partition(" ")
                raise Refused(int(status), {"message": text or "scripted", "code": None})

    def _stream(
        self, steps: list[Step], outputs: list[str], usage: tuple[int, int, int], model: Any
    ) -> None:
        base = {
            "id": f"chatcmpl-{time.time_ns()}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

        def send(**fields: Any) -> None:
            self.chunk(b"data: " + json.dumps({**base, **fields}).encode() + b"\n\n")

        def piece(delta: dict[str, Any], finish: str | None = None) -> None:
            send(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

        self.begin_stream()
        piece({"role": "assistant", "content": ""})
        called = 0
        for step in steps:
            if step.verb in CALLS:
                piece({"tool_calls": [self._call(step, outputs, called)]})
                called += 1
            elif step.verb == "stream":
                for word in words(step):
                    piece({"content": word})
                    self._pause(float(step.rest.split(" ")[1]) / 1000)
            elif (delta := self._delta(step, outputs)) is not None:
                piece(delta)
        piece({}, "tool_calls" if called else "stop")
        given, cached, produced = usage
        counts = {
            "prompt_tokens": given,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens": produced,
            "total_tokens": given + produced,
        }
        send(choices=[], usage=counts)
        self.chunk(b"data: [DONE]\n\n")

    def _call(self, step: Step, outputs: list[str], index: int) -> dict[str, Any]:
        if step.verb in ("tool", "mcp"):
            step = attrs.evolve(step, rest=filled(step.rest, outputs))
        name, arguments = _tool(step)
        function = {"name": name, "arguments": json.dumps(arguments)}
        call_id = f"call_{time.time_ns()}_{index}"
        return {"index": index, "id": call_id, "type": "function", "function": function}

    def _delta(self, step: Step, outputs: list[str]) -> dict[str, Any] | None:
        """Return the piece that a step makes; None for a step that makes none."""
        match step.verb:
            case "say":
                return {"content": filled(step.rest, outputs)}
            case "reason":
                return {"reasoning_content": step.rest}
            case "relay":
                return {"content": outputs[-1] if outputs else ""}
            case "big":
                return {"content": "0123456789abcdef" * (int(step.rest) // 16)}
            case "slow":
                self._pause(float(step.rest))
            case "wait":
                if self.wait_for_file(step.rest):
                    raise BrokenOff
            case "hang":
                self._pause(None)
            case "disconnect":
                raise BrokenOff
            case "reset" if self._breaks:
                self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                os.close(
                    self.connection.detach()
                )  # at once, as the handler's end would end it first
                raise BrokenOff
        return None

    def _pause(self, seconds: float | None) -> None:
        """Wait, but not longer than the client does."""
        if seconds != 0 and (self.wait_for_end(seconds) or seconds is None):
            raise BrokenOff


class ChatModel(ScriptedServer[Request]):
    """The server."""

    handler = _Handler

    def __enter__(self) -> Self:
        super().__enter__()
        self._server.broken = set()  # type: ignore[attr-defined]
        return self
