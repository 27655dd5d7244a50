"""Text that comes in pieces: emitted from time to time, in order, and complete at its end."""

import anyio
import pytest

from agent_orchestrator.runners.events import AgentEvent
from agent_orchestrator.runners.live import coalescing, streams
from agent_orchestrator.runners.live.coalescing import INTERVAL_S, Coalescer
from agent_orchestrator.runners.live.streams import MessageStreams

pytestmark = pytest.mark.anyio


def piece(text, item="m"):
    return AgentEvent("agent.message.delta", {"text": text, "item_id": item})


def output(text, tool="c"):
    return AgentEvent("tool.output", {"text": text, "tool_id": tool})


def whole(text, item="m"):
    return AgentEvent("agent.message", {"text": text, "item_id": item})


OTHER = AgentEvent("run.error", {"message": "x"})


async def test_pieces_wait_and_are_joined_for_each_stream():
    pieces = Coalescer()
    assert pieces.due == float("inf")
    began = anyio.current_time()
    assert pieces.add([piece("a"), output("1"), piece("b"), OTHER, output("2")]) == [OTHER]
    assert began + INTERVAL_S <= pieces.due <= anyio.current_time() + INTERVAL_S
    assert pieces.flush() == [piece("ab"), output("12")]
    assert pieces.flush() == []
    assert pieces.due == float("inf")


async def test_a_text_that_is_complete_before_its_first_piece_was_due_has_no_pieces():
    pieces = Coalescer()
    pieces.add([piece("a"), output("1")])
    done = AgentEvent("tool.completed", {"tool_id": "c", "output": "1"})
    assert pieces.add([whole("ab"), done]) == [whole("ab"), done]
    assert pieces.flush() == []


async def test_the_last_piece_of_a_text_comes_before_the_complete_text():
    pieces = Coalescer()
    pieces.add([piece("a"), piece("x", "n")])
    assert pieces.flush() == [piece("a"), piece("x", "n")]
    pieces.add([piece("b"), piece("y", "n")])
    assert pieces.add([whole("ab")]) == [piece("b"), whole("ab")]
    assert pieces.flush() == [piece("y", "n")]


async def test_a_large_piece_does_not_wait(monkeypatch):
    monkeypatch.setattr(coalescing, "MAX_DELTA", 10)
    pieces = Coalescer()
    assert pieces.add([piece("x" * 10)]) == []
    assert pieces.add([piece("y")]) == [piece("x" * 10 + "y")]


def test_a_message_that_never_comes_complete_is_made_of_its_pieces():
    messages = MessageStreams()
    assert messages.add("m", "a") == [piece("a")]
    assert messages.add("n", "x") == [piece("x", "n")]
    messages.add("m", "b")
    assert messages.complete("m") == whole("ab")
    assert messages.complete("m") is None
    [cut] = messages.finish()
    assert (cut.data["text"], cut.data["extra"]) == ("x", {"incomplete": True})
    assert messages.finish() == []


def test_a_message_that_came_complete_is_not_emitted_again():
    messages = MessageStreams()
    messages.add("m", "a")
    messages.drop("m")
    messages.drop("unknown")
    assert messages.finish() == []


def test_a_message_in_pieces_without_an_end_is_kept_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(streams, "_MAX_STREAM", 10_000)
    messages = MessageStreams()
    for _ in range(100):
        assert messages.add("m", "x" * 999) == [piece("x" * 999)]
    assert messages.finish()[0].data["text"] == "x" * 10_000


def test_too_many_incomplete_messages_end_the_oldest(monkeypatch):
    monkeypatch.setattr(streams, "_MAX_STREAMS", 2)
    messages = MessageStreams()
    messages.add("a", "1")
    messages.add("b", "2")
    cut, begun = messages.add("c", "3")
    assert (cut.event_type, cut.data["item_id"]) == ("agent.message", "a")
    assert begun == piece("3", "c")
