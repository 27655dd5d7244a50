"""Text, ids and paths with a special meaning for a shell, an option parser or a file system."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from driving import Result, environment, run
from serving import Process, agentd

from agent_orchestrator.runners.codex.argv import exec_argv

NASTY = [
    "-", "--", "-x", "--help", "--version", "--model=evil", "-c", "--config=x",
    "--dangerously-bypass-approvals-and-sandbox", "-rf /", "@file", "@/etc/passwd", "$(id)", "`id`",
    "${HOME}", "$HOME", "a; touch pwned", "a && touch pwned", "a | tee pwned", "> pwned", "*", "~",
    "../../etc/passwd", "..", "/etc/passwd", "%2e%2e%2f", "'", '"', "\\", "a\nb", "a\r\nX: y",
    "{prompt}", "{thread}", "{0}", "%s", "<script>alert(1)</script>", "\x1b]0;x\x07", "ｎ‐ｏ", "\ufeff-x",
    "'; DROP TABLE sessions; --",
]  # fmt: skip
"""A NUL is refused everywhere; see the tests of bad input."""

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], sys.stdin.read(), os.getcwd()]))"

CONFIG = f"""
[providers.stdin]
runner = "command"
argv = {json.dumps([sys.executable, "-c", SHOW, "fixed"])}
output = "text"
[providers.last]
runner = "command"
argv = {json.dumps([sys.executable, "-c", SHOW, "fixed", "--"])}
prompt = "argument"
output = "text"
[providers.option]
runner = "command"
argv = {json.dumps([sys.executable, "-c", SHOW, "--prompt={prompt}", "fixed"])}
prompt = "argument"
output = "text"
[routing]
default = "stdin"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("injection")
    (directory / "agentd.toml").write_text(CONFIG)
    (directory / "root").mkdir()
    options = ("--db", "a.db", "--workspace-root", str(directory / "root"))
    with agentd(directory, *options) as found:
        yield found


@pytest.fixture
def root(daemon: Process) -> Path:
    return daemon.stderr_path.parent / "root"


@pytest.fixture
def client(daemon: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.url, timeout=60) as client:
        yield client


def received(client: httpx.Client, text: str, provider: str, cwd: Path, **more: Any) -> list[Any]:
    """Return the arguments, standard input and directory of an agent that gets a text."""
    made = client.post("/sessions", json={"cwd": str(cwd), "provider": provider, **more})
    assert made.status_code == 201, made.text
    session = made.json()["session"]["id"]
    sent = client.post(f"/sessions/{session}/messages", json={"text": text})
    assert sent.status_code == 201, sent.text
    run = client.get(f"/runs/{sent.json()['run']['id']}/wait", params={"timeout_s": 50}).json()[
        "run"
    ]
    assert run["status"] == "completed", run
    found: list[Any] = json.loads(run["result"]["text"])
    return found


@pytest.mark.parametrize("provider", ["stdin", "last", "option"])
def test_text_is_passed_to_an_agent_unchanged(
    client: httpx.Client, root: Path, provider: str
) -> None:
    cwd = os.path.realpath(root)
    expected = {
        "stdin": lambda text: [["fixed"], text, cwd],
        "last": lambda text: [["fixed", "--", text], "", cwd],
        "option": lambda text: [[f"--prompt={text}", "fixed"], "", cwd],
    }[provider]
    for text in NASTY:
        if provider == "option" and "{" in text:
            continue  # braces have a meaning only in the template itself, see below
        found = received(
            client, text, provider, root, title=text, model=text, metadata={text: text}
        )
        assert found == expected(text), text
    assert sorted(path.name for path in root.iterdir()) == []


def test_placeholder_in_a_text_is_not_expanded(client: httpx.Client, root: Path) -> None:
    for text in ("{prompt}", "{prompt}{prompt}", "{thread}"):
        assert received(client, text, "option", root)[0][0] == f"--prompt={text}"


def test_directory_with_a_special_name_can_be_used(client: httpx.Client, root: Path) -> None:
    for name in NASTY:
        if "/" in name or name == "..":
            continue
        place = root / name
        place.mkdir()
        try:
            assert received(client, "x", "stdin", place) == [
                ["fixed"],
                "x",
                os.path.realpath(place),
            ]
        finally:
            place.rmdir()


def test_directory_outside_the_root_is_refused(client: httpx.Client, root: Path) -> None:
    before = client.get("/sessions").json()
    for cwd in (*NASTY, *(f"{root}/{text}/../../../.." for text in NASTY), f"{root}/../root/.."):
        answer = client.post("/sessions", json={"cwd": cwd})
        assert answer.status_code == 400, (cwd, answer.text)
        assert "cwd" in answer.json()["error"]["details"]["fields"]
    assert client.get("/sessions").json() == before


def test_special_characters_in_ids_are_just_not_found(client: httpx.Client) -> None:
    """An id is only a key of a table: it exists or it does not."""
    for text in NASTY:
        escaped = "".join(f"%{byte:02x}" for byte in text.encode())
        for path in (
            "/sessions/{}",
            "/sessions/{}/events",
            "/runs/{}",
            "/runs/{}/diagnose",
            "/requests/{}",
        ):
            # Not by httpx, which resolves `..` in paths.
            assert raw_status(client, path.format(escaped)) in (400, 404), (text, path)
        for name in ("session_id", "status"):
            answer = client.get("/runs", params={name: text})
            assert answer.status_code in (200, 400, 404), answer.text
            assert not answer.json().get("runs"), (name, text)


def raw_status(client: httpx.Client, path: str) -> int:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", int(client.base_url.port or 0), timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_agentctl_passes_special_text_unchanged(daemon: Process, root: Path) -> None:
    def agentctl(*arguments: str) -> Result:
        return run(arguments, root, environment(AGENTCTL_URL=daemon.url))

    for text in ("--help", "$(id)", "-x", "@/etc/passwd", "a; touch pwned"):
        asked = agentctl("ask", "--provider", "last", "--field", "run.result.text", "--", text)
        assert asked.code == 0, asked.err
        assert asked.json[0] == ["fixed", "--", text]
        assert agentctl("session", "get", f"--session-id={text}").code in (2, 4)
    assert list(root.iterdir()) == []


def test_model_of_codex_cannot_become_another_option() -> None:
    """A text is never a separate argument: the prompt goes by stdin, the rest behind a `=`."""
    plain = exec_argv("codex", model="m", profile=None)
    for text in NASTY:
        found = exec_argv("codex", model=text)
        assert [f"--model={text}" if part == "--model=m" else part for part in plain] == list(found)


def test_directory_is_checked_against_links_that_are_swapped_meanwhile(
    client: httpx.Client, root: Path
) -> None:
    """Whatever a path leads to during the check, an accepted directory is below the root."""
    import threading

    (root / "inside").mkdir()
    outside = root.parent / "outside"
    outside.mkdir()
    swapped, done = root / "swapped", threading.Event()

    def swap() -> None:
        while not done.is_set():
            for target in ("inside", str(outside)):
                fresh = root / f".fresh-{target[-6:]}"
                fresh.symlink_to(target)
                fresh.replace(swapped)

    swapper = threading.Thread(target=swap)
    swapper.start()
    statuses = set()
    try:
        for _ in range(100):
            answer = client.post("/sessions", json={"cwd": str(swapped)})
            statuses.add(answer.status_code)
            if answer.status_code == 201:
                assert answer.json()["session"]["cwd"] == os.path.realpath(root / "inside")
    finally:
        done.set()
        swapper.join()
    assert statuses == {201, 400}
    swapped.unlink()
    (root / "inside").rmdir()
