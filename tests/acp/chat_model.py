"""A model server for agents that use the API of OpenAI's chat completions. It does what the prompt says.

A prompt is a script, one step per line:

============================ =================================================================
``say TEXT``                 a message
``think TEXT``               a thought
``big N``                    a message of N characters
``stream N MS WORD``         a message of N words, each sent as a piece, MS milliseconds apart
``tool NAME JSON``           call a tool
``shell COMMAND``            call ``bash``
``write PATH TEXT``          call ``write``
``edit PATH OLD -> NEW``     call ``edit``
``relay``                    say what the last tool answered
``usage IN OUT``             the tokens that this answer and the later ones report (100 10 without it)
``slow SECONDS``             wait before going on
``hang``                     never answer
``disconnect``               break the connection in the middle of the answer
``http STATUS [TEXT]``       refuse the request with this status
============================ =================================================================

An answer ends with a tool call. The steps after it make the next answer. A step may contain ``<2.run.id>``: the field
``run.id`` of the JSON that the third tool of this turn returned.

Any other prompt is answered with ``got N characters, sha256 H``. A request without tools, such as the one for a title,
is answered with ``a title``.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import attrs

CALLS = frozenset({"tool", "shell", "write", "edit"})
VERBS = CALLS | {
    "say",
    "think",
    "big",
    "stream",
    "relay",
    "usage",
    "slow",
    "hang",
    "disconnect",
    "http",
}

_REFERENCE = re.compile(r"<([0-9]+)((?:\.\w+)+)>")


def acknowledgement(text: str) -> str:
    """Return what the model says to a prompt that is not a script."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"got {len(text)} characters, sha256 {digest}"


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


def _answers(prompt: str) -> list[list[tuple[str, str]]]:
    """Divide a script into the answers it takes: each ends with the calls of tools."""
    answers: list[list[tuple[str, str]]] = [[]]
    # A prompt may have been given a prefix, so that it is no command of the agent.
    for line in prompt.strip("\n").split("\n"):
        verb, _, rest = line.partition(" ")
        if verb not in VERBS:
            return [[("say", acknowledgement(prompt))]]
        if any(before in CALLS for before, _ in answers[-1]):
            answers.append([])
        answers[-1].append((verb, rest))
    if any(verb in CALLS for verb, _ in answers[-1]):
        answers.append([("say", "done")])
    return answers


def _arguments(verb: str, rest: str) -> tuple[str, dict[str, Any]]:
    match verb:
        case "shell":
            return "bash", {"command": rest, "description": "a command"}
        case "write":
            path, _, text = rest.partition(" ")
            return "write", {"filePath": path, "content": text + "\n"}
        case "edit":
            path, _, change = rest.partition(" ")
            old, _, new = change.partition(" -> ")
            return "edit", {"filePath": path, "oldString": old, "newString": new}
    name, _, given = rest.partition(" ")
    return name, json.loads(given or "{}")


class ChatModel:
    """The server. It records every request that has tools."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(_Handler):
            owner = model

        return Handler


class _Broken(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    owner: ChatModel
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        messages = body["messages"]
        last = max(index for index, one in enumerate(messages) if one["role"] == "user")
        prompt = _text(messages[last])
        turn = messages[last + 1 :]
        step = sum(one["role"] == "assistant" for one in turn)
        if not body.get("tools"):
            return self._stream(body, [("say", "a title")], [])
        self.owner.requests.append(Request(prompt, step, body))
        outputs = [_text(one) for one in turn if one["role"] == "tool"]
        answers = _answers(prompt)
        steps = answers[step] if step < len(answers) else [("say", "done")]
        for verb, rest in steps:
            if verb == "http":
                return self._refuse(rest)
        used = [rest for answer in answers[: step + 1] for verb, rest in answer if verb == "usage"]
        return self._stream(body, steps, outputs, used[-1] if used else "100 10")

    def _refuse(self, rest: str) -> None:
        status, _, text = rest.partition(" ")
        content = json.dumps(
            {"error": {"message": text or "the model refuses", "code": None}}
        ).encode()
        self.send_response(int(status))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(
        self,
        body: dict[str, Any],
        steps: list[tuple[str, str]],
        outputs: list[str],
        usage: str = "1 1",
    ) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        base = {
            "id": f"chatcmpl-{time.time_ns()}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body.get("model"),
        }

        def send(**fields: Any) -> None:
            self.wfile.write(b"data: " + json.dumps({**base, **fields}).encode() + b"\n\n")
            self.wfile.flush()

        def piece(delta: dict[str, Any], finish: str | None = None) -> None:
            send(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

        piece({"role": "assistant", "content": ""})
        try:
            called = 0
            for verb, rest in steps:
                for delta in self._deltas(verb, _filled(rest, outputs), outputs, called):
                    called += "tool_calls" in delta
                    piece(delta)
        except _Broken:
            self.connection.shutdown(2)
            return
        piece({}, "tool_calls" if called else "stop")
        given, produced = (int(one) for one in usage.split())
        counts = {
            "prompt_tokens": given,
            "completion_tokens": produced,
            "total_tokens": given + produced,
        }
        send(choices=[], usage=counts)
        self.wfile.write(b"data: [DONE]\n\n")

    def _deltas(
        self, verb: str, rest: str, outputs: list[str], called: int
    ) -> Iterator[dict[str, Any]]:
        match verb:
            case "say":
                yield {"content": rest}
            case "think":
                yield {"reasoning_content": rest}
            case "relay":
                yield {"content": outputs[-1]}
            case "big":
                yield {"content": "0123456789abcdef" * (int(rest) // 16)}
            case "stream":
                count, pause, word = rest.split(" ", 2)
                for number in range(int(count)):
                    yield {"content": f"{word}{number} "}
                    self._wait(int(pause) / 1000)
            case "slow":
                self._wait(float(rest))
            case "hang":
                self._wait(600)
            case "disconnect":
                raise _Broken
            case _ if verb in CALLS:
                name, arguments = _arguments(verb, rest)
                function = {"name": name, "arguments": json.dumps(arguments)}
                call_id = f"call_{time.time_ns()}_{called}"
                yield {
                    "tool_calls": [
                        {"index": called, "id": call_id, "type": "function", "function": function}
                    ]
                }

    def _wait(self, seconds: float) -> None:
        """Wait, but not longer than the client does."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.owner.stopping.is_set():
            self.owner.stopping.wait(min(left, 0.2))
            if left > 0.2:
                self.wfile.write(b": still there\n\n")
                self.wfile.flush()


def _filled(text: str, outputs: list[str]) -> str:
    """Return a step's text with the references to what tools answered replaced."""

    def value(match: re.Match[str]) -> str:
        found = json.loads(outputs[int(match[1])])
        for name in match[2].split(".")[1:]:
            found = found[name]
        return str(found)

    return _REFERENCE.sub(value, text)
