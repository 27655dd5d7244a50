"""Recordings of the messages between an agent and this client.

A recording is a file of lines ``{"case": …, "dir": ">" or "<", "msg": …}``, with ``>`` to the agent. The case ``start`` has
``initialize``, a new session and its mode. The directory ``starts`` has the recordings of the known agents.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from agent_orchestrator.runners.acp.values import objects, value_at
from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.live.jsonrpc import JsonRpc
from agent_orchestrator.runners.live.messages import AgentRequest, Answer, Notification

STARTS: Final = Path(__file__).parent / "starts"

START: Final = "start"

_MAX_TEXT: Final = 400
_MAX_ITEMS: Final = 20
_MAX_MESSAGES: Final = 200

_SECRET: Final = re.compile(
    r"token|secret|password|credential|api.?key|authorization|cookie|e-?mail|account|user",
    re.IGNORECASE,
)

_REMOVED: Final = "<removed>"


@frozen
class RecordingDialect:
    """JSON-RPC that records its first messages.

    :ivar messages: the direction and each message.
    """

    messages: list[tuple[str, JsonObject]] = field(factory=list)
    _dialect: JsonRpc = field(factory=JsonRpc)

    def _keep(self, direction: str, message: JsonObject) -> JsonObject:
        if len(self.messages) < _MAX_MESSAGES:
            self.messages.append((direction, message))
        return message

    def request(self, number: int, method: str, params: JsonObject) -> JsonObject:
        return self._keep(">", self._dialect.request(number, method, params))

    def notification(self, method: str, params: JsonObject) -> JsonObject:
        return self._keep(">", self._dialect.notification(method, params))

    def result(self, request: AgentRequest, result: Any) -> JsonObject:
        return self._keep(">", self._dialect.result(request, result))

    def error(self, request: AgentRequest, code: int, message: str) -> JsonObject:
        return self._keep(">", self._dialect.error(request, code, message))

    def read(self, message: JsonObject, size: int) -> Notification | AgentRequest | Answer | None:
        return self._dialect.read(self._keep("<", message), size)

    def lines(self, places: Mapping[str, str]) -> list[JsonObject]:
        """Return the recording without secrets, with long texts and lists cut.

        :param places: replacements for the paths of this machine, by path.
        """
        words = {**places, **dict.fromkeys(_secrets(), _REMOVED)}
        pattern = re.compile("|".join(re.escape(word) for word in sorted(words, key=len)[::-1]))
        return [
            {"case": START, "dir": direction, "msg": _cut(message, pattern, words)}
            for direction, message in self.messages
        ]


def _secrets() -> Iterator[str]:
    """Yield the values of environment variables that have names of secrets."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8:
            yield value


def _cut(value: Any, pattern: re.Pattern[str], words: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda found: words[found[0]], value)[:_MAX_TEXT]
    if isinstance(value, list):
        return [_cut(one, pattern, words) for one in value[:_MAX_ITEMS]]
    if isinstance(value, Mapping):
        return {
            name: _REMOVED
            if isinstance(one, str) and _SECRET.search(name)
            else _cut(one, pattern, words)
            for name, one in value.items()
        }
    return value


def read_start(file: Path) -> list[JsonObject]:
    """Return the case ``start`` of a recording; empty if there is none."""
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return []
    return [line for line in objects(lines) if line.get("case") == START]


def write_start(file: Path, lines: list[JsonObject]) -> None:
    """Replace the case ``start`` in a file of recordings, or add it. Create the file if it does not exist.

    :raises ValueError: if it is a file with other content, which stays as it is.
    """
    kept: list[Any] = []
    if file.exists():
        kept = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        if len(objects(kept)) < len(kept):
            raise ValueError("not the lines of a recording")
    others = [line for line in kept if line.get("case") != START]
    texts = (json.dumps(line, ensure_ascii=False) for line in (*lines, *others))
    file.write_text("".join(f"{one}\n" for one in texts), "utf-8")


@frozen
class Outline:
    """A summary of an agent, from the recording of its start.

    :ivar capabilities: the names of its capabilities, as paths with dots.
    :ivar logins: the ids of the ways to log in.
    :ivar refusal: the code of the error for a new session; None if it was opened.
    :ivar options: the categories of the session's options.
    """

    version: str
    protocol: Any
    capabilities: frozenset[str]
    logins: frozenset[str]
    refusal: int | None
    modes: frozenset[str]
    first_mode: str
    options: frozenset[str]


def outline(lines: list[JsonObject]) -> Outline:
    """Return the summary of a recorded start."""
    answers = dict[str, JsonObject]()
    methods = dict[Any, str]()
    for line in lines:
        message = line["msg"]
        if line["dir"] == ">":
            methods[message.get("id")] = text(message.get("method"))
        elif "method" not in message and message.get("id") in methods:
            answers.setdefault(methods[message["id"]], message)
    hello = answers.get("initialize", {}).get("result")
    opened = answers.get("session/new", {})
    session = opened.get("result")
    options = objects(value_at(session, ["configOptions"]))
    mode = next((one for one in options if one.get("category") == "mode"), {})
    plain = value_at(session, ["modes"])
    ids = {text(one.get("value")) for one in objects(mode.get("options"))}
    ids |= {text(one.get("id")) for one in objects(value_at(plain, ["availableModes"]))}
    refusal = value_at(opened, ["error", "code"])
    return Outline(
        version=text(value_at(hello, ["agentInfo", "version"])),
        protocol=value_at(hello, ["protocolVersion"]),
        capabilities=frozenset(
            [
                *_names(value_at(hello, ["agentCapabilities"])),
                *(f"_meta.{name}" for name in _names(value_at(hello, ["_meta"]))),
            ]
        ),
        logins=frozenset(text(one.get("id")) for one in objects(value_at(hello, ["authMethods"]))),
        refusal=refusal if isinstance(refusal, int) else None,
        modes=frozenset(ids),
        first_mode=text(mode.get("currentValue") or value_at(plain, ["currentModeId"])),
        options=frozenset(text(one.get("category") or one.get("id")) for one in options),
    )


def _names(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all values that are true or an empty object."""
    if value is True:
        yield path
    elif isinstance(value, Mapping):
        if path and not value:
            yield path
        for name, one in value.items():
            yield from _names(one, f"{path}.{name}" if path else name)
