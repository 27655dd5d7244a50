"""A configuration found in the working directory is used only if the user has trusted it."""

import json
import os
from pathlib import Path

import pytest
from driving import Result, environment, run

from agent_orchestrator.trusted_files import found_file, is_trusted, trust
from agent_orchestrator.user_state import user_state
from agentd.own_files import forget_missing_configuration
from agentd.settings import ConfigError, UntrustedConfig, load


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


def _agentctl(*arguments: str) -> Result:
    return run(["--url", "http://127.0.0.1:9", *arguments], Path.cwd(), environment())


def test_untrusted_configuration_is_not_executed(directory: Path, tmp_path: Path) -> None:
    command = ["sh", "-c", f"touch {tmp_path}/ran; echo 1"]
    (directory / "agentd.toml").write_text(
        f'[providers.x]\nrunner = "command"\nargv = ["cat"]\nversion_argv = {json.dumps(command)}\n'
    )
    refused = _agentctl("--format", "json", "doctor")
    [finding] = [one for one in refused.json["findings"] if one["level"] == "error"]
    assert "agentctl config trust" in finding["message"]
    started = _agentctl("daemon", "start")
    assert started.code == 1
    assert "is not trusted" in started.err
    assert not (tmp_path / "ran").exists()
    shown = _agentctl("config", "trust")
    assert shown.code == 0, shown.err
    assert f"touch {tmp_path}/ran" in shown.out
    assert not (tmp_path / "ran").exists()
    assert "is not trusted" not in _agentctl("doctor").out
    assert (tmp_path / "ran").exists()


def test_trust_holds_for_one_content_and_one_path(directory: Path, tmp_path: Path) -> None:
    file = directory / "agentd.toml"
    state = user_state()
    assert state is not None
    file.write_text("[daemon]\nport = 1\n")
    with pytest.raises(UntrustedConfig, match="config trust"):
        load({}, {})
    trust(state, found_file(file))
    assert load({}, {}).port == 1
    (directory / "link").symlink_to(directory)
    assert is_trusted(state, found_file(Path("link/agentd.toml")))
    file.write_text("[daemon]\nport = 2\n")
    with pytest.raises(UntrustedConfig):
        load({}, {})
    named = load({}, {}, "agentd.toml")  # a named file is trusted
    assert (named.port, named.finds_file) == (2, False)
    assert load({}, {"AGENTD_CONFIG": str(file)}).port == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "agentd.toml").write_text("[daemon]\nport = 1\n")
    assert not is_trusted(state, found_file(tmp_path / "other" / "agentd.toml"))


def test_trust_ends_with_a_start_without_the_file(directory: Path) -> None:
    file = directory / "agentd.toml"
    state = user_state()
    assert state is not None
    for _ in range(2):  # nothing to forget the first time
        forget_missing_configuration()
        file.write_text("[daemon]\nport = 1\n")
        with pytest.raises(UntrustedConfig):
            load({}, {})
        trust(state, found_file(file))
        forget_missing_configuration()
        assert load({}, {}).port == 1
        file.unlink()


def test_trust_record_with_unsafe_mode_or_content_is_ignored(directory: Path) -> None:
    file = directory / "agentd.toml"
    file.write_text("[daemon]\nport = 1\n")
    state = user_state()
    assert state is not None
    trust(state, found_file(file))
    [record] = state.trusted.iterdir()
    record.chmod(0o666)
    with pytest.raises(UntrustedConfig):
        load({}, {})
    record.chmod(0o600)
    record.write_text("{")
    with pytest.raises(UntrustedConfig):
        load({}, {})


def test_configuration_without_settings_needs_no_trust(directory: Path) -> None:
    (directory / "agentd.toml").write_text("\n  # port = 1\n\n")
    assert load({}, {}).file is None


def test_configuration_that_is_not_a_small_regular_file_is_refused(directory: Path) -> None:
    file = directory / "agentd.toml"
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="not a file"):
        load({}, {})
    file.unlink()
    with file.open("wb") as large:
        large.truncate((1 << 20) + 1)
    with pytest.raises(ConfigError, match="large"):
        load({}, {})


def test_configuration_must_be_named_without_a_state_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "agentd.toml").write_text("[daemon]\nport = 1\n")
    monkeypatch.setattr("agentd.settings.user_state", lambda: None)
    with pytest.raises(UntrustedConfig, match="--config"):
        load({}, {})
    assert load({}, {}, "agentd.toml").port == 1


def test_all_configuration_errors_are_reported_with_suggestions(directory: Path) -> None:
    Path("x.toml").write_text(
        "[daemon]\nprot = 1\ngrace_s = 'x'\n[limits]\ndeph = 2\n[deamon]\n"
        "[providers.a]\nargv = ['a']\n[providers.b]\n"
    )
    with pytest.raises(ConfigError) as raised:
        load({}, {"AGENTD_PORT": "many"}, "x.toml")
    lines = str(raised.value).splitlines()
    for words in (
        "daemon.prot: is not a setting; did you mean 'port'?",
        "daemon.grace_s",
        "limits.deph: is not a setting; did you mean 'depth'?",
        "deamon: is not a table of this file; did you mean 'daemon'?",
        "providers.a.runner",
        "providers.b.runner",
        "AGENTD_PORT",
    ):
        assert [line for line in lines if words in line], words
    assert len(lines) == 7
