"""The findings of doctor: each problem or risk, with a hint."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import evolve
from certificates import make_certificate
from serving import agentd, run_agentd

from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.engine.doctor import runner_findings, token_findings
from agent_orchestrator.operations.daemon import Finding
from agentd import doctor
from agentd.daemon import engine_config
from agentd.settings import load

SHELL = '[providers.sh]\nrunner = "command"\nargv = ["cat"]\n[routing]\ndefault = "sh"\n'
LONG = "x" * 32


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agentd.toml").write_text(SHELL)
    (tmp_path / "agentd.toml").chmod(0o600)
    return tmp_path


def found(
    environ: dict[str, str] | None = None, config: str = SHELL, **flags: Any
) -> list[Finding]:
    """Return the findings for these settings that are not `ok`."""
    file = Path("agentd.toml")
    mode = file.stat().st_mode
    file.write_text(config)
    file.chmod(mode)
    environ = {"PATH": os.environ["PATH"], "HOME": str(Path.cwd())} | (environ or {})
    settings = load(flags, environ, "agentd.toml")
    of_runners = runner_findings(evolve(engine_config(settings), environ=environ))
    return [
        one
        for one in (*of_runners, *doctor.daemon_findings(settings, environ))
        if one.level != "ok"
    ]


def one(findings: list[Finding], about: str, text: str) -> Finding:
    """Return the only finding about this with the text; it must have a hint."""
    (finding,) = [one for one in findings if one.about == about and text in one.message]
    assert finding.hint, finding
    return finding


def about(findings: list[Finding], *subjects: str) -> list[str]:
    return [one.message for one in findings if one.about in subjects]


def test_doctor_notes_variables_that_agents_do_not_inherit() -> None:
    environ = {"GIT_INDEX_FILE": "/x", "VIRTUAL_ENV": "/v", "PWD": "/"}
    note = one(found(environ), "environment", "GIT_INDEX_FILE, VIRTUAL_ENV")
    assert note.level == "note"
    assert "PWD" not in note.message
    given = SHELL.replace("argv", 'env = { inherit = "none" }\nargv')
    assert about(found(environ, config=given), "environment") == []


def test_doctor_reports_unprotected_addresses() -> None:
    assert one(found(), "address", "full access at 127.0.0.1").level == "note"
    assert about(found(auth_tokens=(LONG,)), "address") == []
    open_ = one(found(host="0.0.0.0"), "address", "no token")
    assert (open_.level, open_.security) == ("error", True)
    plain = one(found({"AGENTD_AUTH_TOKEN": LONG}, host="0.0.0.0"), "address", "without TLS")
    assert (plain.level, plain.security) == ("warning", True)
    assert "--tls-cert" in str(plain.hint)


def test_doctor_reports_bad_certificates(directory: Path) -> None:
    good = make_certificate(directory)
    Path(good.key).chmod(0o600)
    flags = {"host": "0.0.0.0", "auth_tokens": (LONG,), "tls_cert": good.cert, "tls_key": good.key}
    assert about(found(**flags), "address", "TLS") == []
    Path(good.key).chmod(0o640)
    assert one(found(**flags), "TLS", "private key").level == "error"
    now = datetime.now(UTC)
    for days, level, text in ((5, "warning", "another 4 days"), (-1, "error", "not valid today")):
        made = make_certificate(directory, expires_at=now + timedelta(days=days))
        Path(made.key).chmod(0o600)
        assert one(found(**flags), "TLS", text).level == level


def test_doctor_reports_weak_or_exposed_tokens(directory: Path) -> None:
    assert about(found({"AGENTD_AUTH_TOKEN": LONG}), "tokens") == []
    assert one(found({"AGENTD_AUTH_TOKEN": "x" * 12}), "tokens", "12 characters").level == "warning"
    assert one(found({"AGENTD_AUTH_TOKEN": "x"}), "tokens", "1 characters").level == "error"
    assert one(found(auth_tokens=(LONG,)), "tokens", "command line").level == "warning"
    holding = f"[daemon]\nauth_tokens = ['{LONG}']\n{SHELL}"
    assert about(found(config=holding), "tokens", "configuration") == []
    (directory / "agentd.toml").chmod(0o644)
    assert one(found(config=holding), "configuration", "holds a token").level == "error"
    assert about(found(), "configuration") == []
    (directory / "agentd.toml").chmod(0o620)
    assert one(found(), "configuration", "may change").level == "error"


def test_doctor_reports_old_named_tokens() -> None:
    now = datetime(2026, 7, 1, tzinfo=UTC)

    def token(days: int, *scopes: Any, lasts: int | None = None, revoked: bool = False) -> Any:
        made = now - timedelta(days=days)
        ends = None if lasts is None else made + timedelta(days=lasts)
        return AccessToken(
            "tok_1", "ci", "ci", scopes, "ann", made, ends, now if revoked else None
        )  # fmt: skip

    def level(*tokens: AccessToken) -> list[str]:
        return [one.level for one in token_findings(tokens, now)]

    assert level() == []
    assert level(token(1, "read")) == ["ok"]
    assert level(token(89, "read")) == ["ok"]
    assert level(token(90, "read")) == ["warning"]
    assert level(token(1, "admin")) == ["note"]
    assert level(token(90, "admin")) == ["warning"]
    assert level(token(90, "admin", lasts=100)) == ["ok"]
    assert level(token(90, "admin", lasts=80)) == []
    assert level(token(900, "admin", revoked=True)) == []


def test_doctor_warns_of_origins_without_https() -> None:
    for origin in ("https://desk.example", "http://localhost:3000", "http://[::1]:3000"):
        assert about(found(allowed_origins=(origin,)), "origins") == []
    for origin in ("http://desk.example", "http://desk.example:80"):
        assert one(found(allowed_origins=(origin,)), "origins", origin).level == "warning"


def test_doctor_says_what_notices_on_phones_need() -> None:
    assert about(found(), "notices") == []  # nobody else can open the page
    for flags in ({"host": "0.0.0.0"}, {"allowed_hosts": ("desk.example",)}):
        finding = one(found({"AGENTD_AUTH_TOKEN": LONG}, **flags), "notices", "only over HTTPS")
        assert finding.level == "note"
        assert "Home Screen" in finding.message
        for command in ("tailscale serve --bg 8765", "--allowed-origin https://NAME", "device add"):
            assert command in (finding.hint or "")
    secure = {"allowed_hosts": ("desk.example",), "allowed_origins": ("https://desk.example",)}
    assert one(found(**secure), "notices", "Apple").level == "note"
    for table in ('link_base = "https://desk.example"', 'push_contact = "mailto:a@desk.example"'):
        assert about(found(config=f"{SHELL}[notify]\n{table}\n", **secure), "notices") == []


def test_doctor_reports_unrestricted_workspaces(directory: Path) -> None:
    assert one(found(), "workspaces", "any directory").level == "note"
    beyond = found({"AGENTD_AUTH_TOKEN": LONG}, host="0.0.0.0")
    assert one(beyond, "workspaces", "any directory").level == "warning"
    assert about(found(workspace_roots=(str(directory),)), "workspaces") == []
    assert one(found(workspace_roots=("/",)), "workspaces", "hardly restricts").level == "warning"


def test_doctor_reports_a_spawn_directory_in_which_nothing_can_start(directory: Path) -> None:
    root, elsewhere, loop = directory / "root", directory / "elsewhere", directory / "loop"
    (root / "children").mkdir(parents=True)
    elsewhere.mkdir()
    (root / "link").symlink_to(elsewhere)
    loop.symlink_to(loop)
    for wrong, text in (
        (root / "none", "is not a directory"),
        (loop, "is not a directory"),
        (root / ("x" * 300), "is not a directory"),
        (elsewhere, "workspace_roots"),
        (root / "link", "workspace_roots"),
    ):
        findings = found(spawn_directory=str(wrong), workspace_roots=(str(root),))
        assert one(findings, "workspaces", text).level == "error"
    for options in (
        {"spawn_directory": str(root / "children"), "workspace_roots": (str(root),)},
        {"spawn_directory": str(elsewhere)},
        {},
    ):
        assert not any("spawn_directory" in one.message for one in found(**options))


@pytest.mark.parametrize(
    "options",
    [
        'sandbox = "danger-full-access"',
        'extra_args = ["--dangerously-bypass-approvals-and-sandbox"]',
        'extra_args = ["-c", "sandbox_mode=danger-full-access"]',
        'config = { sandbox_mode = "danger-full-access" }',
        'config = { default_permissions = ":danger-full-access" }',
    ],
)
def test_doctor_warns_of_codex_without_its_sandbox(options: str) -> None:
    def said(runner: str, *more: str) -> list[Finding]:
        config = "\n".join(["[providers.codex]", f'runner = "{runner}"', *more])
        return [one for one in found(config=config) if "without its sandbox" in one.message]

    (finding,) = said("codex-exec", options)
    assert finding.level == "warning"
    is_setting = options.startswith("sandbox")
    for runner in ("codex", "codex-app-server"):
        assert bool(said(runner, options)) == is_setting
    if not is_setting:
        assert not said("codex-exec", options, 'sandbox = "workspace-write"')
    assert not said("codex", 'sandbox = "workspace-write"')


def test_doctor_warns_of_providers_that_approve_everything() -> None:
    assert one(found(config=SHELL.replace("[routing]", 'approvals = "allow"\n[routing]')),
               "provider sh", "approved").level == "warning"  # fmt: skip
    beyond = found({"AGENTD_AUTH_TOKEN": LONG}, host="0.0.0.0")
    assert one(beyond, "provider sh", "agentd's whole environment").security


def test_doctor_reports_an_unusable_codex_home(directory: Path) -> None:
    codex = directory / "codex"
    config = f'[providers.codex]\nrunner = "codex"\ncommand = "{codex}"\n'
    # A missing codex is reported once, like every provider that is unavailable.
    assert [one for one in found(config=config) if one.about == "provider codex"] == []
    codex.write_text("#!/bin/sh\necho codex-cli 0.169.0\n")
    codex.chmod(0o700)
    assert one(found(config=config), "provider codex", "does not exist").level == "warning"
    (directory / ".codex").write_text("a file")
    assert one(found(config=config), "provider codex", "cannot write").level == "error"
    for home in ("x" * 300, "agentd.toml/codex"):
        environ = {"CODEX_HOME": str(directory / home)}
        assert one(found(environ, config), "provider codex", "cannot write").level == "error"
    (directory / ".codex").unlink()
    (directory / ".codex").mkdir()
    alone = {"PATH": str(directory)}
    assert one(found(alone, config), "provider codex", "bubblewrap").level == "note"
    open_config = config + 'sandbox = "danger-full-access"\n'
    assert "bubblewrap" not in str(about(found(alone, open_config), "provider codex"))
    (directory / "bwrap").write_text("#!/bin/sh\n")
    (directory / "bwrap").chmod(0o700)
    assert about(found(alone, config), "provider codex") == []


def test_doctor_reports_database_files_that_others_can_read(directory: Path) -> None:
    database = directory / "a.db"
    database.write_bytes(b"")
    database.chmod(0o600)
    assert about(found(db="a.db"), "database") == []
    database.with_name("a.db-wal").write_bytes(b"")
    database.with_name("a.db-wal").chmod(0o644)
    loose = one(found(db="a.db"), "database", "other users")
    assert loose.level == "error"
    assert loose.hint == f"chmod 600 {database}-wal"
    for unusable in ("x" * 300, f"{'x' * 300}/a.db", "a.db/a.db"):
        assert about(found(db=unusable), "database") == []  # opening it says what is wrong


# --- a daemon that does not run, and one that does -------------------------------------------


def closed(directory: Path, *arguments: str) -> dict[str, Any]:
    done = run_agentd(directory, *arguments, "--doctor")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def database(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (one["level"], one["message"]) for one in report["findings"] if one["about"] == "database"
    ]


def test_doctor_before_the_first_start_creates_nothing(directory: Path) -> None:
    report = closed(directory)
    assert report["ok"]
    assert {"level": "ok", "about": "provider sh"}.items() <= report["findings"][0].items()
    assert "will be created" in database(report)[0][1]
    assert [path.name for path in directory.iterdir()] == ["agentd.toml"]  # doctor creates no file
    refused = closed(directory, "--db", "agentd.toml/such.db")
    assert database(refused)[0][0] == "error"
    assert not refused["ok"]


def test_doctor_while_the_daemon_runs_and_afterwards(directory: Path) -> None:
    with agentd(directory, "--db", "a.db", env={"AGENTD_AUTH_TOKEN": LONG}) as daemon:
        report = httpx.get(
            f"{daemon.url}/daemon/doctor", headers={"Authorization": f"Bearer {LONG}"}
        ).json()
        assert report["ok"], report
        assert [level for level, _ in database(report)] == ["ok", "ok"]
        busy = database(closed(directory, "--db", "a.db"))
        assert (busy[0][0], f"process {daemon.pid}" in busy[0][1]) == ("warning", True)
    assert [level for level, _ in database(closed(directory, "--db", "a.db"))] == ["ok", "ok"]


def test_doctor_reports_a_foreign_or_newer_database(directory: Path) -> None:
    (directory / "a.db").write_text("something else")
    assert database(closed(directory, "--db", "a.db"))[0][0] == "error"
    header = bytearray(100)
    header[:16], header[60:64] = b"SQLite format 3\0", (9999).to_bytes(4, "big")
    header[68:72] = b"AgOr"
    (directory / "a.db").write_bytes(header)
    assert "newer agentd" in database(closed(directory, "--db", "a.db"))[0][1]


@pytest.mark.parametrize(
    "config", ["[daemon]\nport = 'x'\n", "not toml", '[providers.x]\nrunner = "y"\n']
)
def test_doctor_reports_an_invalid_configuration(directory: Path, config: str) -> None:
    (directory / "agentd.toml").write_text(config)
    report = closed(directory)
    assert not report["ok"]
    (finding,) = report["findings"]
    assert (finding["level"], finding["about"]) == ("error", "configuration")


def test_doctor_does_not_check_whether_the_port_is_free(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert closed(directory, "--port", str(server.getsockname()[1]))["ok"]
