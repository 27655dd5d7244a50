"""Every line that codex can say, of every kind that our readers know, in the worst shapes.

The kinds and their fields are taken from the readers themselves: a new one is swept with the others.
"""

import ast
from functools import partial

import agent_lines
import anyio
import pytest
from agent_lines import SHAPES, Raw, check_storable, fields_in, texts_in, trees_of
from pace import is_linear

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
from agent_orchestrator.runners.lines import Line
from agent_orchestrator.runners.live import jsonrpc
from agent_orchestrator.runners.live.coalescing import Coalescer
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import AgentRequest, Malformed, Notification
from agent_orchestrator.runners.live.peer import Peer
from agent_orchestrator.wire import strict_json

pytestmark = pytest.mark.anyio

MODULES = (items, parser, item_events, app_items, approvals, turn_driver, jsonrpc, turns)
TREES = trees_of(*MODULES)


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


def test_the_fields_and_methods_are_found_in_the_readers():
    assert {"itemId", "delta", "command", "aggregated_output", "changes", "tokenUsage"} <= {*FIELDS}
    assert {"turn/completed", "item/agentMessage/delta", "mcpServer/elicitation/request"} <= {
        *METHODS
    }
    assert {"turn.failed", "item.completed"} <= {*EXEC_KINDS}
    assert {"agent_message", "todo_list", "command_execution"} <= {*EXEC_ITEMS}


def everywhere(value, **known):
    return agent_lines.everywhere(value, FIELDS, **known)


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


SMALL = 80
"""Bytes in each field, of which a line has two hundred."""


@pytest.mark.parametrize("shape", SHAPES)
def test_any_output_of_exec_becomes_storable_events(shape):
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
async def test_any_message_of_the_app_server_is_read(shape, monkeypatch):
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


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("method", turns.STREAMS)
async def test_a_text_in_small_pieces_takes_linear_time(method):
    piece = Notification(method, {"threadId": "t", "itemId": "m", "delta": "12345678"})

    def work(count):
        def read():
            box, reader, coalescer = Mailbox(turns.STREAMS), TurnReader("t"), Coalescer()
            for _ in range(count):
                box.put(piece)
                coalescer.add(reader.feed(piece))
            coalescer.flush()
            reader.finish()

        return read

    assert is_linear(work, 20_000)


def test_a_number_of_many_digits_is_kept_as_text():
    digits = "9" * (MAX_DIGITS + 1)
    line = f'{{"type":"x","long":{digits},"most":{digits[1:]}}}'
    [event] = ExecParser().feed(Line(line.encode()))
    assert event.data["payload"]["long"] == digits
    assert event.data["payload"]["most"] == int(digits[1:])
