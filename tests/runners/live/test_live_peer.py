"""Requests from both sides in lines, in each protocol: answers find their requests, and none waits in vain."""

import json
import threading

import anyio
import anyio.lowlevel
import pytest
from dialects import DIALECTS, Control

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.bulk import Text
from agent_orchestrator.runners.lines import LineFramer
from agent_orchestrator.runners.live import peer as peers
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Answer,
    Malformed,
    Notification,
    RpcError,
)
from agent_orchestrator.runners.live.peer import Peer, PeerTimeout
from agent_orchestrator.wire import strict_json

pytestmark = pytest.mark.anyio


class Wire:
    """A connection of bytes, with its other end: what was written, and what can be read."""

    def __init__(self):
        self.written = b""
        self.is_read = True
        self._send, self._receive = anyio.create_memory_object_stream(100)
        self._arrived = anyio.Event()

    async def lines(self):
        framer = LineFramer()
        async for chunk in self._receive:
            for line in framer.feed(chunk):
                yield line

    async def write(self, data):
        if not self.is_read:
            await anyio.sleep_forever()
        self.written += data
        self._arrived.set()

    def say(self, *messages):
        for message in messages:
            text = message if isinstance(message, str) else json.dumps(message)
            self._send.send_nowait(text.encode() + b"\n")

    def close(self):
        self._send.close()
        self._receive.close()

    async def heard(self):
        """Return the next message that the runner wrote."""
        while b"\n" not in self.written:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        line, _, self.written = self.written.partition(b"\n")
        return json.loads(line)


class Ends:
    """A peer and the agent's end of its connection."""

    def __init__(self, dialect):
        self.dialect, self.wire, self.messages = dialect, Wire(), []
        self.peer = Peer("the agent", dialect, self.wire, self._keep)
        self.mailbox = Mailbox()

    async def _keep(self, message):
        self.messages.append(message)
        self.mailbox.put(message)

    def answer(self, asked, result):
        [number] = [value for name, value in asked.items() if name in ("id", "request_id")]
        self.wire.say(self.dialect.result(AgentRequest(number, "", {}), result))

    def refuse(self, asked, message):
        [number] = [value for name, value in asked.items() if name in ("id", "request_id")]
        self.wire.say(self.dialect.error(AgentRequest(number, "", {}), -32000, message))


@pytest.fixture(params=DIALECTS)
async def ends(request):
    made = Ends(DIALECTS[request.param])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.peer.read)
        tasks.start_soon(made.peer.write)
        with anyio.fail_after(45):
            yield made
        tasks.cancel_scope.cancel()
        made.wire.close()


async def asking(ends, results, name="ask", timeout_s=None):
    try:
        results.append(await ends.peer.request(name, {"n": name}, timeout_s=timeout_s))
    except (RpcError, PeerTimeout, AgentFailed) as problem:
        results.append(problem)


async def test_answers_find_their_requests_in_any_order(ends):
    first, second = [], []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking, ends, first, "one")
        asked = await ends.wire.heard()
        tasks.start_soon(asking, ends, second, "two")
        ends.answer(await ends.wire.heard(), {"of": "two"})
        ends.answer(asked, {"of": "one"})
    assert (first, second) == ([{"of": "one"}], [{"of": "two"}])
    assert ends.messages == []


async def test_an_error_answer_is_raised_to_the_caller_of_the_request(ends):
    found = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking, ends, found)
        ends.refuse(await ends.wire.heard(), "not today")
    [problem] = found
    assert isinstance(problem, RpcError)
    assert problem.message == "not today"


async def test_both_sides_may_use_one_id_at_the_same_time(ends):
    found = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking, ends, found)
        asked = await ends.wire.heard()
        ends.wire.say(ends.dialect.request(1, "may_i", {"what": "x"}))
        question = await ends.mailbox.take()
        ends.peer.respond(question, {"yes": True})
        answered = ends.dialect.read(await ends.wire.heard(), 0)
        ends.answer(asked, {"fine": 1})
    assert isinstance(question, AgentRequest)
    assert (question.method, question.params["what"]) == ("may_i", "x")
    assert (answered.number, answered.result) == (1, {"yes": True})
    assert found == [{"fine": 1}]


async def test_a_question_can_be_refused(ends):
    ends.wire.say(ends.dialect.request(7, "may_i", {}))
    ends.peer.refuse(await ends.mailbox.take(), "nobody is here")
    answered = ends.dialect.read(await ends.wire.heard(), 0)
    assert (answered.number, answered.error.message) == (7, "nobody is here")


async def test_an_answer_comes_in_its_order_among_the_messages(ends):
    ends.peer.submit("turn", {}, ends.mailbox.put)
    asked = await ends.wire.heard()
    ends.wire.say(ends.dialect.notification("before", {}))
    ends.answer(asked, {"done": True})
    ends.wire.say(ends.dialect.notification("after", {}))
    heard = [await ends.mailbox.take() for _ in range(3)]
    assert [getattr(one, "method", None) for one in heard] == ["before", None, "after"]
    assert isinstance(heard[1], Answer)
    assert heard[1].value() == {"done": True}


async def test_an_answer_without_a_waiting_request_is_dropped(ends):
    found = []
    await asking(ends, found, timeout_s=0.01)
    assert isinstance(found.pop(), PeerTimeout)
    ends.answer(await ends.wire.heard(), {"late": True})
    never_asked = "r99" if isinstance(ends.dialect, Control) else 99
    ends.wire.say(ends.dialect.result(AgentRequest(never_asked, "", {}), {}))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking, ends, found)
        ends.answer(await ends.wire.heard(), {"mine": True})
    assert found == [{"mine": True}]
    assert ends.messages == []


async def test_the_end_of_the_agent_fails_all_waiting_requests(ends):
    found, given = [], []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking, ends, found)
        ends.peer.submit("turn", {}, given.append)
        await ends.wire.heard()
        await ends.wire.heard()
        ends.peer.end(AgentFailed("agent_crashed", "it is gone"))
    await asking(ends, found)
    assert [(one.code, one.message) for one in found] == [("agent_crashed", "it is gone")] * 2
    assert given == [None]


async def test_lines_that_are_not_messages_are_kept_in_order(ends):
    ends.wire.say("no json", "", "[1, 2]", '{"odd": 1}', ends.dialect.notification("fine", {}))
    heard = [await ends.mailbox.take() for _ in range(4)]
    assert heard[:3] == [Malformed(Text(text)) for text in ("no json", "[1, 2]", '{"odd": 1}')]
    assert isinstance(heard[3], Notification)


async def test_each_message_is_sent_as_one_line_even_if_it_contains_line_ends(ends):
    text = "a\nb\u2028c"
    ends.peer.notify("prompt", {"text": text})
    said = ends.dialect.read(await ends.wire.heard(), 0)
    assert (said.method, said.params["text"]) == ("prompt", text)


async def test_a_long_message_is_encoded_in_a_thread_and_keeps_its_place(ends, monkeypatch):
    threads = []
    encode = strict_json.encode_in_slices

    def noted(value):
        if strict_json.is_long(value):
            threads.append(threading.current_thread())
        return encode(value)

    monkeypatch.setattr(strict_json, "encode_in_slices", noted)
    text = "中\n" * 100_000
    ends.peer.notify("first", {})
    ends.peer.respond(AgentRequest(7, "tool", {}), {"text": text})
    ends.peer.notify("last", {})
    said = [await ends.wire.heard() for _ in range(3)]
    assert [ends.dialect.read(said[n], 0).method for n in (0, 2)] == ["first", "last"]
    assert json.dumps(text) in json.dumps(said[1])
    assert threads
    assert threading.main_thread() not in threads


async def test_unread_long_messages_count_toward_the_limit(monkeypatch):
    monkeypatch.setattr(peers, "MAX_UNWRITTEN", 1_000_000)
    stuck = Ends(DIALECTS["control"])
    for _ in range(4):
        stuck.peer.notify("prompt", {"parts": [{"text": "x" * 200_000}]})
    with pytest.raises(PeerTimeout, match="the agent does not read"):
        stuck.peer.notify("prompt", {"parts": [{"text": "x" * 200_000}]})
    stuck.wire.close()


async def test_an_agent_that_does_not_read_times_out(monkeypatch):
    monkeypatch.setattr(peers, "WRITE_TIMEOUT_S", 0.01)
    stuck = Ends(DIALECTS["control"])
    stuck.wire.is_read = False
    stuck.peer.notify("prompt", {})
    with anyio.fail_after(60), pytest.raises(PeerTimeout, match="the agent does not read"):
        await stuck.peer.write()
    monkeypatch.setattr(peers, "MAX_UNWRITTEN", 100)
    with pytest.raises(PeerTimeout, match="the agent does not read"):
        stuck.peer.notify("prompt", {"text": "x" * 100})
    stuck.wire.close()
