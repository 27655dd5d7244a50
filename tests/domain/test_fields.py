"""The checks of a command's fields."""

import functools
from typing import Any

import attrs
import pytest

from agent_orchestrator.fields import FieldSpec, problems, specs
from agent_orchestrator.operations import OPERATIONS, table
from agent_orchestrator.operations import daemon as daemon_calls
from agent_orchestrator.operations import runs as run_calls
from agent_orchestrator.operations import sessions as session_calls


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_valid_command_has_no_problems(operation: table.Operation) -> None:
    values = {
        name: spec.choices[0]
        if spec.choices
        else "/x"
        if name == "path"
        else []
        if list in spec.kinds
        else 60
        if int in spec.kinds or float in spec.kinds
        else "x"
        for name, spec in specs(operation.request).items()
        if spec.required
    }
    assert problems(operation.request, values) == {}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_problems_name_every_field_of_a_wrong_type(operation: table.Operation) -> None:
    fields = specs(operation.request)
    assert set(problems(operation.request, dict.fromkeys(fields, object()))) == set(fields)
    assert problems(operation.request, {"surprise": 1} | dict.fromkeys(fields, b"")).keys() == {
        "surprise",
        *fields,
    }


def test_number_is_not_a_boolean_and_the_reverse() -> None:
    assert "cascade" in problems(run_calls.CancelRun, {"run_id": "r", "cascade": 1})
    assert "limit" in problems(run_calls.ListRuns, {"limit": True})
    assert "timeout_s" in problems(run_calls.WaitRun, {"run_id": "r", "timeout_s": float("nan")})
    assert problems(run_calls.WaitRun, {"run_id": "r", "timeout_s": 3}) == {}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"half": "\udc00"}, "metadata.half"),
        ({"a": [0, {"b": ["\ud800"]}]}, "metadata.a[1].b[0]"),
        ({"\udc00": 1}, "metadata.\\udc00"),
        ({"a": {"x\udc00": 1}}, "metadata.a.x\\udc00"),
        ({"deep": functools.reduce(lambda inner, _: [inner], range(80), 0)}, "metadata"),
        ({"big": "x" * 70_000}, "metadata"),
        ({"digits": [10**18] * 4000}, "metadata"),
        ({"set": {1, 2}}, "metadata.set"),
        ({"nan": float("nan")}, "metadata.nan"),
        ({"long": 10**5000}, "metadata.long"),
        ({1: "number as key"}, "metadata"),
    ],
)
def test_metadata_must_be_representable_in_json(value: dict, named: str) -> None:
    assert list(problems(session_calls.CreateSession, {"metadata": value})) == [named]


def with_a_surrogate(spec: FieldSpec) -> tuple[Any, str]:
    """Return a value for a field with a lone surrogate in it, and its place in the field."""
    half = "/\ud800"
    if dict in spec.kinds:
        return {"k": [half]}, ".k[0]"
    if list not in spec.kinds:
        return half, ""
    item: Any = spec.item
    if item is None or not attrs.has(item):
        return ("a", half), "[1]"
    values = {one.name: "a" for one in attrs.fields(item)}
    name = next(name for name, inner in specs(item).items() if str in inner.kinds)
    return (item(**values | {name: half}),), f"[0].{name}"


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (operation, name)
        for operation in OPERATIONS
        for name, spec in specs(operation.request).items()
        if {str, list, dict} & set(spec.kinds)
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_lone_surrogate_is_refused_in_any_field(
    operation: table.Operation[Any, Any], name: str
) -> None:
    value, place = with_a_surrogate(specs(operation.request)[name])
    assert name + place in problems(operation.request, {name: value})


def test_error_for_many_or_long_fields_is_short() -> None:
    found = problems(
        daemon_calls.GetStatus, {"x" * 1_000_000: 1, **{f"k{n}\ud800": 1 for n in range(500)}}
    )
    assert len(str(found).encode()) < 5000
    assert any("480 others" in problem for problem in found.values())


def test_every_field_is_documented() -> None:
    for operation in OPERATIONS:
        for spec in specs(operation.request).values():
            assert spec.limits.doc, (operation.name, spec.name)


def test_operation_names_and_routes_are_unique() -> None:
    assert len({one.name for one in OPERATIONS}) == len(OPERATIONS)
    assert len({(one.method, one.path) for one in OPERATIONS}) == len(OPERATIONS)
    for one in OPERATIONS:
        fields = {attribute.name for attribute in attrs.fields(one.request)}
        assert set(one.path_fields) <= fields
