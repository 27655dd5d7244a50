"""A local model server that gemini can be pointed at: the Gemini API, played from a script.

A prompt is a script, one step per line:

============================ =================================================================
``say TEXT``                 a message
``reason TEXT``              a thought
``big N``                    a message of N characters
``stream N MS WORD``         a message of N words, each sent as a piece, MS milliseconds apart
``tool NAME JSON``           call a tool
``mcp SERVER.TOOL JSON``     call a tool of an MCP server
``shell COMMAND``            run a command
``add PATH TEXT``            write a file
``update PATH OLD -> NEW``   replace a text in a file
``relay``                    say what the last tool answered
``usage IN CACHED OUT``      the tokens that this answer and the later ones report (100 0 10 without it)
``slow SECONDS``             wait before going on
``wait PATH``                wait until a file is there
``hang``                     never answer
``disconnect``               break the connection in the middle of the answer
``http STATUS [TEXT]``       refuse the request with this status
``quota``                    refuse it as when the quota of a day is used up
============================ =================================================================

An answer ends with a tool call. The steps after it make the next answer. A step may contain ``<2.run.id>``: the field
``run.id`` of the JSON that the third tool of this turn returned.

Any other prompt is answered with ``got N characters, sha256 H``.
"""

import base64
import contextlib
import json
import re
from pathlib import Path
from typing import Any, Final

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

CALLS: Final = frozenset({"tool", "mcp", "shell", "add", "update"})
VERBS: Final = CALLS | {
    *("say", "reason", "big", "stream", "relay"),
    *("usage", "slow", "wait", "hang", "disconnect", "http", "quota"),
}

_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}

_QUOTA: Final = {
    "code": 429,
    "message": "You exceeded your current quota, please check your plan and billing details.",
    "status": "RESOURCE_EXHAUSTED",
    "details": [
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
        }
    ],
}


def gemini_env(home: Path, port: int) -> dict[str, str]:
    """Return the variables with which gemini uses this home directory and the scripted model, and no network."""
    settings = home / ".gemini" / "settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    quiet = {"usageStatisticsEnabled": False, "telemetry": {"enabled": False}}
    settings.write_text(
        json.dumps(
            {
                "privacy": quiet,
                # Without it, gemini by hand refuses a server by another address.
                "security": {"auth": {"selectedType": "gemini-api-key"}},
                "telemetry": {"enabled": False},
                # A text that repeats itself would end the turn.
                "model": {"disableLoopDetection": True},
                "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False},
            }
        )
    )
    return {
        "HOME": str(home),
        "GEMINI_API_KEY": "fake-key-1234",
        "GOOGLE_GEMINI_BASE_URL": f"http://127.0.0.1:{port}",
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
        "GEMINI_MODEL": "gemini-2.5-flash",
    }


@attrs.frozen
class GeminiRequest:
    """What gemini asked for once.

    :param prompt: the last message of the user.
    :param step: the number of answers that this turn had before.
    """

    prompt: str
    step: int
    body: dict[str, Any] = attrs.field(repr=False)

    @property
    def user_texts(self) -> list[str]:
        return [
            text for one in self.body["contents"] for text in _texts(one) if one["role"] == "user"
        ]

    @property
    def images(self) -> list[bytes]:
        """The images of the last message, in order."""
        said = [one for one in self.body["contents"] if one["role"] == "user"][-1]
        found = (part["inlineData"]["data"] for part in said["parts"] if "inlineData" in part)
        return [base64.b64decode(data, validate=True) for data in found]


_CONTEXT: Final = re.compile(r"<session_context>.*?</session_context>", re.DOTALL)
"""What gemini puts before the first message of a conversation."""


def _texts(content: dict[str, Any]) -> list[str]:
    found = (_CONTEXT.sub("", part.get("text", "")) for part in content["parts"])
    return [text for text in found if text]


def _turn_of(body: dict[str, Any]) -> tuple[str, int, list[str]]:
    """Return the last message of the user, the number of answers since, and what tools said since."""
    steps, outputs = 0, list[str]()
    for content in reversed(body["contents"]):
        if content["role"] == "model":
            steps += 1
            continue
        if texts := _texts(content):  # after a turn that was stopped, also what belongs to that
            return texts[-1], steps, outputs
        results = [
            part["functionResponse"] for part in content["parts"] if "functionResponse" in part
        ]
        outputs = [_output(one["response"]) for one in results] + outputs
    return "", steps, outputs


def _output(response: dict[str, Any]) -> str:
    output = response.get("output", response.get("error"))
    text = output if isinstance(output, str) else json.dumps(output)
    return text.removeprefix("<untrusted_context>\n").removesuffix("\n</untrusted_context>")


def _call(step: Step) -> dict[str, Any]:
    name, _, rest = step.rest.partition(" ")
    match step.verb:
        case "shell":
            given = {"command": step.rest, "description": "a command"}
            return {"name": "run_shell_command", "args": given}
        case "add":
            return {"name": "write_file", "args": {"file_path": name, "content": rest + "\n"}}
        case "update":
            old, _, new = rest.partition(" -> ")
            change = {"old_string": old, "new_string": new, "instruction": "a change"}
            return {"name": "replace", "args": {"file_path": name, **change}}
        case "mcp":
            name = f"mcp_{name.replace('.', '_', 1)}"
    return {"name": name, "args": json.loads(rest or "{}")}


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

    def do_POST(self) -> None:  # noqa: N802 - the name of the base class
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "countTokens" in self.path:
            self.send_json(200, {"totalTokens": 10})
            return
        if "stream" not in self.path:  # what gemini asks for itself, such as a summary
            said = {"role": "model", "parts": [{"text": "beside"}]}
            self.send_json(200, {"candidates": [{"content": said, "finishReason": "STOP"}]})
            return
        prompt, number, outputs = _turn_of(body)
        self.server.record(GeminiRequest(prompt, number, body))
        answers = answers_of(parse_script(prompt, VERBS), CALLS)
        usage = "100 0 10"
        for step in [step for answer in answers[: number + 1] for step in answer]:
            usage = step.rest if step.verb == "usage" else usage
        steps = answers[min(number, len(answers) - 1)]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                self._refuse_if_asked(steps)
                self._stream(steps, outputs, usage)
            except Refused as refusal:
                self.send_json(refusal.status, {"error": refusal.error})
            except BrokenOff:
                self.close_connection = True

    def _refuse_if_asked(self, steps: list[Step]) -> None:
        for step in steps:
            if step.verb == "http":
                status, _, text = step.rest.partition(" ")
                name = _STATUSES.get(int(status), "INTERNAL")
                error = {"code": int(status), "message": text or "scripted", "status": name}
                raise Refused(int(status), error)
            if step.verb == "quota":
                raise Refused(429, _QUOTA)

    def _stream(self, steps: list[Step], outputs: list[str], usage: str) -> None:
        given, cached, produced = (int(one) for one in usage.split())
        counts = {
            "promptTokenCount": given,
            "cachedContentTokenCount": cached,
            "candidatesTokenCount": produced,
            "totalTokenCount": given + produced,
        }

        def send(part: dict[str, Any], **more: str) -> None:
            candidate = {"index": 0, "content": {"role": "model", "parts": [part]}, **more}
            answer = {
                "candidates": [candidate],
                "usageMetadata": counts,
                "modelVersion": "scripted",
            }
            self.chunk(b"data: " + json.dumps(answer).encode() + b"\r\n\r\n")

        self.begin_stream()
        for step in steps:
            match step.verb:
                case "hang":
                    self.wait_for_end(None)
                    raise BrokenOff
                case "disconnect":
                    send({"text": "half of "})
                    raise BrokenOff
                case "slow":
                    if self.wait_for_end(float(step.rest)):
                        raise BrokenOff
                case "wait":
                    if self.wait_for_file(step.rest):
                        raise BrokenOff
                case "usage" | "http":
                    pass
                case "reason":
                    send({"text": step.rest, "thought": True})
                case verb if verb in CALLS:
                    send(
                        {"functionCall": _call(attrs.evolve(step, rest=filled(step.rest, outputs)))}
                    )
                case _:
                    pause_s = float(step.rest.split(" ")[1]) / 1000 if step.verb == "stream" else 0
                    for piece in _pieces(step, outputs):
                        if pause_s and self.wait_for_end(pause_s):
                            raise BrokenOff
                        send({"text": piece})
        send({"text": ""}, finishReason="STOP")
        self.chunk(b"")


class GeminiServer(ScriptedServer[GeminiRequest]):
    """The Gemini API."""

    handler = _Handler
