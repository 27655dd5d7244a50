"""Settings: precedence of flags, environment, file and defaults; errors name their place."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.engine import TreeLimits
from agent_orchestrator.known_runners import AgentDefaults, KnownProvider
from agentd import cli
from agentd import settings as settings_module
from agentd.providers import ProviderSettings, RoutingSettings, read_providers
from agentd.settings import FlagError, Settings, declared


def load(flags: Any, environ: Any, config: str | None = None) -> Settings:
    """Load settings with the test's file, if there is one. A named file is trusted."""
    there = "agentd.toml" if Path("agentd.toml").exists() else None
    return settings_module.load(flags, environ, config or environ.get("AGENTD_CONFIG") or there)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_default_settings(directory: Path) -> None:
    settings = load({}, {})
    assert (settings.host, settings.port) == ("127.0.0.1", 8765)
    assert settings.db == ".data/agent-orchestrator.db"
    assert (settings.max_concurrency, settings.max_queue) == (4, 1000)
    assert settings.max_body == 8 * 1024 * 1024
    assert settings.auth_tokens == ()
    assert settings.providers == {
        "codex": ProviderSettings("codex"),
        "demo": ProviderSettings("demo"),
    }
    assert settings.routing == RoutingSettings("codex")


VALUES: dict[str, tuple[Any, str, Any]] = {
    "host": ("f.example", "e.example", "x.example"),
    "port": (1001, "1002", "1003"),
    "db": ("f.db", "e.db", "x.db"),
    "store": ("postgresql://f/d", "postgresql://e/d", "postgresql://x/d"),
    "store_listen": ("postgresql://f:1/d", "postgresql://e:1/d", "postgresql://x:1/d"),
    "host_name": ("f", "e-1", "x.y_z"),
    "host_labels": (["f"], "e,e2", ("x",)),
    "spawn_directory": ("/f", "/e", "/x"),
    "auth_tokens": (["f1", "f2"], "e1", ("x1", "x2")),
    "max_concurrency": (5, "6", "7"),
    "max_queue": (50, "60", "70"),
    "max_depth": (1, "2", "3"),
    "max_children": (10, "20", "30"),
    "max_descendants": (100, "200", "0"),
    "retain_days": (30, "60", "0"),
    "retain_events": (1000, "2000", "0"),
    "retain_bytes": (1000, "2000", "0"),
    "park_after_s": (1, "2.5", "0"),
    "parent_answer_s": (10, "20.5", "30"),
    "codex_profile": ("f", "e", "x"),
    "codex_extra_args": (["--f"], None, ("--x", "y")),
    "grace_s": (1, "2.5", "3"),
    "max_body": (10_000, "20000", "30000"),
    "allowed_hosts": (["f"], "e,e2", ("x",)),
    "allowed_origins": (["http://f"], "http://e", ("http://x",)),
    "base_path": ("/f", "/e", "/x"),
    "tls_cert": ("f.pem", "e.pem", "x.pem"),
    "tls_key": ("f.key", "e.key", "x.key"),
    "workspace_roots": (["/f"], "/e,/e2", ("/x",)),
    "log_format": ("text", "json", "auto"),
    "traces": ("otlp", "off", "otlp"),
    "log_level": ("error", "warning", "debug"),
}


def test_every_setting_has_test_values() -> None:
    assert set(VALUES) == set(declared())


@pytest.mark.parametrize("name", VALUES)
def test_flag_overrides_environment_overrides_file_overrides_default(
    directory: Path, name: str
) -> None:
    in_file, in_environment, as_flag = VALUES[name]
    setting = declared()[name]
    default = getattr(Settings(), name)
    (directory / "agentd.toml").write_text(f"[{setting.table}]\n{setting.key} = {in_file!r}\n")
    kind = type(default) if default is not None else str
    expected = tuple(in_file) if setting.many else kind(in_file)
    assert getattr(load({}, {}), name) == expected
    environ = {setting.env[0]: in_environment} if setting.env else {}
    if environ:
        found = getattr(load({}, environ), name)
        assert found == (tuple(in_environment.split(",")) if setting.many else kind(in_environment))
    expected = as_flag if setting.many else kind(as_flag)
    assert getattr(load({name: as_flag}, environ), name) == expected


def test_the_store_is_a_file_or_a_url_whichever_is_named_last(directory: Path) -> None:
    url = "postgresql://ann:hunter22@host/db"
    assert load({}, {}).database == directory / ".data/agent-orchestrator.db"
    chosen = load({"store": url}, {"AGENTD_DB": "e.db"})
    assert (chosen.database, chosen.location) == (None, "postgresql://ann@host/db")
    assert "hunter22" in chosen.secrets
    assert "hunter22" not in repr(chosen)
    assert not chosen.finds_database
    (directory / "agentd.toml").write_text(f"[daemon]\nstore = {url!r}\n")
    assert load({}, {}).store == url
    assert load({}, {"AGENTD_DB": "e.db"}).database == directory / "e.db"
    assert load({"db": "x.db"}, {"AGENTD_STORE": url}).database == directory / "x.db"
    with pytest.raises(ConfigError, match="--db and --store: give only one of them"):
        load({"db": "x.db", "store": url}, {})
    for bad in ("x.db", "postgresql://ann:p@ss@host/db"):
        with pytest.raises(ConfigError) as raised:
            load({}, {"AGENTD_STORE": bad})
        assert bad not in str(raised.value)


def test_tree_limits_are_in_the_table_limits(directory: Path) -> None:
    (directory / "agentd.toml").write_text("[limits]\ndepth = 2\nchildren = 3\n")
    found = load({"max_children": "4"}, {"AGENTD_MAX_DESCENDANTS": "7"})
    assert (found.max_depth, found.max_children, found.max_descendants) == (2, 4, 7)
    none = load({}, {}, os.devnull)
    assert none.limits == TreeLimits()
    for text, place in [
        ("[limits]\nwidth = 1\n", "limits.width: is not a setting"),
        ("[daemon]\nmax_depth = 1\n", "daemon.max_depth: is not a setting"),
        ("[limits]\ndepth = -1\n", "limits.depth: must be between 0 and 100, is -1"),
        ("[limits]\nchildren = true\n", "limits.children: must be an integer"),
        ("limits = 1\n", "limits: must be a table"),
    ]:
        (directory / "agentd.toml").write_text(text)
        with pytest.raises(ConfigError, match=re.escape(f"agentd.toml: {place}")):
            load({}, {})


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 5_000, "nan", "inf"])
def test_number_out_of_range_is_refused_with_its_setting(directory: Path, number: str) -> None:
    with pytest.raises(ConfigError, match=r"^AGENTD_PORT: must be"):
        load({}, {"AGENTD_PORT": number})
    if len(number) < 4_300:  # tomllib refuses longer ones itself
        (directory / "agentd.toml").write_text(f"[daemon]\nmax_queue = {number}\n")
        with pytest.raises(ConfigError, match=r"daemon\.max_queue: must be"):
            load({}, {})


def test_errors_do_not_contain_tokens(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"^AGENTD_AUTH_TOKEN: is not UTF-8$"):
        load({}, {"AGENTD_AUTH_TOKEN": "secret\udcff"})
    (directory / "agentd.toml").write_text("[daemon]\nauth_tokens = [12345678]\n")
    with pytest.raises(ConfigError, match=r"auth_tokens: must be a string$"):
        load({}, {})


def test_both_token_variables_are_combined(directory: Path) -> None:
    environ = {"AGENTD_AUTH_TOKEN": "one,whole", "AGENTD_AUTH_TOKENS": " a, b,,c "}
    assert load({}, environ).auth_tokens == ("one,whole", "a", "b", "c")
    assert load({"auth_tokens": ("x",)}, environ).auth_tokens == ("x",)
    assert "whole" not in repr(load({}, environ))


def test_source_of_the_tokens_is_recorded(directory: Path) -> None:
    environ = {"AGENTD_AUTH_TOKEN": "one", "AGENTD_AUTH_TOKENS": "two"}
    (directory / "agentd.toml").write_text("[daemon]\nauth_tokens = ['x']\n")
    for flags, variables, source in [
        ({"auth_tokens": ("x",)}, environ, "--auth-token"),
        ({}, environ, "AGENTD_AUTH_TOKEN and AGENTD_AUTH_TOKENS"),
        ({}, {}, "agentd.toml: daemon.auth_tokens"),
    ]:
        assert load(flags, variables).sources == {"auth_tokens": source}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--codex-extra-arg", "never"], ("never",)),
        (["--codex-extra-arg=--color"], ("--color",)),
        (["--codex-extra-arg", "--color", "--codex-extra-arg", "never"], ("--color", "never")),
        (["--codex-extra-arg=-c", "--codex-extra-arg=a=[1, 2]"], ("-c", "a=[1, 2]")),
    ],
)
def test_codex_extra_args_can_be_given_with_or_without_equals_sign(
    directory: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: Any
) -> None:
    seen: list[Settings] = []

    def run(
        settings: Settings, ready_file: str | None, *, accept_loss: bool, log_limit: int | None
    ) -> int:
        assert (accept_loss, log_limit) == (False, None)
        seen.append(settings)
        return 0

    import agentd.daemon

    monkeypatch.setattr(agentd.daemon, "run_daemon", run)
    result = CliRunner().invoke(cli.main, [*arguments, "--codex-profile", "work"])
    assert result.exit_code == 0, result.output
    assert seen[0].codex_extra_args == expected
    options = {"profile": "work", "extra_args": list(expected)}
    assert seen[0].providers["codex"].options == options
    assert seen[0].providers["demo"].options == {}


@pytest.mark.parametrize("option", ["--config", "--ready-file", "--db", "--workspace-root"])
def test_empty_path_options_are_refused(option: str, directory: Path) -> None:
    result = CliRunner().invoke(cli.main, [option, "", "--print-config"])
    assert result.exit_code == 2
    assert f"{option}: must not be blank" in result.output


def test_codex_settings_are_defaults_of_codex_providers(directory: Path) -> None:
    (directory / "agentd.toml").write_text(
        """
        [daemon]
        codex_profile = "work"
        [providers.mine]
        runner = "codex-exec"
        profile = "own"
        [providers.other]
        runner = "codex"
        [providers.tool]
        runner = "command"
        argv = ["x"]
        [routing]
        default = "mine"
        fallback = { mine = ["other", "tool"] }
        """
    )
    settings = load({"codex_extra_args": ("--search",)}, {})
    options = {name: provider.options for name, provider in settings.providers.items()}
    assert options == {
        "mine": {"profile": "own", "extra_args": ["--search"]},
        "other": {"profile": "work", "extra_args": ["--search"]},
        "tool": {"argv": ["x"]},
    }
    assert settings.routing == RoutingSettings("mine", {"mine": ("other", "tool")})


def test_provider_table_with_all_settings_is_read(directory: Path) -> None:
    (directory / "x.toml").write_text(
        """
        [providers.review]
        runner = "command"
        model = "large"
        argv = ["a", "b"]
        env = { inherit = ["PATH", "HOME"], set = { KEY = "v" } }
        on_crash = "fail"
        max_attempts = 5
        run_timeout_s = 60
        silence_timeout_s = 7.5
        approvals = "ask-human"
        """
    )
    for settings in (load({}, {}, "x.toml"), load({}, {"AGENTD_CONFIG": "x.toml"})):
        assert settings.providers == {
            "review": ProviderSettings(
                "command",
                model="large",
                inherit=("PATH", "HOME"),
                set={"KEY": "v"},
                options={"argv": ["a", "b"]},
                on_crash="fail",
                max_attempts=5,
                run_timeout_s=60.0,
                silence_timeout_s=7.5,
                approvals="ask-human",
            )
        }
        assert settings.routing == RoutingSettings("review")


def test_installed_known_agents_become_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "codex": KnownProvider(runner="codex", program="codex"),
        "one": KnownProvider(runner="command", program="one", options={"argv": ["one"]}),
        "two": KnownProvider(runner="command", program="two", options={"argv": ["two"]}),
    }
    monkeypatch.setattr("agentd.providers.KNOWN_PROVIDERS", known)
    read = partial(read_providers, location="x", defaults=AgentDefaults())

    providers, routing = read({}, {}, find_program=lambda name: None)
    assert list(providers) == ["codex", "demo"]
    assert routing == RoutingSettings("codex")

    providers, routing = read({}, {}, find_program={"two": "/bin/two"}.get)
    assert list(providers) == ["codex", "two", "demo"]
    assert providers["two"] == ProviderSettings("command", options={"argv": ["two"]})
    assert routing == RoutingSettings("codex", prefer=("codex", "two"))

    _, routing = read({}, {"prefer": ["demo", "two"]}, find_program={"two": "/bin/two"}.get)
    assert routing == RoutingSettings("demo", prefer=("demo", "two"))
    _, routing = read({}, {"default": "two"}, find_program={"two": "/bin/two"}.get)
    assert routing == RoutingSettings("two")

    providers, _ = read({"mine": {"runner": "demo"}}, {}, find_program=lambda name: name)
    assert list(providers) == ["mine"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[routing]\nprefer = 'codex'", "routing.prefer"),
        ("[routing]\nprefer = [1]", "routing.prefer"),
        ("[routing]\nprefer = ['nobody']", "routing.prefer"),
        ("[routing]\nprefer = ['codex']\ndefault = 'demo'", "routing.prefer"),
        ("daemon = 1", "daemon"),
        ("[daemon]\nport = true", "daemon.port"),
        ("[daemon]\nport = 1.5", "daemon.port"),
        ("[daemon]\nport = -1", "daemon.port"),
        ("[daemon]\ndb = ''", "daemon.db"),
        ("[daemon]\nauth_tokens = 'x'", "daemon.auth_tokens"),
        ("[daemon]\nauth_tokens = [1]", "daemon.auth_tokens"),
        ("[daemon]\nlog_level = 'loud'", "daemon.log_level"),
        ("providers = []", "providers"),
        ("providers.x = 1", "providers.x"),
        ("[providers.'a b']\nrunner = 'demo'", "providers.a b"),
        ("[providers.x]\nrunner = 1", "providers.x.runner"),
        ("[providers.x]\nrunner = 'demo'\nmodel = 1", "providers.x.model"),
        ("[providers.x]\nrunner = 'demo'\nenv = 1", "providers.x.env"),
        ("[providers.x]\nrunner = 'demo'\non_crash = 'try'", "providers.x.on_crash"),
        ("[providers.x]\nrunner = 'demo'\nmax_attempts = 0", "providers.x.max_attempts"),
        ("[providers.x]\nrunner = 'demo'\nrun_timeout_s = 0", "providers.x.run_timeout_s"),
        ("[providers.x]\nrunner = 'demo'\nrun_timeout_s = nan", "providers.x.run_timeout_s"),
        ("[providers.x]\nrunner = 'demo'\nmax_attempts = true", "providers.x.max_attempts"),
        ("[providers.x]\nrunner = 'demo'\napprovals = 'ask'", "providers.x.approvals"),
        ("[providers.x]\nrunner = 'demo'\napprovals = []", "providers.x.approvals"),
        ("[providers.x]\nrunner = 'demo'\nenv = {inherit = 'some'}", "providers.x.env.inherit"),
        ("[providers.x]\nrunner = 'demo'\nenv = {inherit = [1]}", "providers.x.env.inherit"),
        ("[providers.x]\nrunner = 'demo'\nenv = {set = {A = 1}}", "providers.x.env.set"),
        ("[providers.x]\nrunner = 'demo'\nenv = {sets = {}}", "providers.x.env.sets"),
        ("[providers.x]\nrunner='demo'\n[providers.y]\nrunner='demo'", "routing.default"),
        ("[routing]\ndefaults = 'x'", "routing.defaults"),
        ("[routing]\ndefault = 1", "routing.default"),
        ("[routing]\nfallback = 1", "routing.fallback"),
        ("[routing]\nfallback = {codex = 'demo'}", "routing.fallback.codex"),
        ("[routing]\nfallback = {codex = []}", "routing.fallback.codex"),
    ],
)
def test_error_in_the_file_names_its_setting(directory: Path, text: str, place: str) -> None:
    (directory / "agentd.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load({}, {})
    assert str(raised.value).startswith(f"agentd.toml: {place}: ")


def test_error_in_a_variable_flag_or_file_names_its_place(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"^AGENTD_PORT: must be an integer, is 'x'$"):
        load({}, {"AGENTD_PORT": "x"})
    with pytest.raises(FlagError, match=r"^--max-queue: must be between 1 and 1,000,000, is 0$"):
        load({"max_queue": "0"}, {})
    with pytest.raises(FlagError, match=r"^--codex-profile: must not be blank$"):
        load({"codex_profile": ""}, {})
    with pytest.raises(FlagError, match="grace-s"):
        load({"grace_s": "nan"}, {})
    (directory / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"bytes\.toml: is not TOML"):
        load({}, {}, "bytes.toml")
    (directory / "deep.toml").write_text("x = " + "[" * 5000)
    with pytest.raises(ConfigError, match=r"^deep\.toml: is nested too deeply$"):
        load({}, {}, "deep.toml")
    (directory / "long.toml").write_text("x = " + "9" * 5000)
    with pytest.raises(ConfigError, match=r"^long\.toml: is not TOML"):
        load({}, {}, "long.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, {}, str(directory))


def test_flags_of_settings_are_unique() -> None:
    flags = [setting.flag for setting in declared().values()]
    assert len(set(flags)) == len(flags)
    assert {"--auth-token", "--codex-extra-arg", "--codex-profile"} <= set(flags)
    assert all(setting.doc.endswith(".") for setting in declared().values())
    assert set(declared()) <= {attribute.name for attribute in attrs.fields(Settings)}
