"""What the real agents do beside talking, and what goes wrong."""

from pathlib import Path
from typing import Any

import anyio
from behaviours import behaviour, instead
from cases import Case, answer, log, said, turn


async def changes(case: Case, file: Path) -> list[dict[str, Any]]:
    """Have the agent add and update a file. Return what the log has of it."""
    async with case.client() as client:
        session = await case.session(client, sandbox="danger-full-access")
        run = await turn(client, session, f"add {file} one\nupdate {file} one -> two\nsay done")
        events = await log(client, session)
    assert answer(run) == "done"
    changed = [event.data for event in events if event.event_type == "file.changed"]
    assert [one["status"] for one in changed] == ["completed"] * 2
    assert (await anyio.Path(file).read_text()).strip() == "two"
    return [change for one in changed for change in one["changes"]]


@behaviour("files")
async def test_changes_of_files(case: Case) -> None:
    file = case.workspace / "file.txt"
    found = [(one["path"], one["kind"]) for one in await changes(case, file)]
    assert found == [(str(file), "add"), (str(file), "update")]


@behaviour("diffs")
async def test_changes_have_diffs(case: Case) -> None:
    first, second = await changes(case, case.workspace / "file.txt")
    assert first["diff"].strip() == "one"
    assert "-one\n" in second["diff"]
    assert "+two" in second["diff"]


@instead("diffs")
async def test_changes_without_diffs(case: Case) -> None:
    found = await changes(case, case.workspace / "file.txt")
    assert [set(one) for one in found] == [{"path", "kind"}] * 2


CODES = {
    "http 401": "auth_failed",
    "http 429": "rate_limited",
    "http 400": "provider_error",
    "http 500": "provider_error",
    "say so far\ndisconnect": "provider_unreachable",
}


@behaviour("errors")
async def test_errors_of_the_model_server(case: Case) -> None:
    found = {}
    async with case.client() as client:
        session = await case.session(client)
        for text in CODES:
            run = await turn(client, session, text)
            found[text] = run.error and run.error.code
            assert run.error is None or run.error.message
        assert await said(client, session, "say still here") == "still here"
    assert found == CODES


@behaviour("directory")
async def test_a_directory_that_is_gone(case: Case) -> None:
    there = case.workspace / "there"
    await anyio.Path(there).mkdir()
    async with case.client() as client:
        session = await case.session(client, cwd=str(there))
        await anyio.Path(there).rmdir()
        run = await turn(client, session, "say hello")
        diagnosis = await client.diagnose_run(run.id)
    assert run.error is not None
    assert run.error.code == "invalid_config"
    assert diagnosis.diagnostics.likely_issue is not None
    assert diagnosis.diagnostics.likely_issue.code == "cwd_missing"
