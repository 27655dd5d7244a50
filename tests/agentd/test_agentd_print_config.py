"""--print-config shows the settings that the daemon would use, and the source of each."""

import tomllib
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import run_agentd
from test_agentd_settings import VALUES

from agentd.print_config import _value, render_config
from agentd.settings import declared, load

FILE = """
[daemon]
port = 4321
auth_tokens = ["from-the-file-of-the-daemon"]
codex_profile = "work"
codex_extra_args = ["--search", "-c", "x=\\"from-the-file-of-the-daemon\\""]
allowed_hosts = ["a\\u007f\\"b"]
[limits]
depth = 2
[providers.codex]
runner = "codex"
sandbox = "read-only"
[providers."odd.name"]
runner = "command"
argv = ["a b", "--x=\\"y\\""]
run_timeout_s = 7
map = [{ when = { type = "x" }, event = "agent.message", flag = true }]
env = { inherit = ["PATH"], set = { API_KEY = "not to be shown" } }
[routing]
default = "codex"
fallback = { codex = ["odd.name"] }
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agentd.toml").write_text(FILE)
    return tmp_path


def source_of(text: str, key: str) -> str:
    [line] = [
        line
        for line in text.splitlines()
        if line.removeprefix("# ").startswith((f"{key} = ", f"{key} is "))
    ]
    return line.rpartition(" # ")[2]


def test_print_config_shows_the_source_of_each_setting(directory: Path) -> None:
    done = run_agentd(directory, "--print-config", "--max-queue", "7", env={"AGENTD_HOST": "::1"})
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert source_of(text, "max_queue") == "--max-queue"
    assert source_of(text, "host") == "AGENTD_HOST"
    assert source_of(text, "port") == "agentd.toml: daemon.port"
    assert source_of(text, "depth") == "agentd.toml: limits.depth"
    assert source_of(text, "auth_tokens") == "agentd.toml: daemon.auth_tokens"
    assert source_of(text, "db") == "default"
    assert not (directory / ".data").exists(), "nothing is started"
    for setting in declared().values():
        source_of(text, setting.key)


def test_print_config_shows_no_secret(directory: Path) -> None:
    done = run_agentd(
        directory, "--print-config", env={"AGENTD_AUTH_TOKENS": "one-secret,two-secret"}
    )
    assert 'auth_tokens = ["[hidden]", "[hidden]"]' in done.stdout
    assert source_of(done.stdout, "auth_tokens") == "AGENTD_AUTH_TOKENS"
    assert "secret" not in done.stdout
    assert "not to be shown" not in done.stdout
    assert "API_KEY" in done.stdout
    # Also if a secret is only a part of a value.
    assert "from-the-file" not in run_agentd(directory, "--print-config").stdout


def test_print_config_shows_the_store_without_its_password(directory: Path) -> None:
    (directory / "agentd.toml").write_text("")
    url = "postgresql://ann:hunter22@host/db"
    done = run_agentd(directory, "--print-config", env={"AGENTD_STORE": url})
    assert '# store = "postgresql://ann@host/db"' in done.stdout
    assert "hunter22" not in done.stdout
    assert "# db is not used" in done.stdout


def test_printed_configuration_can_be_loaded(directory: Path) -> None:
    visible = FILE.replace('auth_tokens = ["from-the-file-of-the-daemon"]', "")
    (directory / "agentd.toml").write_text(visible.replace("not to be shown", "[hidden]"))
    settings = load({}, {}, "agentd.toml")
    (directory / "again.toml").write_text(render_config(settings))
    assert load({}, {}, "again.toml") == settings


@pytest.mark.parametrize("name", [name for name in VALUES if name != "auth_tokens"])
def test_each_printed_setting_can_be_loaded(directory: Path, name: str) -> None:
    flag = VALUES[name][2]
    settings = load({name: flag}, {}, "agentd.toml")
    hidden = attrs.evolve(settings, auth_tokens=())
    (directory / "again.toml").write_text(render_config(hidden))
    assert getattr(load({}, {}, "again.toml"), name) == getattr(settings, name)


@given(
    st.recursive(
        st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_every_value_is_printed_as_toml(value: object) -> None:
    assert tomllib.loads("x = " + _value(value).encode("utf-8", "replace").decode())["x"] == value


def test_print_config_reports_an_error_like_a_start(directory: Path) -> None:
    done = run_agentd(directory, "--print-config", env={"AGENTD_PORT": "x"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "agentd: AGENTD_PORT: must be an integer, is 'x'\n"
