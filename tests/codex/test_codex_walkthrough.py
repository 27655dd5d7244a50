"""Every command a newcomer is shown, word for word, with the real codex as the default agent."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from attrs import define
from driving import FORKS, finished, wait_until
from forking import AGENTD
from model_server import codex_env
from ports import free_port

pytestmark = [pytest.mark.codex, pytest.mark.timeout(300)]

PATIENCE_S = 240

STARTS = """
./bin/agentd
AGENTD_AUTH_TOKEN=dev-token ./bin/agentd
./bin/agentd --codex-profile mobile
AGENTD_CODEX_PROFILE=mobile ./bin/agentd
./bin/agentd --codex-extra-arg=--verbose --codex-extra-arg=--color --codex-extra-arg never
./bin/agentd --max-concurrency 4
./bin/agentd --auth-token dev-token
./bin/agentd --auth-token token-a --auth-token token-b
AGENTD_AUTH_TOKENS=token-a,token-b ./bin/agentd
"""

COMMANDS = """
export AGENTCTL_AUTH_TOKEN=dev-token
./bin/agentctl daemon status
./bin/agentctl --auth-token dev-token daemon status
AGENTCTL_AUTH_TOKEN=dev-token ./bin/agentctl daemon status
./bin/agentctl session create
SESSION_ID=$(./bin/agentctl --field session.id session create)
./bin/agentctl message send --session-id <SESSION_ID> --text "Respond with exactly: hi"
./bin/agentctl message send --session-id <SESSION_ID> --text "Respond with exactly: hi" --idempotency-key <REQUEST_KEY>
RUN_ID=$(./bin/agentctl --field run.id message send --session-id <SESSION_ID> --text "hi")
./bin/agentctl run wait --run-id <RUN_ID>
./bin/agentctl events list --session-id <SESSION_ID>
timeout -s INT 2 ./bin/agentctl events tail --session-id <SESSION_ID> --follow || [[ $? == 124 || $? == 130 ]]
./bin/agentctl run diagnose --run-id <RUN_ID>
PARENT_RUN_ID=$RUN_ID PARENT_SESSION_ID=$SESSION_ID
./bin/agentctl tool session-spawn --parent-run-id <PARENT_RUN_ID> --task "..."
SPAWN=$(./bin/agentctl tool session-spawn --parent-run-id <PARENT_RUN_ID> --task "Ask for approval before risky actions")
CHILD_SESSION_ID=$(printf '%s' "$SPAWN" | python3 -c 'import json,sys; print(json.load(sys.stdin)["session"]["id"])')
CHILD_RUN_ID=$(printf '%s' "$SPAWN" | python3 -c 'import json,sys; print(json.load(sys.stdin)["run"]["id"])')
./bin/agentctl tool session-wait --run-id <CHILD_RUN_ID>
./bin/agentctl tool session-reply-parent --run-id "$CHILD_RUN_ID" --request-kind approval_request --text "Need approval to run: rm -rf ./tmp-cache"
./bin/agentctl tool session-reply-parent --run-id <CHILD_RUN_ID> --text "Need approval to run: <command>" --request-kind approval_request
./bin/agentctl tool session-reply-parent --run-id <CHILD_RUN_ID> --text "Need approval to run: <command>" --request-kind approval_request --idempotency-key <REQUEST_KEY>
./bin/agentctl events list --session-id <PARENT_SESSION_ID>
./bin/agentctl tool session-send --session-id <CHILD_SESSION_ID> --text "..."
./bin/agentctl tool session-send --session-id "$CHILD_SESSION_ID" --text "Approved. Proceed with cleanup only in ./tmp-cache."
./bin/agentctl --format json session create
./bin/agentctl --format json daemon status
./bin/agentctl --field session.id session create
./bin/agentctl --field run.id message send --session-id <SESSION_ID> --text "hi"
./bin/agentctl --field alive_workers daemon status
./bin/agentctl --field queue_counts.queued_count daemon status
./bin/agentctl --field diagnostics.worker_id run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.worker_alive run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.alive_workers run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.max_concurrency run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.queue_counts.queued_count run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.queue_position run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.likely_issue run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.active_pid run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.codex_invocation.profile run diagnose --run-id <RUN_ID>
./bin/agentctl --field diagnostics.codex_invocation.extra_args run diagnose --run-id <RUN_ID>
"""


@define
class Newcomer:
    """A directory with the commands, and an environment in which codex is found."""

    directory: Path
    env: Mapping[str, str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def typing(self, line: str) -> Iterator["subprocess.Popen[str]"]:
        """Have a line going, until this scope is left."""
        with (self.directory / "daemon.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", re.sub(r"\./bin/agentd", "exec ./bin/agentd", line)],
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()
                process.wait()

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def ended_badly(self) -> str:
        """Return the runs that did not complete, and the end of the daemon's log."""
        headers = {"Authorization": "Bearer dev-token"}
        reply = httpx.get(f"{self.url}/runs", headers=headers, trust_env=False)
        runs = [run for run in reply.json()["runs"] if run["status"] != "completed"]
        return (
            f"{json.dumps(runs, indent=1)}\n{(self.directory / 'daemon.log').read_text()[-2000:]}"
        )


def newcomer(directory: Path, codex: str, home: Path) -> Newcomer:
    directory.mkdir()
    (directory / "bin").mkdir()
    AGENTD.put(directory / "bin" / "agentd")
    FORKS.put(directory / "bin" / "agentctl")
    (directory / "path").mkdir()
    (directory / "path" / "codex").symlink_to(codex)
    port = free_port()
    env = {
        **codex_env(home),
        "PATH": f"{directory / 'path'}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "AGENTD_PORT": str(port),
        "AGENTD_GRACE_S": "0",
        "AGENTCTL_URL": f"http://127.0.0.1:{port}",
    }
    return Newcomer(directory, env, port)


def test_every_documented_way_to_start_agentd_works(tmp_path: Path, codex: str, home: Path) -> None:
    lines = STARTS.split("\n")[1:-1]
    with ExitStack() as stack:
        started = []
        for number, line in enumerate(lines):
            one = newcomer(tmp_path / str(number), codex, home)
            started.append((line, one, stack.enter_context(one.typing(line))))
        for line, one, process in started:
            wait_until(lambda one=one, process=process: one.answers() or process.poll() is not None)
            told = (one.directory / "daemon.log").read_text()
            assert process.poll() is None, f"{line}: {told}"
            assert (one.directory / ".data" / "agent-orchestrator.db").exists()
            # Everything but the health needs the token, where there is one.
            open_ = httpx.get(f"{one.url}/daemon/status", trust_env=False)
            assert open_.status_code == (401 if "TOKEN" in line or "token" in line else 200)
            for token in re.findall(r"(?:dev-token|token-[ab])", line):
                headers = {"Authorization": f"Bearer {token}"}
                told_status = httpx.get(
                    f"{one.url}/daemon/status", headers=headers, trust_env=False
                ).json()
                assert told_status["max_concurrency"] == told_status["alive_workers"] == 4


def test_every_documented_command_works(tmp_path: Path, codex: str, home: Path) -> None:
    one = newcomer(tmp_path / "first", codex, home)
    script = COMMANDS.replace("<command>", "rm -rf ./tmp-cache").replace("<REQUEST_KEY>", "key-1")
    script = re.sub(r"<(\w+)>", r'"$\1"', script)
    lines = [f"echo {line.split(' ')[0]!r} >&2\n{line}" for line in script.strip().split("\n")]
    with one.typing("AGENTD_AUTH_TOKEN=dev-token ./bin/agentd --codex-profile mobile"):
        wait_until(one.answers)
        done = finished(
            ["bash", "-c", "\n".join(["set -euxo pipefail", *lines])],
            PATIENCE_S,
            cwd=one.directory,
            env=one.env,
            text=True,
        )
        assert done.returncode == 0, f"{one.ended_badly()}\n{done.stderr[-3000:]}"
    profile, extra_args = done.stdout.splitlines()[-2:]
    assert (profile, extra_args) == ("mobile", "[]")
