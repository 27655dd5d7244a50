"""How often Claude Code is asked whether its user is logged in: each time delays a run by half a second."""

import json

import pytest

from agent_orchestrator.runners.claude.probe import Probe
from agent_orchestrator.runners.claude.trust import is_trusted

PROGRAM = """#!/bin/sh
case $1 in
--version) echo "2.1.332 (Claude Code)" ;;
auth) echo asked >> "$0.asked"; echo x >> "$CLAUDE_CONFIG_DIR/.claude.json"; cat "$0.status" ;;
esac
"""


class Asked:
    """A program that says it is Claude Code."""

    def __init__(self, directory):
        self.home = directory / "home"
        self.home.mkdir()
        self.path = directory / "claude"
        self.path.write_text(PROGRAM)
        self.path.chmod(0o755)
        self.env = {"CLAUDE_CONFIG_DIR": str(self.home), "PATH": "/usr/bin:/bin"}
        self.probe = Probe()

    def is_logged_in(self, *, says, **more):
        (self.path.with_name("claude.status")).write_text(json.dumps({"loggedIn": says, **more}))
        return self.probe(str(self.path), self.env).logged_in

    @property
    def times(self):
        file = self.path.with_name("claude.asked")
        return len(file.read_text().splitlines()) if file.exists() else 0

    def change(self, name):
        file = self.home / name
        file.write_text((file.read_text() if file.exists() else "") + " ")


@pytest.fixture
def asked(tmp_path):
    return Asked(tmp_path)


def test_a_start_of_claude_code_does_not_make_a_known_login_be_checked_again(asked):
    for _ in range(3):
        assert asked.is_logged_in(says=True) is True
        asked.change(".claude.json")
    assert asked.times == 1


@pytest.mark.parametrize("name", [".credentials.json", "settings.json"])
def test_a_known_login_is_checked_again_when_its_files_change(asked, name):
    assert asked.is_logged_in(says=True) is True
    asked.change(name)
    assert asked.is_logged_in(says=False) is False
    assert asked.times == 2


@pytest.mark.parametrize("name", [".claude.json", ".credentials.json", "settings.json"])
def test_a_login_is_noticed_by_any_of_its_files(asked, name):
    assert [asked.is_logged_in(says=False) for _ in range(2)] == [False, False]
    assert asked.times == 1
    asked.change(name)
    assert asked.is_logged_in(says=True) is True


def test_a_provider_without_a_login_is_asked_about_seldom(asked):
    for _ in range(3):
        assert asked.is_logged_in(says=True, apiProvider="bedrock") is None
        asked.change(".claude.json")
    assert asked.times == 1


def test_a_login_is_noticed_in_the_home_directory_too(asked):
    asked.env = {"HOME": str(asked.home), "PATH": "/usr/bin:/bin"}
    asked.path.write_text(PROGRAM.replace("CLAUDE_CONFIG_DIR", "HOME"))
    assert asked.is_logged_in(says=False) is False
    asked.change(".claude.json")
    assert asked.is_logged_in(says=True) is True


def test_a_login_that_a_run_has_shown_to_be_gone_is_checked_again(asked):
    assert asked.is_logged_in(says=True) is True
    asked.probe.forget_login()
    assert asked.is_logged_in(says=False) is False


def test_trust_follows_the_file_in_which_it_is_kept(asked):
    file = asked.home / ".claude.json"
    assert not is_trusted(asked.env, "/projects/there")
    for given in (True, False, True):
        known = {"projects": {"/projects": {"hasTrustDialogAccepted": given}}, "padding": given}
        file.write_text(json.dumps(known))
        assert is_trusted(asked.env, "/projects/there") is given
    for damaged in ("{", "[]", '{"projects": 1}', "[" * 100_000):
        file.write_text(damaged)
        assert not is_trusted(asked.env, "/projects/there")
    file.unlink()
    assert not is_trusted(asked.env, "/projects/there")
