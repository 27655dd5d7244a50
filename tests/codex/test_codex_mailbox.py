"""One run that does not take what codex says of its thread, beside others of the same process."""

import json

import anyio
import pytest

from agent_orchestrator.runners.codex.appserver.server import PROTOCOL, Server, Spec
from agent_orchestrator.runners.codex.appserver.turns import STREAMS, TurnReader
from agent_orchestrator.runners.lines import Line
from agent_orchestrator.runners.live import mailbox
from agent_orchestrator.runners.live.coalescing import Coalescer
from agent_orchestrator.runners.live.mailbox import Mailbox, MessagesDropped
from agent_orchestrator.runners.live.messages import Notification
from agent_orchestrator.runners.live.peer import Peer

pytestmark = pytest.mark.anyio


class Channel:
    """What a codex would have said, and what it is told."""

    def __init__(self, *messages):
        self.messages = messages
        self.told = []

    async def lines(self):
        for message in self.messages:
            yield Line(json.dumps(message).encode())

    async def write(self, data):
        self.told += [json.loads(line) for line in data.splitlines()]


def said(thread, method, **params):
    return {"method": method, "params": {"threadId": thread, **params}}


def serving(channel):
    server = Server(PROTOCOL, "mark", 60, Spec("codex", (), frozenset()), 30)
    server._peer = Peer("codex", PROTOCOL.dialect, channel, server.receive)
    return server


async def heard(mailbox):
    found = []
    mailbox.end()
    try:
        while True:
            found.append(await mailbox.take())
    except anyio.EndOfStream:
        return found


async def test_a_run_that_reads_no_messages_does_not_delay_others():
    count = 5_000
    channel = Channel(
        *(said("slow", "item/invented", n=n) for n in range(count)), said("other", "turn/completed")
    )
    server = serving(channel)
    with server.open_mailbox("slow") as slow, server.open_mailbox("other") as other:
        with anyio.fail_after(45):
            await server._peer.read()
            assert (await other.take()).method == "turn/completed"
        assert [one.params["n"] for one in await heard(slow)] == list(range(count))


async def test_a_run_too_far_behind_is_told_and_its_requests_are_refused(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_WAITING_BYTES", 100_000)
    channel = Channel(
        said("slow", "turn/started", turn={"id": "a"}),
        {"id": 7, **said("slow", "item/commandExecution/requestApproval")},
        *(said("slow", "item/invented", text="x" * 1_000) for _ in range(100)),
        {"id": 8, **said("slow", "item/tool/call")},
        said("slow", "turn/completed", turn={"id": "a"}),
        said("other", "turn/completed"),
    )
    server = serving(channel)
    with server.open_mailbox("slow") as slow, server.open_mailbox("other") as other:
        await server._peer.read()
        assert [one.method for one in await heard(other)] == ["turn/completed"]
        first, *rest = await heard(slow)
        assert isinstance(first, MessagesDropped)
        assert first.size > 100_000
        assert [one.method for one in rest] == ["turn/started", "turn/completed"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server._peer.write)
        with anyio.fail_after(60):
            while len(channel.told) < 2:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert [(one["id"], "error" in one) for one in channel.told] == [(7, True), (8, True)]


async def test_output_that_comes_before_its_command_is_recorded():
    """Codex 0.169 sends none for the first instants of a command; what it sends is not lost."""
    box, pieces, reader = Mailbox(STREAMS), Coalescer(), TurnReader("t")
    item = {"type": "commandExecution", "id": "c", "command": "x", "status": "inProgress"}
    begun = {"threadId": "t", "item": item}
    ended = {"threadId": "t", "item": {**item, "status": "completed", "aggregatedOutput": "0123"}}
    for method, params in (
        ("item/commandExecution/outputDelta", {"threadId": "t", "itemId": "c", "delta": "1"}),
        ("item/started", begun),
        ("item/commandExecution/outputDelta", {"threadId": "t", "itemId": "c", "delta": "2"}),
        ("item/commandExecution/outputDelta", {"threadId": "t", "itemId": "c", "delta": "3"}),
    ):
        box.put(Notification(method, params))
    told = [one for said in await heard(box) for one in pieces.add(reader.feed(said))]
    told += pieces.flush()
    told += pieces.add(reader.feed(Notification("item/completed", ended)))
    texts = [one.data["text"] for one in told if one.event_type == "tool.output"]
    assert "".join(texts) == "123"
    assert (told[-1].event_type, told[-1].data["output"]) == ("tool.completed", "0123")


def test_a_cleared_goal_is_recorded_only_during_a_turn():
    reader = TurnReader("t")
    cleared = Notification("thread/goal/cleared", {"threadId": "t"})
    assert reader.feed(cleared) == []
    turn = {"threadId": "t", "turn": {"id": "a"}}
    assert reader.feed(Notification("turn/started", turn)) == []
    assert [event.data["kind"] for event in reader.feed(cleared)] == ["thread/goal/cleared"]
