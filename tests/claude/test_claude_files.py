"""What the questions and events of the real Claude Code's file tools show."""

import json

import pytest
from claude_runs import of, run
from deciding import Deciding
from loops import ON_ONE_LOOP

pytestmark = [pytest.mark.anyio, pytest.mark.claude, ON_ONE_LOOP]

NOTEBOOK = {
    "cells": [
        {"cell_type": "code", "id": "c1", "metadata": {}, "source": ["1\n", "2"], "outputs": [],
         "execution_count": None}
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}  # fmt: skip


@pytest.fixture
def paths(workspace, tmp_path):
    """The files that the steps change."""
    (workspace / "old.txt").write_text("one\ntwo\nthree\n")
    (workspace / "book.ipynb").write_text(json.dumps(NOTEBOOK))
    (tmp_path / "outside.txt").write_text("not yours\n")
    return {
        "old": f"{workspace}/old.txt",
        "new": f"{workspace}/new.txt",
        "book": f"{workspace}/book.ipynb",
        "outside": f"{tmp_path}/outside.txt",
    }


NOTEBOOK_EDIT = 'tool NotebookEdit {{"notebook_path": "{book}", "cell_id": "c1", "new_source": "3"'

CASES = {
    "a new file": ("add {new} a", "new", "add", "a"),
    "a change": (
        "update {old} two -> TWO",
        "old",
        "update",
        "@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n",
    ),
    "a file over another": (
        "add {old} four",
        "old",
        "update",
        "@@ -1,3 +1,1 @@\n-one\n-two\n-three\n+four\n",
    ),
    "a new file by a change": (
        'tool Edit {{"file_path": "{new}", "old_string": "", "new_string": "a\\nb\\n"}}',
        "new",
        "add",
        "a\nb\n",
    ),
    "a cell": (NOTEBOOK_EDIT + "}}", "book", "update", "@@ -1,2 +1,1 @@\n-1\n-2\n+3\n"),
    "a new cell": (
        NOTEBOOK_EDIT + ', "cell_type": "code", "edit_mode": "insert"}}',
        "book",
        "update",
        "@@ -0,0 +1,1 @@\n+3\n",
    ),
}


def of_change(context):
    """Return the change as the last question and the last event show it."""
    [asked] = context.questions[-1]["detail"]["changes"]
    [made] = of(context, "file.changed")[-1]["changes"]
    return asked, made


@pytest.mark.parametrize("decision", ["approve", "deny"])
@pytest.mark.parametrize(("script", "name", "kind", "diff"), CASES.values(), ids=CASES)
async def test_a_change_has_its_kind_and_a_diff(
    make_runner, record, paths, script, name, kind, diff, decision
):
    steps = f"read {paths[name]}\n{script.format(**paths)}"
    async with make_runner(sandbox="read-only") as runner:
        context = record(steps, kind=Deciding)
        context.decide = {"decision": decision}
        await run(runner, context)
    asked, made = of_change(context)
    assert asked == {"path": paths[name], "kind": kind, "diff": diff}
    status = of(context, "file.changed")[-1]["status"]
    if decision == "deny":
        assert (status, made) == ("declined", asked)
        return
    assert status == "completed"
    # Claude Code says where a text has no newline at its end.
    shown = made["diff"].replace("\\ No newline at end of file\n", "")
    assert {**made, "diff": shown} == asked


async def test_an_unchanged_file_has_an_empty_diff(make_runner, record, paths):
    async with make_runner() as runner:
        context = record("read {old}\nadd {old} four\nadd {old} four".format(**paths))
        await run(runner, context)
    [first], [second] = (one["changes"] for one in of(context, "file.changed"))
    assert first["diff"].endswith("+four\n\\ No newline at end of file\n")
    assert second == {"path": paths["old"], "kind": "update", "diff": ""}


async def test_a_file_outside_of_the_directory_is_not_shown(make_runner, record, paths):
    steps = f"read {paths['outside']}\nadd {paths['outside']} mine"
    async with make_runner(sandbox="workspace-write") as runner:
        context = record(steps, kind=Deciding)
        context.decide = {"decision": "approve"}
        await run(runner, context)
    read, written = context.questions
    assert read["detail"]["type"] == "tool"
    [change] = written["detail"]["changes"]
    diff = "@@ -0,0 +1,1 @@\n+mine\n"
    assert change == {"path": paths["outside"], "kind": "update", "diff": diff}
