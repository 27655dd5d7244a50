"""A real agentd with scripted agents, and calls of its API."""

import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from attrs import define
from ports import free_port
from serving import Process, agentd

HERE = Path(__file__).parent

CONFIGURATION = """
[daemon]
max_concurrency = 16

[providers.codex]
runner = "function"
target = "scripted:play"

[providers.claude]
runner = "function"
target = "scripted:play"

[routing]
default = "DEFAULT"
"""

PATIENCE_S = 90.0


@define
class Daemon:
    """An agentd under test."""

    process: Process
    directory: Path
    client: httpx.Client

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def begin(self, script: Sequence[Any], *, text: str = "Begin", **more: Any) -> str:
        """Create a session whose agent plays a script, and return its id."""
        answer = self.post("/sessions", text=text, metadata={"script": list(script)}, **more)
        return str(answer["session"]["id"])

    def begin_long(self, script: Sequence[Any], **more: Any) -> str:
        """Create a session as :meth:`begin` does, with a script that is too long for metadata."""
        file = self.directory / f"script-{os.urandom(4).hex()}.json"
        file.write_text(json.dumps(list(script)))
        return self.begin([["read", str(file)]], **more)

    def wait_idle(self, session_id: str, patience_s: float = PATIENCE_S) -> None:
        self.until(
            lambda: all(
                run["status"] in ("completed", "failed", "canceled")
                for run in self.get("/runs", session_id=session_id, order="newest")["runs"]
            ),
            patience_s,
        )

    def question(self, session_id: str) -> dict[str, Any]:
        """Return the open request of a session, once it has one."""
        found: list[dict[str, Any]] = []

        def is_asked() -> bool:
            found[:] = self.get("/requests", session_id=session_id, status="pending")["requests"]
            return bool(found)

        self.until(is_asked)
        return found[0]

    def events(self, session_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            cursor = found[-1]["seq"] if found else 0
            page = self.get(f"/sessions/{session_id}/events", cursor=cursor, limit=1000)
            found += page["events"]
            if not page["has_more"]:
                return found

    def until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, "the daemon does not get there"
            time.sleep(0.02)


@contextmanager
def daemon_at(
    directory: Path,
    *arguments: str,
    packages: Path | None = None,
    configuration: str = "",
    default: str = "codex",
    verify: str | bool = True,
) -> Iterator[Daemon]:
    """Run a daemon with its files in a directory.

    :param configuration: tables to add to ``agentd.toml``.
    :param default: the provider of sessions that name none.
    :param verify: the file of the authority that made the daemon's certificate.
    :param packages: a folder with another ``agentd`` to run.
    """
    (directory / "agentd.toml").write_text(
        CONFIGURATION.replace("DEFAULT", default) + configuration
    )
    with (
        agentd(
            directory,
            "--db",
            str(directory / "data.db"),
            "--port",
            str(free_port()),  # it may be started again there
            *arguments,
            env={"PYTHONPATH": f"{HERE}:{packages or ''}"},
            through=() if packages is None else ("env",),
        ) as process,
        httpx.Client(
            base_url=process.url,
            timeout=60,
            verify=ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify,
        ) as client,
    ):
        yield Daemon(process, directory, client)
