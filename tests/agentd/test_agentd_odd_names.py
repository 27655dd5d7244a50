"""Unusual names and arguments: bytes that are not UTF-8, paths, users without a home."""

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from serving import Serving, exchange, run_agentd, serving

from agent_orchestrator import open_embedded
from agent_orchestrator.domain.errors import ConfigError, InvalidRequest
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.runners.codex.probe import Probe
from agent_orchestrator.runners.command import CommandRunner
from agent_orchestrator.wire import codec
from agentd.doctor import daemon_findings
from agentd.server import url_of
from agentd.settings import Settings, load

pytestmark = pytest.mark.anyio

ODD = os.fsdecode(b"caf\xe9")


async def status_of(server: Serving, method: str, path: str) -> int:
    request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    status, _ = await anyio.to_thread.run_sync(exchange, server.address, request.encode())
    return status


@pytest.mark.parametrize(
    "path",
    [
        "/sessions/ID%2Fevents",
        "/sessions/ID%2fevents?limit=1",
        "http://127.0.0.1/sessions/ID%2Fevents",
        "/sessions%2FID",
        "/%2Fsessions",
        "/sessions/ID/",
        "/sessions//ID",
        "//sessions",
        "/sessions/x/../ID",
        "/sessions/x/%2e%2e/ID",
        "/sessions/./ID",
        "/sessions;v=1/ID",
        "/SESSIONS/ID",
        "/health%2F",
        "/health/",
        "/x/%2e%2e/health",
        "/sessions%3Flimit=1",
    ],
)
async def test_path_that_is_not_canonical_is_not_found(server: Serving, path: str) -> None:
    session = await server.session()
    assert await status_of(server, "GET", path.replace("ID", session)) == 404


@pytest.mark.parametrize(
    "ending", ["%00", ";v=1", "%C0%AF", "%ff", "%5Cevents", "%252Fevents", "%20", "%0d%0a", "%23"]
)
async def test_identifier_with_special_characters_is_refused(server: Serving, ending: str) -> None:
    session = await server.session()
    assert await status_of(server, "GET", f"/sessions/{session}{ending}") == 400


async def test_escaped_slash_is_not_a_path_separator_in_any_call(server: Serving) -> None:
    for operation in OPERATIONS:
        if operation.path.count("/") > 1:
            head, _, tail = operation.path.rpartition("/")
            path = f"{head}%2F{tail}".replace("{", "").replace("}", "")
            assert await status_of(server, operation.method, path) == 404, operation.name


async def test_directory_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / ODD / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / ODD)
    runner = CommandRunner("pwd", argv=["pwd"], output="text")
    async with open_embedded(":memory:", runners=[runner], cwd=str(tmp_path)) as client:
        session = await client.create_session(cwd=str(tmp_path / "link"))
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        reply = await client.wait_run(sent.run.id, timeout_s=60)
        assert reply.run.status == "completed"
        codec.to_json(await client.diagnose_run(sent.run.id)).encode()
    roots = [str(tmp_path)]
    async with open_embedded(":memory:", workspace_roots=roots, cwd=roots[0]) as client:
        for cwd in ("link", "link/below"):
            with pytest.raises(InvalidRequest, match=r"cwd: .*caf\\xe9"):
                await client.create_session(cwd=str(tmp_path / cwd))
    with pytest.raises(ConfigError, match=r"workspace_roots.*caf\\xe9"):
        async with open_embedded(":memory:", workspace_roots=[str(tmp_path / "link")]):
            pass
    with pytest.raises(ConfigError, match=r"cwd.*caf\\xe9"):
        async with open_embedded(":memory:", cwd=str(tmp_path / ODD)):
            pass
    async with open_embedded(":memory:", cwd=str(tmp_path)) as client:
        with pytest.raises(InvalidRequest, match="cwd"):
            await client.create_session(cwd=str(tmp_path / ODD))


def test_agentd_names_a_setting_that_is_not_utf8_at_its_start(tmp_path: Path) -> None:
    (tmp_path / ODD).mkdir()
    done = run_agentd(tmp_path / ODD, "--port", "0", "--db", str(tmp_path / "x.db"))
    assert done.returncode == 1
    assert r"caf\xe9 is not UTF-8" in done.stderr
    for flags in ({"db": f"{ODD}/x.db"}, {"workspace_roots": [ODD]}):
        with pytest.raises(ConfigError, match=r"caf\\xe9"):
            load(flags, {})
    with pytest.raises(ConfigError, match=r"caf\\xe9"):
        load({}, {}, f"{ODD}/agentd.toml")
    with pytest.raises(ConfigError, match=r"caf\\xe9"):
        load({}, {"AGENTD_DB": ODD})


@pytest.mark.parametrize("options", [("--port", "0"), ("--doctor",)])
def test_agentd_in_a_removed_directory_says_so(tmp_path: Path, options: tuple[str, ...]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    enter = 'cd "$0" && rmdir "$0" && exec "$@"'
    command = ["sh", "-c", enter, str(gone), sys.executable, "-m", "agentd", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = "agentd: the current directory no longer exists: change to another one\n"
    assert (done.stdout, done.stderr) == ("", said)


@pytest.mark.parametrize("name", [b"", b") R 1 (\xe9", b"a\nb"])
def test_process_command_that_is_not_utf8_is_shown_escaped(name: bytes) -> None:
    code = b"import ctypes, time; ctypes.CDLL(None).prctl(15, %r, 0, 0, 0) if %r else 0; print(flush=True); time.sleep(60)"
    argv = [b"caf\xe9", b"-c", code % (name, name), b"\xff\xfe"]
    with subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            host = this_host()
            [shown] = host.process_tree(process.pid, host.process_start_id(process.pid), 1)
        finally:
            process.kill()
    assert shown.command.startswith(r"caf\xe9 -c")
    assert shown.command.endswith(r"\xff\xfe")
    shown.command.encode()


def test_checks_work_for_a_user_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(_: object) -> None:
        raise KeyError

    codex = tmp_path / "codex"
    codex.write_text("#!/bin/sh\necho codex-cli 0.169.0\n")
    codex.chmod(0o755)
    for name in ("HOME", "CODEX_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    found = Probe()(str(codex), {"PATH": os.defpath})
    assert not found.available
    assert "no home" in str(found.reason)
    assert not Probe()("~/codex", {}).available
    settings = load(
        {"db": str(tmp_path / "no/such/x.db"), "workspace_roots": ["/", "~/work", "~nobody/x"]}, {}
    )
    assert daemon_findings(settings, {"PATH": os.defpath})
    assert isinstance(settings, Settings)


@pytest.mark.parametrize("only_ipv6", [False, True])
def test_url_for_agents_is_one_that_the_daemon_listens_on(only_ipv6: bool) -> None:
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        listener.bind(("::", 0))
        listener.listen()
        for host in ("::", "0:0:0:0:0:0:0:0", "::0", "0::"):
            url = url_of(listener, host)
            assert url.startswith("http://[::1]:" if only_ipv6 else "http://127.0.0.1:")
        name, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((name.strip("[]"), int(port)), timeout=60):
            pass


async def test_agentctl_reads_utf8_in_any_locale(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PATH": os.environ["PATH"]}
    async with serving(tmp_path) as server:
        session = await server.session()
        environ = {**plain, "AGENTCTL_URL": server.url}
        command = [sys.executable, "-m", "agentctl.main", "message", "send", session, "--text"]
        for text, stdin in (("héllo", ""), ("-", "héllo")):
            with anyio.fail_after(60):
                done = await anyio.run_process(
                    [*command, text], env=environ, input=stdin.encode(), check=False
                )
            assert done.returncode == 0, done.stderr
        wrong = await anyio.run_process([*command, os.fsdecode(b"\xe9")], env=environ, check=False)
        assert wrong.returncode == 2
        assert b"text" in wrong.stderr
        answer = await server.client.get(f"/sessions/{session}/messages")
        texts = [one["text"] for one in answer.json()["messages"] if one["role"] == "user"]
        assert texts == ["héllo", "héllo"]
