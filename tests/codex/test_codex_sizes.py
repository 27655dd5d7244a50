"""Every line that codex can say, of every kind that our readers know, in the worst shapes.

The kinds and their fields are taken from the readers themselves: a new one is swept with the others.
"""

import ast
import inspect
import json
import time
from functools import partial

import anyio
import pytest

from agent_orchestrator.fields import MAX_DIGITS, MAX_METADATA, MAX_QUESTION
from agent_orchestrator.runners import events
from agent_orchestrator.runners.bulk import Text, read_object
from agent_orchestrator.runners.codex import item_events, items, parser
from agent_orchestrator.runners.codex.appserver import (
    approvals,
    turn_driver,
    turns,
)
from agent_orchestrator.runners.codex.appserver import exec_items as app_items
from agent_orchestrator.runners.codex.appserver.server import PROTOCOL, Server, Spec
from agent_orchestrator.runners.codex.appserver.turns import TurnReader
from agent_orchestrator.runners.codex.parser import ExecParser
from agent_orchestrator.runners.lines import MAX_JSON_DEPTH, Line
from agent_orchestrator.runners.live import jsonrpc
from agent_orchestrator.runners.live.messages import AgentRequest, Malformed, Notification
from agent_orchestrator.runners.live.peer import Peer
from agent_orchestrator.wire import strict_json

pytestmark = pytest.mark.anyio

MODULES = (items, parser, item_events, app_items, approvals, turn_driver, jsonrpc, turns)
TREES = [ast.parse(inspect.getsource(module)) for module in MODULES]


def texts_in(trees, *kinds):
    """Return the texts that stand in nodes of these kinds."""
    return sorted(
        {
            one.value
            for tree in trees
            for node in ast.walk(tree)
            if isinstance(node, kinds)
            for one in ast.walk(node)
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        }
    )


def fields_in(trees):
    """Return the names that are looked for in what codex said."""
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [
        call.args[0] for call in calls if ast.unparse(call.func).endswith(".get") and call.args
    ]
    return sorted({one.value for one in named if isinstance(one, ast.Constant)})


FIELDS = fields_in(TREES)
METHODS = [name for name in texts_in(TREES, ast.match_case) if "/" in name] + [
    *turns.REPEATED_METHODS,
    "error",
    "warning",
    "some/invented",
]
ITEMS = [*app_items._TYPES, "userMessage", "invented"]
EXEC_KINDS = [one for one in texts_in([TREES[1]], ast.match_case) if "." in one] + [
    "error",
    "invented",
]
EXEC_ITEMS = [*texts_in([TREES[2]], ast.match_case), *items.ITEM_MAPPINGS, "invented"]


def test_the_readers_are_looked_into():
    assert {"itemId", "delta", "command", "aggregated_output", "changes", "tokenUsage"} <= {*FIELDS}
    assert {"turn/completed", "item/agentMessage/delta", "mcpServer/elicitation/request"} <= {
        *METHODS
    }
    assert {"turn.failed", "item.completed"} <= {*EXEC_KINDS}
    assert {"agent_message", "todo_list", "command_execution"} <= {*EXEC_ITEMS}


def deep(depth):
    return "[" * depth + "]" * depth


SHAPES = {
    "text": lambda size: json.dumps("x" * size),
    "control characters": lambda size: json.dumps("\0" * (size // 6)),
    "half pairs": lambda size: '"' + "\\ud800" * (size // 6) + '"',
    "emoji": lambda size: '"' + "😀" * (size // 4) + '"',
    "line separators": lambda size: '"' + "\u2028" * (size // 3) + '"',
    "digits": lambda size: "9" * size,
    "a fraction": lambda size: f"0.{'9' * size}e{'9' * 5}",
    "deep": lambda size: deep(size // 2),
    "lists": lambda size: "[" + "[]," * (size // 3) + "0]",
    "numbers": lambda size: "[" + "1," * (size // 2) + "0]",
    "objects": lambda size: "[" + '{"type":"text","text":"a","path":"p"},' * (size // 37) + "{}]",
    "wide": lambda size: "{" + ",".join(f'"{n}":0' for n in range(size // 8)) + "}",
    "a twin at the end": lambda size: (
        "{" + ",".join(f'"{n}":0' for n in range(size // 8)) + ',"1":{}}'
    ),
    "true": lambda _: "true",
    "nothing": lambda _: "null",
}


def everywhere(value, **known):
    """Return JSON text of an object that has the value in every field but the known ones."""
    fields = {name: value for name in FIELDS if name not in known}
    fields |= {name: json.dumps(one) for name, one in known.items() if not isinstance(one, Raw)}
    fields |= {name: one.text for name, one in known.items() if isinstance(one, Raw)}
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in fields.items()) + "}"


class Raw:
    def __init__(self, text):
        self.text = text


def app_lines(value):
    """Yield a line of each kind that has the value in every field."""
    for method in METHODS:
        for known in ({"threadId": "t"}, {"threadId": "t", "itemId": "i", "delta": "x"}):
            yield f'{{"method":"{method}","params":{everywhere(value, **known)},"id":7}}'
        inner = Raw(everywhere(value, id="i", status="completed"))
        nested = everywhere(
            value, threadId="t", turn=inner, tokenUsage=inner, error=inner, permissions=inner
        )
        yield f'{{"method":"{method}","params":{nested}}}'
        yield f'{{"method":"{method}","params":{nested},"id":7}}'
    for phase in ("started", "completed"):
        for kind in ITEMS:
            item = Raw(everywhere(value, type=kind, id="i"))
            yield f'{{"method":"item/{phase}","params":{everywhere(value, threadId="t", item=item)}}}'
    yield f'{{"method":{value}}}'
    yield f'{{"method":"turn/started","params":{value}}}'
    for answer in ("result", "error"):
        for number in ("1", "99", "true", '"x"', value):
            yield f'{{"id":{number},"{answer}":{value}}}'
    yield f'{{"id":{value},"method":"item/tool/requestUserInput","params":{{"threadId":"t"}}}}'


def exec_lines(value):
    for kind in EXEC_KINDS:
        yield everywhere(value, type=kind)
        for item_type in EXEC_ITEMS if kind.startswith("item.") else ():
            yield everywhere(value, type=kind, item=Raw(everywhere(value, type=item_type, id="i")))
        yield f'{{"type":"{kind}"}}'
    yield everywhere(value)
    yield everywhere(value, type="turn.failed", error=Raw(everywhere(value)))


def check_storable(events, size):
    """What comes of a line can be stored and read, is not deep, and not much larger than the line."""
    told = 0
    for event in events:
        text = strict_json.dumps(event.data)
        strict_json.loads(text.encode())
        told += len(text)
        assert depth_of(event.data) <= MAX_JSON_DEPTH + 1
    assert told <= 4 * size + 2_000


def depth_of(value):
    level, depth = [value], 0
    while level := [
        part
        for one in level
        if isinstance(one, (dict, list))
        for part in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
    return depth


SMALL = 80
"""Bytes in each field, of which a line has two hundred."""


@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_exec_says_becomes_events(shape):
    for line in exec_lines(SHAPES[shape](SMALL)):
        one = ExecParser()
        check_storable([*one.feed(Line(line.encode())), *one.finish()], len(line))
        assert all(isinstance(count, int) for count in (one.totals or {}).values())


class Channel:
    def __init__(self, lines):
        self._lines = lines
        self.told = []

    async def lines(self):
        for line in self._lines:
            yield Line(line.encode())

    async def write(self, data):
        self.told.append(data)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_whatever_the_app_server_says_is_taken(shape, monkeypatch):
    monkeypatch.setattr(Server, "pid", 1)
    lines = [*app_lines(SHAPES[shape](SMALL))]
    server = Server(PROTOCOL, "mark", 60, Spec("codex", (), frozenset()), 30)
    channel = Channel(lines)
    server._peer = Peer("codex", PROTOCOL.dialect, channel, server.receive)
    heard = []
    with server.open_mailbox("t") as mailbox, anyio.fail_after(60):
        await server._peer.read()
        mailbox.end()
        try:
            while True:
                heard.append(await mailbox.take())
        except anyio.EndOfStream:
            pass
    assert len(heard) > 20
    largest = max(map(len, lines))
    reader = TurnReader("t")
    for one in heard:
        match one:
            case Notification():
                reader.is_stale(one)
                check_storable(reader.feed(one), largest)
                _ = reader.threads
            case AgentRequest():
                check_question(one, reader)
            case Malformed():
                assert isinstance(one.text, Text)
    check_storable(reader.finish(), sum(map(len, lines)))
    assert len(reader.children) <= turns._MAX_CHILDREN


def check_question(asked, reader):
    try:
        item = reader.items.tools.get(events.text(asked.params.get("itemId")))
        made = approvals.question_for(asked, item, remember=True)
    except events.UnexpectedShape:
        return
    if made is not None:
        assert len(made.text) <= MAX_QUESTION
        assert len(strict_json.dumps(made.detail).encode()) < MAX_METADATA
        strict_json.dumps(made.answer(None))


# --- time -----------------------------------------------------------------------------------


def seconds(work):
    began = time.thread_time()
    work()
    return time.thread_time() - began


def is_linear(work, size):
    """Tell whether twice the size takes at most 2.5 times as long; the best of several tries counts."""
    half, whole = work(size), work(2 * size)
    found = []
    for _ in range(6):
        found.append((seconds(half), seconds(whole)))
        small, large = (min(times) for times in zip(*found, strict=True))
        if large < 2.5 * small + 0.02:
            return True
    return False


def asking(method, field, shape, size):
    line = f'{{"threadId":"t","itemId":"i","{field}":{SHAPES[shape](size)}}}'
    params = read_object(Line(line.encode()))
    assert isinstance(params, dict)
    asked = AgentRequest(1, method, params, len(line))

    def work():
        check_question(asked, TurnReader("t"))

    return work


ASKING = sorted({name for name in texts_in([TREES[4]], ast.match_case) if "/" in name})


@pytest.mark.parametrize("method", ASKING)
def test_a_question_takes_linear_time(method):
    fields = ("command", "availableDecisions", "permissions", "requestedSchema", "questions", "x")
    slow = [
        (field, shape)
        for field in fields
        for shape in ("text", "wide", "lists", "objects")
        if not is_linear(partial(asking, method, field, shape), 20_000)
    ]
    assert slow == []


def test_a_question_of_many_fields_takes_linear_time():
    def work(count):
        params = {"threadId": "t", **{f"field {n}": n for n in range(count)}}
        asked = AgentRequest(1, ASKING[0], params, 20 * count)
        return lambda: check_question(asked, TurnReader("t"))

    assert is_linear(work, 5_000)


def test_a_number_of_many_digits_is_kept_as_text():
    digits = "9" * (MAX_DIGITS + 1)
    line = f'{{"type":"x","long":{digits},"most":{digits[1:]}}}'
    [event] = ExecParser().feed(Line(line.encode()))
    assert event.data["payload"]["long"] == digits
    assert event.data["payload"]["most"] == int(digits[1:])
