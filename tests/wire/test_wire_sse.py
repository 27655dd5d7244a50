"""Server-sent events are decoded wherever the stream is split."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestrator.wire import sse

line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
frames = st.lists(
    st.builds(
        sse.Frame,
        data=st.lists(line, min_size=1, max_size=3).map("\n".join),
        event=line,
        id=line,
    ),
    max_size=4,
)


def decoded(chunks: list[bytes]) -> list[sse.Frame]:
    decoder = sse.Decoder()
    return [frame for chunk in chunks for frame in decoder.feed(chunk) if frame.data or frame.event]


def shown(sent: list[sse.Frame]) -> list[sse.Frame]:
    return [frame for frame in sent if frame.data or frame.event]


@given(frames)
def test_frames_are_decoded_at_every_single_split(sent: list[sse.Frame]) -> None:
    data = b"".join(map(sse.encode, sent))
    for cut in range(len(data) + 1):
        assert decoded([data[:cut], data[cut:]]) == shown(sent)


@given(frames, st.lists(st.integers(0, 400), max_size=8))
def test_frames_are_decoded_at_any_splits(sent: list[sse.Frame], cuts: list[int]) -> None:
    data = b"".join(map(sse.encode, sent))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert decoded([data[a:b] for a, b in pairwise(places)]) == shown(sent)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_without_an_error(data: bytes) -> None:
    whole = decoded([data])
    assert decoded([data[n : n + 1] for n in range(len(data))]) == whole


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_comments_and_unknown_fields(end: bytes) -> None:
    lines = [b": hello", b"retry: 5", b"id: 7", b"event:x", b"data", b"data:  two", b"odd", b""]
    (frame,) = decoded([end.join(lines) + end])
    assert frame == sse.Frame("\n two", "x", "7")


def test_event_id_stays_until_the_next_one() -> None:
    data = b"id: 1\ndata: a\n\ndata: b\n\nid: 2\0\ndata: c\n\nid: 3\ndata: d\n\n"
    assert [frame.id for frame in decoded([data])] == ["1", "1", "1", "3"]


def test_unterminated_frame_is_not_emitted() -> None:
    assert decoded([b"data: half"]) == []
    assert decoded([b"data: half\n"]) == []
    assert decoded([sse.KEEPALIVE, sse.KEEPALIVE]) == []


@pytest.mark.parametrize(
    "piece", [b"data: " + b"x" * 60_000, b"data: x\n" * 10_000, b"data\n" * 10_000, b"x" * 60_000]
)
def test_frame_that_is_too_long_is_refused(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_FRAME", 2 * 2**20)
    decoder = sse.Decoder()

    def feed() -> None:
        for _ in range(40):
            assert not [*decoder.feed(piece)]

    with pytest.raises(sse.FrameTooLong):
        feed()


def test_any_number_of_frames_and_comments_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_FRAME", 2**20)
    decoder = sse.Decoder()
    frames = [
        frame for _ in range(2_000) for frame in decoder.feed(b": still here\n\ndata: x\n\n" * 10)
    ]
    assert sum(frame.data == "x" for frame in frames) == 20_000
