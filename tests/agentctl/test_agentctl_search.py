"""agentctl search."""

import json
import re

import pytest
from driving import Ctl
from test_agentctl_daemon import shown_on_terminal

from agentctl.document import Text, cell


@pytest.fixture
def session(ctl: Ctl) -> str:
    return ctl.field("session.id", "session", "create")


def test_hits_are_shown_for_people_and_programs(ctl: Ctl, session: str) -> None:
    word = "w" + session[-10:]  # other tests share the daemon
    title = f"About {word}\x1b[31m"
    assert ctl("session", "rename", session, title).code == 0
    text = f"{'fill ' * 40}the {word} itself and 検索する {word}"
    run = ctl.field("run.id", "run", "create", session, "--provider", "manual", "--text", text)
    found = ctl("search", word, "--format", "json").json
    assert found["complete"] is True
    assert [(hit["kind"], hit["session_id"], hit["run_id"]) for hit in found["hits"]] == [
        ("message", session, run),
        ("title", session, None),
    ]
    snippet = found["hits"][0]["snippet"]
    marks = [snippet["text"][mark["start"] : mark["end"]] for mark in snippet["marks"]]
    assert marks == [word, word]
    [both] = ctl("search", word, "索す", "--format", "json").json["hits"]
    assert both["seq"] == found["hits"][0]["seq"]
    assert len(both["snippet"]["marks"]) == 3
    one = ctl("search", word, "--limit", "1", "--format", "json").json
    rest = ctl("search", word, "--cursor", one["next_cursor"], "--format", "json").json
    assert one["hits"] + rest["hits"] == found["hits"]
    phrase = [f'"the {word} itself"', "--kind", "message"]
    assert ctl.field("hits.0.run_id", "search", *phrase) == run
    piped = ctl("search", word)
    assert session in piped.out
    assert "\x1b" not in piped.out
    code, shown = shown_on_terminal(ctl, "search", word)
    assert code == 0
    assert shown.count(f"\x1b[1m{word}\x1b[0m") >= 2, shown
    assert "\x1b[31m" not in shown
    assert f"agentctl events list {session} --cursor" in shown
    assert f"agentctl run get {run}" in shown
    assert "nothing found" in ctl("search", word + "x").out


def test_a_table_fits_a_narrow_terminal(ctl: Ctl, session: str) -> None:
    word = "n" + session[-10:]
    assert ctl("session", "rename", session, "A rather long title of a session " * 5).code == 0
    text = f"{'fill ' * 40}the {word} itself"
    ctl("run", "create", session, "--provider", "manual", "--text", text)
    _, shown = shown_on_terminal(ctl, "search", word, columns=80)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    [line] = [line for line in plain.splitlines() if line.startswith("@1")]
    assert word[:8] in line
    assert len(line) <= 80


def test_what_cannot_be_searched_is_named(ctl: Ctl) -> None:
    refused = ctl("search", "***")
    assert (refused.code, "no letter or digit" in refused.err) == (2, True)
    assert ctl("search").code == 2
    answer = ctl("search", "***", "--format", "json")
    assert json.loads(answer.err)["error"]["details"]["fields"].keys() == {"q"}


def test_marks_follow_what_is_removed_from_a_text() -> None:
    shown = cell(Text("a\x1b[1mb needle \u202e needle", marks=((7, 13), (16, 22))))
    assert [shown.text[start:end] for start, end in shown.marks] == ["needle", "needle"]
    assert "\x1b" not in shown.text
