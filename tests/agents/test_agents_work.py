"""What the real agents do beside talking, and what goes wrong."""

from behaviours import behaviour
from cases import Case, answer, ended, happened, log, said, send, turn, until

from agent_orchestrator import Client, RunStatus, Session


@behaviour("files", "diffs", "usage", "directory")
async def test_file_changes_are_logged_and_a_missing_directory_is_named(case: Case) -> None:
    """A file is added and changed there, and then the directory is gone."""
    there = case.workspace / "there"
    there.mkdir()
    file = there / "file.txt"
    async with case.client() as client:
        session = await case.session(client, cwd=str(there), **case.agent.unasked)
        script = f"usage 30 0 7\nadd {file} one\nupdate {file} one -> two\nsay done"
        run = await turn(client, session, script)
        events = await log(client, session)
        assert file.read_text().strip() == "two"
        file.unlink()
        there.rmdir()
        lost = await turn(client, session, "say unheard")
        diagnosis = await client.diagnose_run(lost.id)
        there.mkdir()
        assert await said(client, session, "say found") == "found"
    assert answer(run) == "done"
    changed = [event.data for event in events if event.event_type == "file.changed"]
    assert [one["status"] for one in changed] == ["completed"] * 2
    first, second = (change for one in changed for change in one["changes"])
    assert (first["path"], first["kind"]) == (str(file), "add")
    assert (second["path"], second["kind"]) == (str(file), "update")
    if case.agent.can("diffs"):
        assert first["diff"].strip() == "one"
        assert "-one\n" in second["diff"]
        assert "+two" in second["diff"]
    else:
        assert set(first) == set(second) == {"path", "kind"}
    assert run.usage is not None
    calls = 3 if case.agent.can("usage") else 1
    assert (run.usage.input_tokens, run.usage.output_tokens) == (30 * calls, 7 * calls)
    assert lost.error is not None
    assert lost.error.code == "invalid_config"
    assert diagnosis.diagnostics.likely_issue is not None
    assert diagnosis.diagnostics.likely_issue.code == "cwd_missing"


@behaviour("errors", "retries", "context")
async def test_errors_of_the_model_server_have_codes_and_the_session_goes_on(case: Case) -> None:
    agent, found = case.agent, {}
    expected = {**agent.errors, agent.too_long: "context_exceeded"}
    expected |= agent.retried if agent.can("retries") else {}
    if not agent.can("context"):
        del expected[agent.too_long]
    async with case.client() as client:
        session = await case.session(client)
        for text in expected:
            run = await turn(client, session, text)
            found[text] = run.error and run.error.code
            assert run.error is None or is_readable(run.error.message), run.error
        assert await said(client, session, "say still here") == "still here"
        if not agent.can("context"):
            run = await turn(client, session, agent.too_long)
            assert run.status is RunStatus.COMPLETED
        if agent.can("retries"):
            await a_server_that_cannot_be_reached(case, client)
        else:
            await a_repetition(case, client, session)
        assert await said(client, session, "say and here") == "and here"
    assert found == expected


def is_readable(message: str) -> bool:
    """Return whether a message has words, and not the JSON of a model server."""
    return bool(message.strip()) and "{" not in message


async def a_repetition(case: Case, client: Client, session: Session) -> None:
    """A request that is repeated for longer than anyone waits here is at least logged."""
    (text,) = case.agent.retried
    after = (await client.get_session(session.id)).last_seq
    run_id = await send(client, session, text)
    await happened(client, session, "run.error", after)
    await until(lambda: case.prompts.count(text) == 2)
    await client.cancel_run(run_id)
    assert (await ended(client, run_id)).status is RunStatus.CANCELED


async def a_server_that_cannot_be_reached(case: Case, client: Client) -> None:
    session = await case.session(client, provider=case.agent.unreachable)
    run = await turn(client, session, "say unheard")
    assert run.error is not None
    assert run.error.code == "provider_unreachable"
    assert is_readable(run.error.message)
    events = [one for one in await log(client, session) if one.event_type == "run.error"]
    assert "1" in events[0].data["message"], "the first new try is not logged"
