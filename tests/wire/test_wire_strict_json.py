"""JSON that two readers could read differently is refused."""

import json
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.fields import MAX_DIGITS, check
from agent_orchestrator.operations.sessions import CreateSession
from agent_orchestrator.wire import long_json, strict_json
from agent_orchestrator.wire.encoded import Encoded

text = st.text(st.characters(codec="utf-8"))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)


@given(plain)
def test_json_is_decoded_as_it_was_encoded(value: Any) -> None:
    assert strict_json.loads(strict_json.dumps(value).encode()) == value


@given(plain)
def test_standard_json_module_reads_and_writes_the_same(value: Any) -> None:
    assert json.loads(strict_json.dumps(value)) == value
    assert strict_json.loads(json.dumps(value, indent=1).encode()) == value


@given(plain, st.sampled_from([6, 7, 64]))
def test_encoded_object_is_decoded_in_slices_as_it_was_encoded(value: Any, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "SLICE_SIZE", size)
        assert Encoded(strict_json.dumps({"k": value}).encode()).value == {"k": value}


@given(plain, st.sampled_from([6, 7, 64]))
def test_a_long_line_is_read_in_slices_as_it_was_encoded(value: Any, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "SLICE_SIZE", size)
        patch.setattr(strict_json, "SLICE_SIZE", 0)
        data = json.dumps({"k": value}).encode()  # with escapes
        assert strict_json.loads_in_slices(data, field="it", max_values=10**6) == {"k": value}


@given(st.binary(max_size=100))
def test_what_is_read_in_slices_would_be_read_at_once(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "SLICE_SIZE", 6)
        patch.setattr(strict_json, "SLICE_SIZE", 0)
        with suppress(InvalidRequest):
            value = strict_json.loads_in_slices(data, field="it", max_values=100)
            assert value == strict_json.loads(data, field="it", max_values=100)


@pytest.mark.parametrize("length", [1, 100_000])
@pytest.mark.parametrize(
    ("end", "problem"),
    [
        (b'"}x', "not JSON"),
        (b'\t"}', "not JSON"),
        (b"", "not JSON"),
        (b'", "a": 1}', "'a' twice"),
        (b'", "b": NaN}', "NaN"),
        (b'", "b": [0, 0, 0, 0]}', "more than 5 values"),
        (b'", "b": ' + b"[" * 501 + b"]" * 501 + b"}", "nested too deeply"),
    ],
)
def test_a_long_line_is_refused_as_a_short_one(length: int, end: bytes, problem: str) -> None:
    data = b'{"a": "' + b"x" * length + end
    most = 5 if "values" in problem else 2000
    with pytest.raises(InvalidRequest) as raised:
        strict_json.loads_in_slices(data, field="line", max_values=most)
    assert problem in raised.value.details["fields"]["line"]


@pytest.mark.parametrize("part", [b'"",', b'"" '])
def test_a_long_line_of_many_short_strings_takes_little_memory(part: bytes) -> None:
    data = b"[" + part * 300_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="more than 1,000 values"):
            strict_json.loads_in_slices(data, field="line", max_values=1_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("text", [b"\xff", rb"\ud800", b"\xed\xa0\x80"])
def test_a_long_text_that_is_not_unicode_is_refused(text: bytes) -> None:
    data = b'{"a": "' + text + b"x" * 100_000 + b'"}'
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        strict_json.loads_in_slices(data, field="line", max_values=10)


def test_long_text_is_not_decoded_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def scanstring(text: str, end: int) -> tuple[str, int]:
        lengths.append(len(text))
        return scan(text, end)

    def loads(text: Any, **options: Any) -> Any:
        lengths.append(len(text))
        return load(text, **options)

    scan, load = long_json.scanstring, json.loads
    monkeypatch.setattr(long_json, "scanstring", scanstring)
    monkeypatch.setattr(json, "loads", loads)
    said = {"text": "a\n" * 500_000}
    held = Encoded(strict_json.dumps(said).encode())
    assert held.value == said
    assert max(lengths) < 2 * long_json.SLICE_SIZE


@given(st.binary(max_size=100))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    with suppress(InvalidRequest):
        strict_json.loads(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b"{}x", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": 1, "a": 1}', "'a' twice"),
        (b'[{"x": {"b": 1, "b": 2}}]', "'b' twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 501 + b"]" * 501, "nested too deeply"),
        (b'{"a":' * 250 + b"[0," * 251 + b"0" + b"]" * 251 + b"}" * 250, "nested too deeply"),
        (b"1" * 5000, "more than 100 digits"),
    ],
)
def test_ambiguous_or_oversized_json_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        strict_json.loads(data, field="frame")
    assert problem in raised.value.details["fields"]["frame"]


@pytest.mark.parametrize(
    ("data", "is_refused"),
    [
        (b"[" + b"0," * 99 + b"0]", False),
        (b"[" + b"0," * 100 + b"0]", True),
        (b"[" + b"[]," * 50 + b"0]", True),
        (b"[" + b"{}," * 50 + b"0]", True),
        (b"{" + b",".join(b'"%d":0' % n for n in range(50)) + b"}", False),
        (b"{" + b",".join(b'"%d":0' % n for n in range(51)) + b"}", True),
        (b'["' + b"[,{:" * 1000 + b'"]', False),
        (rb'["\"[,{:' + rb"\"\\,\"" * 1000 + b'"]', False),
        (rb'["\\",' + b"0," * 100 + b"0]", True),
        (b'["a' + b'","a' * 100 + b'"]', True),
        (b'["' + b'",,,"' * 300, True),
    ],
)
def test_values_are_counted_before_decoding(data: bytes, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(InvalidRequest, match="more than 100 values"):
            strict_json.loads(data, max_values=100)
    else:
        assert strict_json.loads(data, max_values=100) == json.loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 250 + b"[0," * 250 + b"0" + b"]" * 250 + b"}" * 250,
        b'"' + b"[" * 1000 + b'"',
        b"[" + b"[{}]," * 1000 + b"0]",
    ],
)
def test_nesting_limit_is_the_same_on_every_python(data: bytes) -> None:
    assert strict_json.loads(data) == json.loads(data)


@pytest.mark.parametrize("last", [0, -1])
def test_duplicate_key_is_found_in_linear_time(last: int) -> None:
    names = [str(number) for number in range(200_000)]
    pairs = ",".join(f'"{name}":0' for name in [*names, names[last]])
    began = time.process_time()
    with pytest.raises(InvalidRequest, match=f"'{names[last]}' twice"):
        strict_json.loads(f"{{{pairs}}}".encode())
    assert time.process_time() - began < 10  # quadratic time would be a quarter of an hour


def test_values_that_json_cannot_represent_are_not_encoded() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            strict_json.dumps([value])
    with pytest.raises(TypeError):
        strict_json.dumps({1, 2})


def test_text_is_not_escaped() -> None:
    assert strict_json.dumps({"ü": "\u2028😀"}) == '{"ü":"\u2028😀"}'


@pytest.mark.parametrize("sign", ["", "-"])
def test_number_of_digits_is_limited(sign: str) -> None:
    most = int(sign + "9" * MAX_DIGITS)
    assert strict_json.loads(f"[{most}]".encode()) == [most]
    strict_json.check_readable([most])
    check(CreateSession, CreateSession(metadata={"n": most}))
    beyond = int(f"{sign}1" + "0" * MAX_DIGITS)
    with pytest.raises(InvalidRequest, match="digits"):
        strict_json.loads(f"[{beyond}]".encode())
    with pytest.raises(ValueError, match="digits"):
        strict_json.check_readable([beyond])
    with pytest.raises(InvalidRequest, match="digits"):
        check(CreateSession, CreateSession(metadata={"n": beyond}))


@pytest.mark.parametrize("inner", [{}, [], {"k": 1}, (1,)])
def test_nesting_limit_of_stored_values_leaves_room_for_the_page(inner: Any) -> None:
    value = inner
    for _ in range(strict_json.MAX_STORED_NESTING - 1):
        value = [value]
    strict_json.check_readable(value)
    page = {"events": [{"data": value}]}
    strict_json.loads(strict_json.dumps({"more": page}).encode())
    with pytest.raises(ValueError, match="nested"):
        strict_json.check_readable({"k": value})


@pytest.mark.parametrize(
    "value", [[], {"a": 1}, ["x" * 70_000, {"b": "é" * 70_000}], list(range(9_999))]
)
def test_pieces_join_to_the_same_json(value: Any) -> None:
    held = Encoded(strict_json.dumps({"text": "中" * 70_000}).encode())
    pieces = strict_json.encode_in_pieces([value, held, value])
    assert b"".join(pieces) == strict_json.dumps([value, held, value]).encode()
    assert any(piece is held.text for piece in pieces)
