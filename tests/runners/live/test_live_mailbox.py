"""Messages that wait for a run: joined where they are pieces of one text, and bounded."""

import anyio
import pytest

from agent_orchestrator.runners.live import mailbox
from agent_orchestrator.runners.live.mailbox import Mailbox, MessagesDropped
from agent_orchestrator.runners.live.messages import AgentRequest, Answer, Notification

pytestmark = pytest.mark.anyio

STREAMS = {
    "piece": (("delta",),),
    "update": (("update", "content", "text"), ("update", "_meta", "data")),
}


async def heard(mailbox):
    found = []
    mailbox.end()
    try:
        while True:
            found.append(await mailbox.take())
    except anyio.EndOfStream:
        return found


async def test_pieces_that_wait_are_joined_and_none_is_lost():
    box = Mailbox(STREAMS)
    pieces = []
    for number in range(30_000):
        piece = {"itemId": f"m{number // 20_000}", "delta": f"{number} "}
        pieces.append(piece)
        box.put(Notification("piece", piece, 60))
        if number == 5:
            box.put(Notification("warning", {}, 60))
    got = await heard(box)
    assert len(got) < 100
    deltas = [one for one in got if one.method == "piece"]
    for item in ("m0", "m1"):
        whole = "".join(one.params["delta"] for one in deltas if one.params["itemId"] == item)
        assert whole == "".join(one["delta"] for one in pieces if one["itemId"] == item)
    assert [one.method for one in got[:3]] == [
        "piece",
        "warning",
        "piece",
    ]


@pytest.mark.parametrize("delta", [None, 5, ["a"], {"a": "b"}])
async def test_pieces_of_another_shape_are_kept_apart(delta):
    box = Mailbox(STREAMS)
    odd = Notification("piece", {"itemId": "m", "delta": delta}, 9)
    fine = Notification("piece", {"itemId": "m", "delta": "x"}, 9)
    for one in (fine, odd, odd, fine):
        box.put(one)
    assert await heard(box) == [fine, odd, odd, fine]


async def test_pieces_of_texts_at_different_paths_are_not_joined_with_each_other():
    def update(**parts):
        return Notification("update", {"update": parts}, 9)

    said, printed = {"text": "a"}, {"data": "b"}
    box = Mailbox(STREAMS)
    for parts in (
        {"content": said},
        {"_meta": printed},
        {"_meta": printed},
        {"content": said, "_meta": printed},
        {"content": said, "_meta": printed},
    ):
        box.put(update(**parts))
    assert [one.params for one in await heard(box)] == [
        update(content=said).params,
        update(_meta={"data": "bb"}).params,
        *[update(content=said, _meta=printed).params] * 2,
    ]


async def test_pieces_deep_in_a_message_are_joined_as_long_as_all_else_is_equal():
    def piece(kind, text):
        return Notification("update", {"update": {"kind": kind, "content": {"text": text}}}, 9)

    box = Mailbox(STREAMS)
    for kind, text in (
        ("said", "a"),
        ("said", "b"),
        ("thought", "c"),
        ("said", "d"),
        ("said", "e"),
    ):
        box.put(piece(kind, text))
    odd = Notification("update", {"update": "ended"}, 9)
    box.put(odd)
    texts = [("said", "ab"), ("thought", "c"), ("said", "de")]
    assert [one.params for one in await heard(box)] == [
        *(piece(*pair).params for pair in texts),
        odd.params,
    ]


async def test_a_run_too_far_behind_gets_the_ends_of_turns_and_all_answers(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_WAITING_BYTES", 10_000)
    box = Mailbox(never_dropped={"ended"})
    asked = AgentRequest(1, "may_i", {}, 9)
    box.put(asked)
    box.put(Answer(1, "early"))
    unheard = []
    for number in range(20):
        unheard += box.put(Notification("more", {"n": number}, 900))
    unheard += box.put(asked)
    box.put(Notification("ended", {}, 9))
    box.put(Answer(2, "late"))
    dropped, *rest = await heard(box)
    assert isinstance(dropped, MessagesDropped)
    assert dropped.size > 10_000
    assert rest == [Answer(1, "early"), Notification("ended", {}, 9), Answer(2, "late")]
    assert unheard == [asked, asked]


async def test_a_question_for_a_run_that_has_ended_is_not_kept():
    box = Mailbox()
    box.end()
    asked = AgentRequest(1, "may_i", {})
    assert box.put(asked) == [asked]
