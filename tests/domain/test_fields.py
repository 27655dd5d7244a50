"""The checks of a command's fields."""

import functools

import attrs
import pytest

from agent_orchestrator import operations as ops
from agent_orchestrator.fields import problems, specs


@pytest.mark.parametrize("operation", ops.OPERATIONS, ids=lambda operation: operation.name)
def test_a_command_with_nothing_wrong_has_no_problems(operation: ops.Operation) -> None:
    values = {
        name: spec.choices[0]
        if spec.choices
        else "/x"
        if name == "path"
        else []
        if name == "grants"
        else "x"
        for name, spec in specs(operation.request).items()
        if spec.required
    }
    assert problems(operation.request, values) == {}


@pytest.mark.parametrize("operation", ops.OPERATIONS, ids=lambda operation: operation.name)
def test_every_wrong_type_is_named(operation: ops.Operation) -> None:
    fields = specs(operation.request)
    assert set(problems(operation.request, dict.fromkeys(fields, object()))) == set(fields)
    assert problems(operation.request, {"surprise": 1} | dict.fromkeys(fields, b"")).keys() == {
        "surprise",
        *fields,
    }


def test_a_number_is_not_a_truth_value_and_the_reverse() -> None:
    assert "cascade" in problems(ops.CancelRun, {"run_id": "r", "cascade": 1})
    assert "limit" in problems(ops.ListRuns, {"limit": True})
    assert "timeout_s" in problems(ops.WaitRun, {"run_id": "r", "timeout_s": float("nan")})
    assert problems(ops.WaitRun, {"run_id": "r", "timeout_s": 3}) == {}


@pytest.mark.parametrize(
    "value",
    [
        {"half": "\udc00"},
        {"\udc00": 1},
        {"deep": functools.reduce(lambda inner, _: [inner], range(80), 0)},
        {"big": "x" * 70_000},
        {"set": {1, 2}},
        {"nan": float("nan")},
        {1: "number as key"},
    ],
)
def test_metadata_is_what_json_can_say(value: dict) -> None:
    assert set(problems(ops.CreateSession, {"metadata": value})) == {"metadata"}


def test_every_field_is_documented() -> None:
    for operation in ops.OPERATIONS:
        for spec in specs(operation.request).values():
            assert spec.limits.doc, (operation.name, spec.name)


def test_operation_names_and_routes_are_unique() -> None:
    assert len({one.name for one in ops.OPERATIONS}) == len(ops.OPERATIONS)
    assert len({(one.method, one.path) for one in ops.OPERATIONS}) == len(ops.OPERATIONS)
    for one in ops.OPERATIONS:
        fields = {attribute.name for attribute in attrs.fields(one.request)}
        assert set(one.path_fields) <= fields
