"""A local model server that Claude Code can be pointed at: the Messages protocol, played from a script.

What the "model" does is written in the prompt itself, one step a line; the server keeps no state
between requests, so that killed and resumed turns work as with a real one. Steps:

======================== =====================================================================
``say TEXT``             a message
``big N``                a message of N characters
``stream N MS WORD``     a message of N words, each sent as a piece, MS milliseconds apart
``reason TEXT``          thinking
``shell COMMAND``        run a command
``tool NAME JSON``       use a tool
``mcp SERVER.TOOL JSON`` use a tool of an MCP server
``add PATH TEXT``        write a file
``fill PATH N``          write a file of N lines
``read PATH``            read a file
``update PATH OLD -> NEW``  replace a text in a file that was read
``delegate SCRIPT``      have a sub-agent carry out a script, its steps divided by " ; "
``question JSON``        ask the user these questions
``relay``                say what the last tool answered
``& STEP``               do this in the same answer as the step before (parallel calls)
``slow SECONDS``         wait before answering on
``wait PATH``            wait until a file is there
``hang``                 never answer
``disconnect``           break the connection in the middle of the answer
``http STATUS [N] [TEXT]``  refuse the request with this status and text; with N, only the first N times
``fail TYPE``            end the answer with an ``error`` event of this type
``stop REASON``          the ``stop_reason`` of this answer
``usage IN CACHED OUT``  what each later answer of this turn says it used (100 0 10 without it)
======================== =====================================================================

A ``say``, ``mcp`` or ``tool`` step may contain ``<2.run.id>``: the field ``run.id`` of the JSON that the third tool of
this turn returned.

A prompt with any line that is none of these is plain text and is answered with
``got N characters, sha256 H``. Every request with tools is recorded in :attr:`MessagesServer.requests`.
"""

import contextlib
import json
import os
import re
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Final, Self

import attrs
from model_server import (
    BrokenOff,
    ModelHandler,
    Refused,
    ScriptedServer,
    Step,
    answers_of,
    filled,
    parse_script,
    words,
)

FAKE_KEY: Final = "fake-key-1234"

CALLS: Final = frozenset(
    {"shell", "tool", "mcp", "add", "fill", "read", "update", "delegate", "question"}
)
VERBS: Final = CALLS | {
    *("say", "big", "stream", "reason", "relay", "slow", "hang"),
    *("disconnect", "http", "fail", "stop", "usage", "wait"),
}

ERRORS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


def claude_env(home: Path, port: int) -> dict[str, str]:
    """Return the variables that make Claude Code use a home of its own and the model at this port."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "TMPDIR": str(home),
        "ANTHROPIC_API_KEY": FAKE_KEY,
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "PATH": os.environ["PATH"],
    }


# --- the request ----------------------------------------------------------------------------

_REMINDER: Final = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)

_OWN_TEXTS: Final = (
    "[Request interrupted",
    "Your response above was cut off",
    "The user sent a new message while you were working",
    "<local-command-",
    "<command-name>",
)
"""How the texts begin that Claude Code writes itself, or puts a message in that it adds to a turn."""


@attrs.frozen
class MessagesRequest:
    """What Claude Code asked for once."""

    key: str | None
    prompt: str
    """The last message of the user."""
    step: int
    """How many answers this turn had before: 0 for the first request of a turn."""
    body: dict[str, Any] = attrs.field(repr=False)

    @property
    def tools(self) -> list[str]:
        return [tool["name"] for tool in self.body.get("tools", [])]

    @property
    def texts(self) -> list[str]:
        """All texts that the user's side sent in the conversation, with those of tools."""
        return [
            text
            for message in self.body["messages"]
            if message["role"] == "user"
            for block in _blocks(message)
            for text in _texts_of(block)
        ]


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts_of(block: dict[str, Any]) -> list[str]:
    if block["type"] == "text":
        return [block["text"]]
    content = block.get("content") if block["type"] == "tool_result" else None
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if part["type"] == "text"]


def _turn_of(body: dict[str, Any]) -> tuple[str, int, list[str]]:
    """Return the last message of the user, the number of answers since, and what tools said since."""
    steps, outputs, was_answer = 0, list[str](), False
    for message in reversed(body["messages"]):
        if message["role"] == "assistant":
            steps += not was_answer  # Claude Code divides an answer into a message for each block
            was_answer = True
            continue
        if message["role"] != "user":
            continue  # the program's own notes
        was_answer = False
        for block in reversed(_blocks(message)):
            if block["type"] == "tool_result":
                outputs.insert(0, "".join(_texts_of(block)))
            elif block["type"] == "text":
                text = _REMINDER.sub("", block["text"])
                if text.strip() and not text.startswith(_OWN_TEXTS):
                    return text, steps, outputs
    return "", steps, outputs


# --- the answer -----------------------------------------------------------------------------


def _tool(step: Step) -> tuple[str, dict[str, Any]]:
    name, _, rest = step.rest.partition(" ")
    match step.verb:
        case "shell":
            return "Bash", {"command": step.rest, "description": "a scripted command"}
        case "add":
            return "Write", {"file_path": name, "content": rest}
        case "fill":
            return "Write", {"file_path": name, "content": "x\n" * int(rest)}
        case "read":
            return "Read", {"file_path": name}
        case "update":
            old, _, new = rest.partition(" -> ")
            return "Edit", {"file_path": name, "old_string": old, "new_string": new}
        case "question":
            return "AskUserQuestion", json.loads(step.rest)
        case "delegate":
            prompt = "\n".join(step.rest.split(" ; "))
            return "Task", {
                "description": "a part of the work",
                "prompt": prompt,
                "subagent_type": "general-purpose",
                "run_in_background": False,
            }
        case "mcp":
            return f"mcp__{name.replace('.', '__', 1)}", json.loads(rest or "{}")
    return name, json.loads(rest or "{}")


def _pieces(step: Step, outputs: list[str]) -> list[str]:
    match step.verb:
        case "big":
            whole = "0123456789abcdef" * (int(step.rest) // 16)
            return [whole[at : at + 65_536] for at in range(0, len(whole), 65_536)]
        case "stream":
            return words(step)
        case "relay":
            return [outputs[-1] if outputs else ""]
    return [filled(step.rest, outputs)]


class _Handler(ModelHandler):
    server: Any

    def do_HEAD(self) -> None:  # noqa: N802 - the name of the base class
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:  # noqa: N802
        self.send_json(200, {"data": []})

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.partition("?")[0].endswith("/messages"):
            self.send_json(200, {"input_tokens": 5})
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        prompt, number, outputs = _turn_of(body)
        steps, usage = [Step("say", "beside", joined=False)], (100, 0, 10)
        if body.get("tools"):
            self.server.record(MessagesRequest(self.headers.get("x-api-key"), prompt, number, body))
            answers = answers_of(parse_script(prompt, VERBS), CALLS)
            steps = answers[min(number, len(answers) - 1)]
            for step in [step for answer in answers[: number + 1] for step in answer]:
                if step.verb == "usage":
                    first, second, third = step.rest.split()
                    usage = (int(first), int(second), int(third))
        try:
            self._refuse_if_asked(steps, prompt)
            self._stream(steps, outputs, usage, str(body.get("model")))
        except Refused as refusal:
            value = {"type": "error", "error": refusal.error}
            self.send_json(refusal.status, value, retry_after="0")
        except BrokenOff:
            self.close_connection = True

    def _refuse_if_asked(self, steps: list[Step], prompt: str) -> None:
        for step in steps:
            if step.verb == "http":
                status, _, text = step.rest.partition(" ")
                times, _, rest = text.partition(" ")
                is_limited = times.isdigit()
                if not is_limited or self.server.refusals.count(prompt) <= int(times):
                    message = (rest if is_limited else text) or f"scripted {status}"
                    error = {"type": ERRORS[int(status)], "message": message}
                    raise Refused(int(status), error)

    def _stream(
        self, steps: list[Step], outputs: list[str], usage: tuple[int, int, int], model: str
    ) -> None:
        tokens_in, cached, tokens_out = usage
        counts = {
            "input_tokens": tokens_in,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
        }
        message = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**counts, "output_tokens": 1},
        }
        self.begin_stream()
        self.event("message_start", {"message": message})
        reason = "tool_use" if any(step.verb in CALLS for step in steps) else "end_turn"
        index = 0
        for step in steps:
            match step.verb:
                case "hang":
                    self.wait_for_end(None)
                    raise BrokenOff
                case "disconnect":
                    raise BrokenOff
                case "slow":
                    if self.wait_for_end(float(step.rest)):
                        raise BrokenOff
                case "wait":
                    if self.wait_for_file(step.rest):
                        raise BrokenOff
                case "fail":
                    error = {"type": step.rest, "message": "scripted"}
                    self.event("error", {"error": error})
                    self.chunk(b"")
                    return
                case "stop":
                    reason = step.rest
                case "http" | "usage":
                    pass
                case _:
                    self._block(index, step, outputs)
                    index += 1
        delta = {"stop_reason": reason, "stop_sequence": None}
        self.event("message_delta", {"delta": delta, "usage": {"output_tokens": tokens_out}})
        self.event("message_stop", {})
        self.chunk(b"")

    def _block(self, index: int, step: Step, outputs: list[str]) -> None:
        if step.verb in CALLS:
            if step.verb in ("tool", "mcp"):
                step = attrs.evolve(step, rest=filled(step.rest, outputs))
            name, arguments = _tool(step)
            block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": name}
            self._start(index, {**block, "input": {}})
            text = json.dumps(arguments)
            for at in range(0, len(text), 65_536):
                part = {"type": "input_json_delta", "partial_json": text[at : at + 65_536]}
                self.event("content_block_delta", {"index": index, "delta": part})
        elif step.verb == "reason":
            self._start(index, {"type": "thinking", "thinking": "", "signature": ""})
            for part in (
                {"type": "thinking_delta", "thinking": step.rest},
                {"type": "signature_delta", "signature": "c2ln"},
            ):
                self.event("content_block_delta", {"index": index, "delta": part})
        else:
            self._start(index, {"type": "text", "text": ""})
            pause_s = float(step.rest.split(" ")[1]) / 1000 if step.verb == "stream" else 0
            for piece in _pieces(step, outputs):
                if pause_s and self.wait_for_end(pause_s):
                    raise BrokenOff
                part = {"type": "text_delta", "text": piece}
                self.event("content_block_delta", {"index": index, "delta": part})
        self.event("content_block_stop", {"index": index})

    def _start(self, index: int, block: dict[str, Any]) -> None:
        self.event("content_block_start", {"index": index, "content_block": block})


class _Refusals:
    """How often each prompt was asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, prompt: str) -> int:
        with self._lock:
            self._counts[prompt] += 1
            return self._counts[prompt]


class MessagesServer(ScriptedServer[MessagesRequest]):
    """The Messages protocol."""

    handler = _Handler

    def __enter__(self) -> Self:
        super().__enter__()
        self._server.refusals = _Refusals()  # type: ignore[attr-defined]
        return self

    def wait_for_prompt(self, text: str, timeout: float = 90) -> MessagesRequest:
        """Block until a request with this last message has come."""
        end = time.monotonic() + timeout
        count = 0
        while True:
            requests = self.requests
            for request in requests:
                if request.prompt.strip("\n") == text:
                    return request
            count = len(requests)
            self.wait_for(count + 1, max(end - time.monotonic(), 0))
