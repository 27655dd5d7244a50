"""agentctl and a daemon that speaks TLS."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Certificate, make_certificate
from driving import CONFIG, Ctl, Daemon
from ports import free_port
from test_agentctl_tokens import BARE, expected, modules

from agentctl.main import invoke

INNER = """
[providers.inner]
runner = "command"
argv = ["sh", "-c", 'agentctl tool session-spawn --task "deep down" --provider echo --wait --field run.result.text']
"""


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


@pytest.fixture
def secured(tmp_path: Path, certificate: Certificate) -> Iterator[Daemon]:
    (tmp_path / "agentd.toml").write_text(CONFIG + INNER)
    daemon = Daemon(tmp_path, free_port(), options=certificate.options)
    daemon.ctl.url = daemon.ctl.url.replace("http:", "https:")
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


def test_a_private_certificate_is_trusted_with_ca_file(
    secured: Daemon, certificate: Certificate
) -> None:
    ctl = secured.ctl
    untrusted = ctl("session", "list")
    assert untrusted.code == 3
    assert "--ca-file" in untrusted.err
    assert "not trusted" in untrusted.err
    assert len(untrusted.err.splitlines()) == 1
    told = ctl("session", "list", "--format", "json")
    assert "--ca-file" in json.loads(told.err)["error"]["details"]["hint"]
    for ca_file in (certificate.authority, certificate.cert):
        assert ctl("session", "list", "--ca-file", ca_file).code == 0
    assert ctl("session", "list", AGENTCTL_CA_FILE=certificate.authority).code == 0
    assert ctl("session", "list", SSL_CERT_FILE=certificate.authority).code == 0
    asked = ctl("--ca-file", certificate.authority, "ask", "x", "--provider", "echo")
    assert (asked.code, asked.out.strip()) == (0, "x")


def test_an_agent_calls_agentctl_over_tls(secured: Daemon, certificate: Certificate) -> None:
    scripts = Path(__import__("sys").executable).parent
    secured.end()
    (secured.directory / "agentd.toml").write_text(
        CONFIG + INNER.replace("'agentctl", f"'PATH={scripts}:$PATH; agentctl")
    )
    secured.start()
    asked = secured.ctl("--ca-file", certificate.authority, "ask", "x", "--provider", "inner")
    assert (asked.code, asked.out.strip()) == (0, "deep down"), asked.err


def test_the_wrong_scheme_is_named_in_the_error(
    secured: Daemon, ctl: Ctl, certificate: Certificate
) -> None:
    plain = secured.ctl("--url", f"http://127.0.0.1:{secured.port}", "session", "list")
    assert plain.code == 3
    assert "https://" in plain.err
    secure = ctl("--url", ctl.url.replace("http:", "https:"), "session", "list")
    assert secure.code == 3
    assert "does not use TLS" in secure.err


@pytest.mark.parametrize("kind", ["missing", "other"])
def test_an_invalid_ca_file_is_a_usage_error(secured: Daemon, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"{kind}.pem"
    if kind == "other":
        file.write_text("x")
    refused = secured.ctl("--ca-file", str(file), "session", "list")
    assert refused.code == 2
    assert str(file) in refused.err
    assert len(refused.err.splitlines()) == 1


def test_the_qr_code_has_the_https_address(secured: Daemon, certificate: Certificate) -> None:
    shown = secured.ctl("token", "create", "phone", "--qr", AGENTCTL_CA_FILE=certificate.authority)
    lines = shown.out.splitlines()
    secret = next(line.split()[1] for line in lines if line.split()[:1] == ["secret"])
    text = {"url": f"https://127.0.0.1:{secured.port}", "token": secret}
    wanted = expected(json.dumps(text, separators=(",", ":")))
    printed = modules([line for line in lines if len(line) == len(wanted)], BARE)
    assert printed[: len(wanted)] == wanted


def test_a_daemon_with_tls_is_started_and_stopped(tmp_path: Path, certificate: Certificate) -> None:
    port = free_port()
    ctl = Ctl(f"https://127.0.0.1:{port}", tmp_path)
    started = ctl("daemon", "start", "--ca-file", certificate.authority, "--format=json", "--",
                  *certificate.options)  # fmt: skip
    assert started.code == 0, started.err
    try:
        assert started.json["url"] == ctl.url
        again = ctl("daemon", "start", "--ca-file", certificate.authority, "--format=json")
        assert again.json["already_running"]
    finally:
        stopped = ctl("daemon", "stop", "--wait", "--ca-file", certificate.authority)
    assert stopped.code == 0, stopped.err


def test_help_names_the_variable_of_the_ca_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["session", "list", "--help"]) == 0
    assert "AGENTCTL_CA_FILE" in capsys.readouterr().out
