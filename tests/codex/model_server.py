"""A local model server that codex can be pointed at: the Responses protocol, played from a script.

What the "model" does is written in the prompt itself, one step a line; the server keeps no state
between requests, so that killed and resumed turns work as with a real one. Steps:

======================== =====================================================================
``say TEXT``             a message
``note TEXT``            a message of the commentary phase (a preamble)
``big N``                a message of N characters
``stream N MS WORD``     a message of N words, each sent as a piece, MS milliseconds apart
``reason TEXT``          a summary of reasoning
``search QUERY``         a web search
``shell COMMAND``        run a command and wait for its end
``background COMMAND``   run a command and go on after a quarter of a second
``escalate COMMAND``     ask to run a command outside the sandbox, and run it
``permit PATH``          ask for leave to write under a path
``question JSON``        ask the user these questions
``tool NAME JSON``       call a function by its plain name
``agent NAME JSON``      call a function of codex's own sub-agents (unknown models have them as plain functions)
``add PATH TEXT``        add a file
``update PATH OLD -> NEW``  replace a one-line file's line
``delete PATH``          delete a file
``plan [x] A; [>] B; [ ] C``  set the plan (done, under way, to do)
``mcp SERVER.TOOL JSON`` call a tool of an MCP server
``relay``                say what the last tool answered
``& STEP``               do this in the same answer as the step before (parallel calls)
``slow SECONDS``         wait before answering on
``wait PATH``            wait until a file is there
``hang``                 never answer
``disconnect``           break the connection in the middle of the answer
``http STATUS [TEXT]``   refuse the request with this status
``usage_limit``          refuse it as a ChatGPT plan does whose limit is reached
``fail CODE [TEXT]``     end the answer with ``response.failed`` and this error code
``usage IN CACHED OUT``  what each later answer of this turn says it used (100 0 10 without it)
======================== =====================================================================

A ``say``, ``mcp``, ``tool`` or ``agent`` step may contain ``<2.run.id>``: the field ``run.id`` of the JSON that the third
tool of this turn returned.

A prompt with any line that is none of these is plain text and is answered with
``got N characters, sha256 H``. Every request is recorded in :attr:`ModelServer.requests`.

In a test: ``with ModelServer() as server: write_codex_home(home, server.port)``, then run codex with
the variables of ``codex_env(home)`` in its environment. By hand: ``python model_server.py`` prints
the port and serves until its stdin ends; ``python model_server.py HOME`` also makes a codex home.
"""

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import attrs
import trustme

FAKE_KEY = "fake-key-1234"


def codex_env(home: Path) -> dict[str, str]:
    """Return the variables that make codex use this home and its model.

    HOME is another too: codex runs commands in login shells, and what the real home's profile does
    there (pyenv takes a lock that a killed shell leaves behind) is no part of a test. And TMPDIR is,
    because codex 0.169 makes no helper programs in a home under it, and cannot run commands in its
    sandbox without them.

    The others spare most of what a start of codex costs: it reads the certificates of all authorities
    several times, and asks ``lsb_release``, a script of eight processes, three times for the system's name.
    """
    own = {"CODEX_HOME": str(home), "HOME": str(home), "TMPDIR": str(home / "tmp")}
    path = f"{home / 'path'}:{os.environ['PATH']}"
    return {**own, "FAKE_KEY": FAKE_KEY, "PATH": path, "SSL_CERT_FILE": str(home / "authority.pem")}


CONFIG = """\
model = {model}
model_provider = "local"
{projects}
[model_providers.local]
name = "local"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
env_key = "FAKE_KEY"
{retries}
[tools.update_plan]
enabled = true

[analytics]
enabled = false
"""

NO_PROJECTS = """\
project_root_markers = []
project_doc_max_bytes = 0
"""

LEAN = """\

[features]
plugins = false
shell_snapshot = false
"""


@functools.cache
def _authority() -> bytes:
    return trustme.CA().cert_pem.bytes()


def write_codex_home(
    home: Path,
    port: int,
    *,
    model: str = "gpt-5.5",
    retries: int | None = 0,
    extra: str = "",
    is_lean: bool = True,
    reads_projects: bool = False,
) -> Path:
    """Make a codex home whose model is at this port.

    :param retries: how often codex tries a request again; its own default with None.
    :param extra: what else its configuration holds.
    :param is_lean: codex neither asks a server for its plugins nor runs login shells to learn their
        variables, which costs as much as a turn.
    :param reads_projects: codex looks in all directories above its own for the root of a repository and
        for what is said to agents there: with a sandbox in some fifty processes each time.
    """
    home.joinpath("tmp").mkdir(parents=True, exist_ok=True)
    (home / "path").mkdir(exist_ok=True)
    name = home / "path" / "lsb_release"
    name.write_text("#!/bin/sh\n")
    name.chmod(0o755)
    (home / "authority.pem").write_bytes(_authority())
    limits = f"request_max_retries = {retries}\nstream_max_retries = {retries}\n"
    config = CONFIG.format(
        model=json.dumps(model),
        port=port,
        retries="" if retries is None else limits,
        projects="" if reads_projects else NO_PROJECTS,
    )
    (home / "config.toml").write_text(config + extra + (LEAN if is_lean else ""))
    return home


def acknowledgement(text: str) -> str:
    """Return what the model says to a prompt that is not a script."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"got {len(text)} characters, sha256 {digest}"


# --- the script -----------------------------------------------------------------------------

CALLS = frozenset(
    {"shell", "background", "escalate", "permit", "question", "tool", "agent"}
    | {"add", "update", "delete", "plan", "mcp"}
)
"""Steps that end an answer: the model hears of their result in the next request."""

ENDS = frozenset({"hang", "disconnect", "http", "usage_limit", "fail"})
OTHERS = frozenset(
    {"say", "note", "big", "stream", "reason", "search", "relay", "slow", "usage", "wait"}
)


@attrs.frozen
class Step:
    verb: str
    rest: str
    joined: bool


def parse_script(text: str, verbs: frozenset[str] = CALLS | ENDS | OTHERS) -> list[Step]:
    """Return the steps of a prompt; one that is plain text is a message that acknowledges it."""
    steps = []
    for line in text.strip("\n").split("\n"):
        joined = line.startswith("& ")
        verb, _, rest = line.removeprefix("& ").partition(" ")
        if verb not in verbs:
            return [Step("say", acknowledgement(text), joined=False)]
        steps.append(Step(verb, rest, joined))
    return steps


def answers_of(steps: list[Step], calls: frozenset[str] = CALLS) -> list[list[Step]]:
    """Divide a script into the answers it takes: each ends with a call (or several in parallel)."""
    answers: list[list[Step]] = [[]]
    for step in steps:
        if not step.joined and any(earlier.verb in calls for earlier in answers[-1]):
            answers.append([])
        answers[-1].append(step)
    if any(step.verb in calls for step in answers[-1]):
        answers.append([Step("say", "done", joined=False)])
    return answers


def words(step: Step) -> list[str]:
    count, _, word = step.rest.split(" ", 2)
    return [f"{word}{number} " for number in range(int(count))]


def _call(call_id: str, name: str, arguments: dict[str, Any], **more: str) -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": json.dumps(arguments),
        **more,
    }


def _patch(call_id: str, body: str) -> dict[str, Any]:
    patch = f"*** Begin Patch\n{body}\n*** End Patch\n"
    return {"type": "custom_tool_call", "call_id": call_id, "name": "apply_patch", "input": patch}


def _message(item_id: str, text: str, **more: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "id": item_id, "content": content, **more}


_MARKS = {"x": "completed", ">": "in_progress", " ": "pending"}


def _plan(text: str) -> list[dict[str, str]]:
    parts = [part.strip() for part in text.split(";")]
    return [{"step": part[4:], "status": _MARKS[part[1]]} for part in parts]


_REFERENCE = re.compile(r"<([0-9]+)((?:\.\w+)+)>")


def filled(text: str, outputs: list[str]) -> str:
    """Return a step's text with the references to what tools answered replaced."""

    def value(match: re.Match[str]) -> str:
        # Codex 0.169 puts a line on the time before it, and "Output:".
        text = outputs[int(match[1])]
        found = json.loads(text.partition("Output:\n")[2] or text)
        for name in match[2].split(".")[1:]:
            found = found[name]
        return str(found)

    return _REFERENCE.sub(value, text)


def item_of(step: Step, item_id: str, turn: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the output item a step makes; None for one that makes none."""
    if step.verb in ("say", "mcp", "tool", "agent"):
        outputs = [_output(item) for item in turn if _is_output(item)]
        step = attrs.evolve(step, rest=filled(step.rest, outputs))
    match step.verb:
        case "say":
            return _message(item_id, step.rest)
        case "note":
            return _message(item_id, step.rest, phase="commentary")
        case "big":
            return _message(item_id, "0123456789abcdef" * (int(step.rest) // 16))
        case "stream":
            return _message(item_id, "".join(words(step)))
        case "relay":
            return _message(item_id, _last_output(turn))
        case "reason":
            summary = [{"type": "summary_text", "text": step.rest}]
            return {"type": "reasoning", "id": item_id, "summary": summary}
        case "search":
            action = {"type": "search", "query": step.rest}
            return {
                "type": "web_search_call",
                "id": item_id,
                "status": "completed",
                "action": action,
            }
        case "shell":
            # Codex caps the wait for a command at 30 s.
            arguments = {"cmd": step.rest, "yield_time_ms": 30_000}
            return _call(item_id, "exec_command", arguments)
        case "background":
            return _call(item_id, "exec_command", {"cmd": step.rest, "yield_time_ms": 250})
        case "escalate":
            arguments = {"cmd": step.rest, "yield_time_ms": 30_000}
            leave = {"sandbox_permissions": "require_escalated", "justification": "it must"}
            return _call(item_id, "exec_command", arguments | leave)
        case "permit":
            wanted = {"file_system": {"write": [step.rest]}}
            arguments = {"reason": "it must", "permissions": wanted}
            return _call(item_id, "request_permissions", arguments)
        case "question":
            return _call(item_id, "request_user_input", json.loads(step.rest))
        case "tool":
            name, _, arguments = step.rest.partition(" ")
            return _call(item_id, name, json.loads(arguments or "{}"))
        case "agent":
            name, _, arguments = step.rest.partition(" ")
            given = json.loads(arguments or "{}")
            return _call(item_id, name, given, namespace="multi_agent_v1")
        case "add":
            path, _, text = step.rest.partition(" ")
            return _patch(item_id, f"*** Add File: {path}\n+{text}")
        case "update":
            path, _, change = step.rest.partition(" ")
            old, _, new = change.partition(" -> ")
            return _patch(item_id, f"*** Update File: {path}\n@@\n-{old}\n+{new}")
        case "delete":
            return _patch(item_id, f"*** Delete File: {step.rest}")
        case "plan":
            return _call(item_id, "update_plan", {"plan": _plan(step.rest)})
        case "mcp":
            target, _, arguments = step.rest.partition(" ")
            server, _, tool = target.partition(".")
            namespace = f"mcp__{server}"
            return _call(item_id, tool, json.loads(arguments or "{}"), namespace=namespace)
    return None


def _is_output(item: dict[str, Any]) -> bool:
    return str(item.get("type", "")).endswith("_output")


def _output(item: dict[str, Any]) -> str:
    output = item.get("output")
    return output if isinstance(output, str) else json.dumps(output)


def _last_output(turn: list[dict[str, Any]]) -> str:
    return next((_output(item) for item in reversed(turn) if _is_output(item)), "")


# --- the request ----------------------------------------------------------------------------


def _text_of(item: dict[str, Any]) -> str:
    content = item.get("content", "")
    if isinstance(content, str):
        return content
    # Codex puts a picture between two texts of its own.
    texts = (part.get("text", "") for part in content)
    return "".join(text for text in texts if not text.startswith(("<image", "</image>")))


_OWN_TEXTS = (
    "<environment_context>",
    "<turn_aborted>",
    "<subagent_notification>",
    "# AGENTS.md",
    "<user_instructions>",
)
"""How the user messages begin that codex writes itself."""


@attrs.frozen
class Request:
    """What codex asked for once."""

    thread_id: str | None
    authorization: str | None
    prompt: str
    """The last message of the user."""
    step: int
    """How many answers this turn had before: 0 for the first request of a turn."""
    body: dict[str, Any] = attrs.field(repr=False)

    @property
    def images(self) -> list[bytes]:
        """The images in the conversation, in order."""
        return [
            base64.b64decode(part["image_url"].partition(";base64,")[2], validate=True)
            for item in self.body.get("input", [])
            for part in item.get("content") or ()
            if part["type"] == "input_image"
        ]

    @property
    def user_texts(self) -> list[str]:
        """All messages of the user in the conversation, codex's own aside."""
        return [text for _, text in _user_messages(self.body)]


def _user_messages(body: dict[str, Any]) -> list[tuple[int, str]]:
    found = []
    for index, item in enumerate(body.get("input", [])):
        if item.get("type", "message") == "message" and item.get("role") == "user":
            text = _text_of(item)
            if not text.startswith(_OWN_TEXTS):
                found.append((index, text))
    return found


def _turn_of(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return the last message of the user and the items after it."""
    messages = _user_messages(body)
    if not messages:
        return "", []
    index, text = messages[-1]
    return text, body["input"][index + 1 :]


def _step_of(turn: list[dict[str, Any]]) -> int:
    """Return how many answers with calls this turn had: their ids are ``call_<answer>_<n>``."""
    ids = [item["call_id"] for item in turn if str(item.get("call_id")).startswith("call_")]
    return max((int(call_id.split("_")[1]) + 1 for call_id in ids), default=0)


# --- the server -----------------------------------------------------------------------------


class Refused(Exception):
    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.error = error


class BrokenOff(Exception):
    """The connection is to be cut here."""


class ModelHandler(BaseHTTPRequestHandler):
    """What the servers of all protocols of models share."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *args: Any) -> None:
        pass

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def wait_for_end(self, seconds: float | None) -> bool:
        """Wait; return True as soon as the other side is gone or the server stops."""
        sources = [self.connection, self.server.stopping]
        return bool(select.select(sources, [], [], seconds)[0])

    def wait_for_file(self, path: str) -> bool:
        """Wait until a file is there; return True as soon as the other side is gone or the server stops."""
        while not Path(path).exists():
            if self.wait_for_end(0.02):
                return True
        return False

    def event(self, kind: str, data: dict[str, Any]) -> None:
        text = json.dumps({"type": kind, **data})
        self.chunk(f"event: {kind}\ndata: {text}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def send_json(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        self.wfile.write(data)


class _Handler(ModelHandler):
    def do_GET(self) -> None:
        self.send_json(200, {"models": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt, turn = _turn_of(body)
        step = _step_of(turn)
        request = Request(
            thread_id=self.headers.get("thread-id") or body.get("prompt_cache_key"),
            authorization=self.headers.get("authorization"),
            prompt=prompt,
            step=step,
            body=body,
        )
        self.server.record(request)
        answers = answers_of(parse_script(prompt))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(answers[min(step, len(answers) - 1)], answers, step, turn)

    def _answer(
        self,
        steps: list[Step],
        answers: list[list[Step]],
        number: int,
        turn: list[dict[str, Any]],
    ) -> None:
        usage = (100, 0, 10)
        for step in [step for answer in answers[: number + 1] for step in answer]:
            if step.verb == "usage":
                first, second, third = step.rest.split()
                usage = (int(first), int(second), int(third))
        try:
            self._refuse_if_asked(steps)
            self._stream(steps, number, turn, usage)
        except Refused as refusal:
            self.send_json(refusal.status, {"error": refusal.error})
        except BrokenOff:
            self.close_connection = True

    def _refuse_if_asked(self, steps: list[Step]) -> None:
        for step in steps:
            if step.verb == "http":
                status, _, text = step.rest.partition(" ")
                raise Refused(int(status), {"message": text or "scripted", "code": "scripted"})
            if step.verb == "usage_limit":
                error = {"type": "usage_limit_reached", "plan_type": "plus"}
                raise Refused(429, {**error, "resets_at": 2_000_000_000})

    def _stream(
        self,
        steps: list[Step],
        number: int,
        turn: list[dict[str, Any]],
        usage: tuple[int, int, int],
    ) -> None:
        response_id = f"resp_{number}_{time.monotonic_ns()}"
        self.begin_stream()
        self.event("response.created", {"response": {"id": response_id}})
        for index, step in enumerate(steps):
            if step.verb == "hang":
                self.wait_for_end(None)
                raise BrokenOff
            if step.verb == "disconnect":
                raise BrokenOff
            if step.verb == "slow" and self.wait_for_end(float(step.rest)):
                raise BrokenOff
            if step.verb == "wait" and self.wait_for_file(step.rest):
                raise BrokenOff
            if step.verb == "fail":
                code, _, text = step.rest.partition(" ")
                error = {"code": code, "message": text or "scripted"}
                self.event("response.failed", {"response": {"id": response_id, "error": error}})
                self.chunk(b"")
                return
            prefix = "call" if step.verb in CALLS else "item"
            item = item_of(step, f"{prefix}_{number}_{index}", turn)
            if step.verb == "stream":
                assert item is not None
                self._pieces(step, item, index)
            if item is not None:
                self.event("response.output_item.done", {"output_index": index, "item": item})
        tokens_in, cached, tokens_out = usage
        counts = {
            "input_tokens": tokens_in,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_in + tokens_out,
        }
        self.event("response.completed", {"response": {"id": response_id, "usage": counts}})
        self.chunk(b"")

    def _pieces(self, step: Step, item: dict[str, Any], index: int) -> None:
        """Stream a message's words before it comes whole."""
        begun = {**item, "content": []}
        self.event("response.output_item.added", {"output_index": index, "item": begun})
        pause_s = float(step.rest.split(" ")[1]) / 1000
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        for word in words(step):
            if pause_s and self.wait_for_end(pause_s):
                raise BrokenOff
            self.event("response.output_text.delta", {**place, "delta": word})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, record: Callable[[Any], None], handler: type[BaseHTTPRequestHandler]
    ) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.record = record
        self.stopping, self._stop = socket.socketpair()
        self._connections: set[socket.socket] = set()
        self._workers: list[threading.Thread] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        # Kept here, and not by the class above, so that the end can wait for every handler.
        self._connections.add(request)
        work = threading.Thread(target=self._serve_one, args=(request, client_address), daemon=True)
        self._workers = [thread for thread in self._workers if thread.is_alive()] + [work]
        work.start()

    def _serve_one(self, request: socket.socket, client_address: Any) -> None:
        try:
            # A client that is killed resets its connection: that is what is being tested.
            with contextlib.suppress(ConnectionError):
                self.finish_request(request, client_address)
        finally:
            self._connections.discard(request)
            self.shutdown_request(request)

    def stop(self) -> None:
        self._stop.close()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._workers:
            thread.join(60)
        self.stopping.close()


R = TypeVar("R")


class ScriptedServer(Generic[R]):
    """A server as a scope: it serves on 127.0.0.1 at :attr:`port` until the scope ends."""

    handler: type[ModelHandler]

    def __init__(self) -> None:
        self._arrivals = threading.Condition()
        self._requests: list[R] = []

    def __enter__(self) -> Self:
        self._server = _Server(self._record, self.handler)
        self.port: int = self._server.server_address[1]
        # The interval bounds only how long the end of the scope takes.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop()
        self._thread.join()

    def _record(self, request: R) -> None:
        with self._arrivals:
            self._requests.append(request)
            self._arrivals.notify_all()

    @property
    def requests(self) -> list[R]:
        """What was asked so far, in order."""
        with self._arrivals:
            return list(self._requests)

    def wait_for(self, count: int, timeout: float = 90) -> list[R]:
        """Block until ``count`` requests have come (call it from a worker thread in async code)."""
        with self._arrivals:
            if not self._arrivals.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(f"{len(self._requests)} of {count} requests came")
            return list(self._requests)


class ModelServer(ScriptedServer[Request]):
    """The Responses protocol."""

    handler = _Handler


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """Give a port at which nobody answers: bound, so that no one else takes it, not listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def main() -> None:
    with ModelServer() as server:
        if len(sys.argv) > 1:
            write_codex_home(Path(sys.argv[1]), server.port)
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
