"""The check of how an agent starts, with an agent that does what it is told."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from agent_orchestrator.runners.acp import agents, check
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.recording import STARTS, outline, read_start, write_start

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).parent / "scripted_agent.py"

ROW = AcpAgent(argv=(), version="", ask_mode="default", images=False)


@pytest.fixture
def known(monkeypatch, tmp_path):
    """Make an agent known, and return its arguments."""
    monkeypatch.setattr(check, "STARTS", tmp_path / "starts")
    (tmp_path / "starts").mkdir()

    def make(settings=None, **row):
        argv = (sys.executable, "-S", str(AGENT), json.dumps(settings or {}), "acp")
        monkeypatch.setitem(agents.AGENTS, "scripted", evolve(ROW, argv=argv, **row))
        return argv

    return make


def differing(report):
    return [one.message for one in report.findings if one.fits is False]


async def test_an_agent_that_matches_the_table_and_its_recording_passes(known, tmp_path):
    known()
    first = await check.check_agent("scripted")
    write_start(tmp_path / "starts" / "scripted.jsonl", first.lines)
    second = await check.check_agent("scripted")
    for report in (first, second):
        assert (report.fits, report.version) == (True, "7.0"), differing(report)
    told = [one.message for one in second.findings]
    assert "it starts in the mode 'auto', and was set to 'default', which asks" in told
    assert "it starts as in the recording of version 7.0" in told
    assert any("ended on SIGTERM" in one for one in told)


@pytest.mark.parametrize(
    ("settings", "row", "words"),
    [
        ({"version": 2}, {}, "version 2"),
        ({"modes": ["auto"]}, {}, "does not have the mode 'default'"),
        ({"sticky": True}, {}, "stayed in the mode 'auto'"),
        ({"refuses": {"initialize": -32600}}, {}, "refuses"),
        ({"refuses": {"session/new": -32603}}, {}, "refuses"),
        ({"resumes": False}, {}, "does not say that it can continue a conversation"),
        ({"mcp": False}, {}, "does not say that it can take tools"),
        ({}, {"steers": True}, "does not say that it can take messages during a turn"),
        ({}, {"images": True}, "does not say that it can take images"),
        ({}, {"ask_mode": None}, "names no mode that asks; its modes: auto, default"),
        ({"deaf": True}, {"stop_s": 0.2}, "did not end on SIGTERM within 0.2 s"),
    ],
)
async def test_differences_from_the_table_are_reported(known, settings, row, words):
    known(settings, **row)
    report = await check.check_agent("scripted")
    assert not report.fits
    assert any(words in one for one in differing(report)), report.findings


async def test_an_agent_without_a_login_is_reported_and_the_rest_is_checked(known):
    known({"refuses": {"session/new": -32000}}, login="scripted login")
    report = await check.check_agent("scripted")
    assert report.fits
    told = [one.message for one in report.findings]
    assert "it is not logged in, so its modes are not known; run scripted login" in told


async def test_differences_from_the_recording_are_reported(known, tmp_path):
    known({"modes": ["default", "auto", "old"], "resumes": False, "loads": True})
    before = await check.check_agent("scripted")
    write_start(tmp_path / "starts" / "scripted.jsonl", before.lines)
    known({"modes": ["default", "auto", "new"]})
    assert differing(await check.check_agent("scripted")) == [
        "it differs from the recording of version 7.0:",
        "its capabilities: new: sessionCapabilities.resume; gone: loadSession, sessionCapabilities",
        "the modes: new: new; gone: old",
    ]


async def test_a_program_that_is_missing_or_silent_fails_the_check(known):
    known()
    report = await check.check_agent("scripted", ["/nonexistent"])
    assert differing(report) == ["there is no file /nonexistent"]
    report = await check.check_agent("unknown", ["true"])
    assert any("exited with 0" in one for one in differing(report))
    with pytest.raises(LookupError):
        await check.check_agent("unknown")


async def test_a_recording_contains_no_secrets_and_no_local_paths(known, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_API_KEY", "very-secret-1")
    monkeypatch.setenv("HOME", str(tmp_path))
    said = {"authToken": "abcdefgh", "words": f"it is very-secret-1 in {tmp_path}/x", "n": [1] * 99}
    known({"says": said, "says_more": "x" * 1_000})
    report = await check.check_agent("scripted")
    text = json.dumps(report.lines)
    assert "very-secret-1" not in text
    assert "abcdefgh" not in text
    assert str(tmp_path) not in text
    assert "it is <removed> in <home>/x" in text
    assert len(text) < 20_000
    (new,) = [one for one in report.lines if one["msg"].get("method") == "session/new"]
    assert new["msg"]["params"]["cwd"] == "<cwd>"


async def test_a_user_without_a_home_can_check_an_agent(known, monkeypatch):
    def no_entry(_):
        raise KeyError

    known()
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    report = await check.check_agent("scripted")
    assert report.fits, differing(report)


async def test_a_recording_keeps_its_other_cases(tmp_path):
    file = tmp_path / "of.jsonl"
    line = {"case": "start", "dir": ">", "msg": {"id": 1, "method": "initialize"}}
    other = {**line, "case": "ask"}
    write_start(file, [line])
    file.write_text(file.read_text() + json.dumps(other) + "\n")
    write_start(file, [line, line])
    assert [json.loads(one) for one in file.read_text().splitlines()] == [line, line, other]
    assert read_start(file) == [line, line]
    for text in ("# notes\n", "[1]\n", "\xff"):
        file.write_text(text, "latin-1")
        with pytest.raises(ValueError, match=r"."):
            write_start(file, [line])
        assert file.read_text("latin-1") == text


@pytest.mark.parametrize("name", agents.AGENTS)
def test_each_agent_of_the_table_matches_its_recording(name):
    row, seen = agents.AGENTS[name], outline(read_start(STARTS / f"{name}.jsonl"))
    assert seen.protocol == 1
    assert not [one.message for one in check._of_row(row, seen) if one.fits is False and seen.modes]


def agentctl(*arguments, **env):
    return subprocess.run(
        [Path(sys.executable).with_name("agentctl"), "provider", "check", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


def test_the_command_prints_the_results_and_writes_the_recording(tmp_path):
    file = tmp_path / "recording.jsonl"
    argv = ["--", sys.executable, "-S", str(AGENT), "acp"]
    done = agentctl("mine", "--record", str(file), *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fits     it speaks version 1 of ACP" in done.stdout
    assert "note     it has no row in the table" in done.stdout
    assert outline(read_start(file)).modes == {"auto", "default"}
    found = json.loads(agentctl("--format", "json", "mine", *argv).stdout)
    assert (found["name"], found["version"], found["fits"]) == ("mine", "7.0", True)
    refused = agentctl("mine", "--", sys.executable, "-S", str(AGENT), '{"version": 2}', "acp")
    assert refused.returncode == 1
    assert "differs  it does not speak version 1 of ACP" in refused.stdout


@pytest.mark.parametrize(
    ("name", "words"), [("codex", "does not speak ACP"), ("nobody", "no agent 'nobody' is known")]
)
def test_the_command_refuses_what_it_cannot_check(name, words):
    done = agentctl(name)
    assert done.returncode == 2
    assert words in done.stderr
