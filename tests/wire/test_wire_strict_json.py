"""JSON that two readers could take for two things is refused."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.wire import strict_json

text = st.text(st.characters(codec="utf-8"))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)


@given(plain)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert strict_json.loads(strict_json.dumps(value).encode()) == value


@given(plain)
def test_it_is_ordinary_json(value: Any) -> None:
    assert json.loads(strict_json.dumps(value)) == value
    assert strict_json.loads(json.dumps(value, indent=1).encode()) == value


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
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
        (b"1" * 5000, "not JSON"),
    ],
)
def test_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        strict_json.loads(data, field="frame")
    assert problem in raised.value.details["fields"]["frame"]


def test_what_json_cannot_say_is_not_written() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            strict_json.dumps([value])
    with pytest.raises(TypeError):
        strict_json.dumps({1, 2})


def test_text_stays_itself() -> None:
    assert strict_json.dumps({"ü": "\u2028😀"}) == '{"ü":"\u2028😀"}'
