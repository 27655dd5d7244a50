"""The live screen: what it shows follows what happens, and its keys answer what is asked."""

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from driving import COMMAND, PATIENCE_S, Ctl, Daemon, environment, running, started

from agent_orchestrator.domain.model import Request
from agent_orchestrator.testing.stores.samples import a_request, a_run
from agentctl.dashboard import MIN_VIEW_S, Dashboard
from agentctl.tables import Style
from agentctl.terminal import width

AGENTS = """
import anyio

async def approval(context):
    asked = await context.ask_parent(
        f"May I delete {context.prompt}?", kind="approval_request",
        detail={"files": [f"file {n}" for n in range(int(context.prompt))]},
    )
    return asked.status

async def words(context):
    asked = await context.ask_parent("Which port?")
    return str(asked.answer)

async def busy(context):
    await context.emit("agent.message", {"text": "counting sheep \\x1b]0;stolen\\x07"})
    await anyio.sleep_forever()
"""

CONFIG = (
    "".join(
        f'[providers.{name}]\nrunner = "function"\ntarget = "top_agents:{name}"\n'
        for name in ("approval", "words", "busy")
    )
    + '[routing]\ndefault = "busy"\n'
)


@define
class Terminal:
    """A program on a terminal, and what stands on its screen."""

    process: "subprocess.Popen[bytes]"
    descriptor: int
    rows: list[str] = field(factory=lambda: [""] * 200)
    raw: str = ""
    _decoder: codecs.IncrementalDecoder = field(factory=codecs.getincrementaldecoder("utf-8"))
    _rest: str = ""
    """What came of a line that has not come whole: a terminal gives 4 KiB at most at a time."""

    def read(self, seconds: float = 0.05) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], seconds)
        if not ready:
            return False
        try:
            chunk = os.read(self.descriptor, 65536)
        except OSError:  # Linux tells so of a terminal whose program has ended
            return False
        said = self._decoder.decode(chunk)
        self.raw += said
        self._rest += said
        end = 0
        for found in re.finditer(r"\x1b\[(\d+);1H(.*?)\x1b\[K", self._rest, re.DOTALL):
            self.rows[int(found[1]) - 1] = re.sub(r"\x1b\[[0-9;]*m", "", found[2])
            end = found.end()
        self._rest = self._rest[end:]
        return bool(chunk)

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"never: {what}\n{self.text}\n{self.raw[-2000:]}"
            self.read()

    def wait(self) -> int:
        """Wait for the program's end; what it has yet to say must be read for that."""
        self.until(lambda: self.process.poll() is not None, "its end")
        return int(self.process.returncode)

    def shows(self, text: str) -> None:
        self.until(lambda: text in self.text, text)

    def press(self, keys: str, until: Callable[[], Any], what: str) -> None:
        """Press until it has worked: what has only just come into view is not answered."""
        end = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < end, f"never: {what}\n{self.text}"
            os.write(self.descriptor, keys.encode())
            stop = time.monotonic() + 0.3
            while time.monotonic() < stop and not until():
                self.read()


@contextmanager
def top(ctl: Ctl, *, rows: int = 40, columns: int = 110) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    try:
        with started(
            [*COMMAND, "top"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(AGENTCTL_URL=ctl.url, TERM="xterm-256color"),
        ) as process:
            yield Terminal(process, master)
    finally:
        os.close(master)
        os.close(slave)


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    (tmp_path / "top_agents.py").write_text(AGENTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "crew.toml").write_text(CONFIG)
    yield from running(tmp_path, "--config", "crew.toml", "--max-concurrency", "2")


def begin(ctl: Ctl, provider: str, text: str, title: str) -> str:
    session = ctl.field("session.id", "session", "create", "--provider", provider, "--title", title)
    return ctl.field("run.id", "message", "send", "--session-id", session, "--text", text)


def status(ctl: Ctl, run: str) -> str:
    return ctl.field("run.status", "run", "get", run)


def test_it_shows_what_happens_as_it_happens(crew: Daemon) -> None:
    with top(crew.ctl) as terminal:
        terminal.shows("no active or queued runs")
        terminal.shows("0 of 2 workers busy")
        run = begin(crew.ctl, "busy", "x", "count them")
        terminal.shows("1 of 2 workers busy")
        terminal.shows(run)
        terminal.shows("count them")
        terminal.shows("counting sheep")
        assert "stolen" not in terminal.text, "what an agent says is not obeyed"
        begin(crew.ctl, "busy", "x", "two")
        begin(crew.ctl, "busy", "x", "three")
        terminal.shows("2 of 2 workers busy · 1 queued")
        crew.ctl("run", "cancel", run)
        terminal.until(lambda: run not in terminal.text, "the run's end")
        os.write(terminal.descriptor, b"q")
        assert terminal.wait() == 0


def test_one_key_approves_denies_and_answers(crew: Daemon) -> None:
    ctl = crew.ctl
    first = begin(ctl, "approval", "2", "asks")
    with top(ctl) as terminal:
        terminal.shows("May I delete 2?")
        terminal.shows("file 1")
        terminal.press("a", lambda: "is approved" in terminal.text, "the approval")
        assert ctl.field("run.result.text", "run", "wait", first) == "approved"
        second = begin(ctl, "approval", "2", "asks")
        terminal.shows("1 asked")
        terminal.press("d", lambda: "is denied" in terminal.text, "the denial")
        assert ctl.field("run.result.text", "run", "wait", second) == "denied"
        third = begin(ctl, "words", "x", "asks")
        terminal.shows("Which port?")
        terminal.press("r", lambda: "enter sends" in terminal.text, "the line to type on")
        os.write(terminal.descriptor, b"80801\x7f\r")
        terminal.shows("is answered")
        assert ctl.field("run.result.text", "run", "wait", third) == "8080"


def test_what_was_not_seen_cannot_be_approved(crew: Daemon) -> None:
    run = begin(crew.ctl, "approval", "60", "asks")
    with top(crew.ctl, rows=24) as terminal:
        terminal.shows("more lines: space")
        terminal.press("a", lambda: "press space to read the rest" in terminal.text, "the refusal")
        assert status(crew.ctl, run) == "waiting"
        terminal.press(" ", lambda: "kind     approval" in terminal.text, "its end")
        terminal.press("a", lambda: "is approved" in terminal.text, "the approval")


def test_it_outlives_a_restart(crew: Daemon) -> None:
    with top(crew.ctl) as terminal:
        terminal.shows("no active")
        crew.end(signal.SIGKILL)
        terminal.shows("connection lost")
        crew.start()
        terminal.shows("connected again")
        begin(crew.ctl, "busy", "x", "back again")
        terminal.shows("back again")


def test_it_says_that_the_daemon_drains_and_that_it_is_gone(crew: Daemon) -> None:
    crew.end()
    crew.options += ("--grace-s", "60")
    crew.start()
    begin(crew.ctl, "busy", "x", "takes its time")
    with top(crew.ctl) as terminal:
        terminal.shows("takes its time")
        assert " ok " in terminal.rows[0]
        assert crew.process is not None
        crew.process.send_signal(signal.SIGTERM)
        terminal.until(lambda: " draining " in terminal.rows[0], "that it drains")
        crew.end()
        terminal.until(lambda: " unreachable " in terminal.rows[0], "that it is gone")
        crew.start()
        terminal.until(lambda: " ok " in terminal.rows[0], "that it is there again")
    crew.end(signal.SIGKILL)  # its agent takes longer than the test


@pytest.mark.parametrize("ending", ["q", "interrupt"])
def test_the_terminal_is_given_back(crew: Daemon, ending: str) -> None:
    with top(crew.ctl) as terminal:
        before = None
        terminal.shows("no active")
        during = termios.tcgetattr(terminal.descriptor)
        assert not during[3] & termios.ICANON
        if ending == "q":
            os.write(terminal.descriptor, b"q")
        else:
            terminal.process.send_signal(signal.SIGINT)
        code = terminal.wait()
        while terminal.read():
            pass
        assert code == (0 if ending == "q" else 130)
        before = termios.tcgetattr(terminal.descriptor)
        assert before[3] & termios.ICANON
        assert before[3] & termios.ECHO
        assert terminal.raw.rstrip().endswith("\x1b[?1049l")


def test_without_a_terminal_it_says_what_else_there_is(ctl: Ctl) -> None:
    for arguments in (("top",), ("top", "--format", "json")):
        done = ctl(*arguments)
        assert done.code == 2
        assert "run list" in done.err


def test_an_unreachable_daemon_is_told_on_the_terminal_as_it_was(tmp_path: Path) -> None:
    with top(Ctl("http://127.0.0.1:1", tmp_path)) as terminal:
        assert terminal.wait() == 3
        while terminal.read():
            pass
        left = terminal.raw.split("\x1b[?1049l")[1]
        assert "agentd" in left


# --- the picture, without a terminal ----------------------------------------------------------

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def request(text: str = "May I?", **more: Any) -> Request:
    made = a_request(a_run("ses_1"))
    return evolve(
        made,
        text=text,
        created_at=NOW,
        expires_at=NOW + timedelta(hours=1),
        status="pending",
        **more,
    )


def drawn(board: Dashboard, rows: int = 30, columns: int = 80, now: float = 100.0) -> list[str]:
    return board.render(Style(columns=columns), rows, NOW, now)


def test_a_key_does_not_answer_what_came_under_the_finger() -> None:
    first, second = request("First?"), request("Second?")
    board = Dashboard("http://x", requests=[first, second])
    board.settle()
    drawn(board, now=100.0)
    board.requests = [second]  # somebody else answered the first
    board.settle()
    drawn(board, now=110.0)
    assert board.handle_key("a", 110.1) is None
    answer = board.handle_key("a", 110.0 + MIN_VIEW_S)
    assert answer is not None
    assert (answer.request, answer.decision) == (second, "approve")


def test_the_kind_of_answer_fits_the_question() -> None:
    board = Dashboard("http://x", requests=[request(kind="input_request")])
    board.settle()
    drawn(board, now=1.0)
    assert board.handle_key("a", 9.0) is None
    assert "needs an answer in words" in board.notice
    board.handle_key("r", 9.0)
    for key in ("q", "a", "escape"):  # a word that is typed is no command
        assert board.handle_key(key, 9.0) is None
    assert board.typing is None


@pytest.mark.parametrize("rows", [8, 12, 24, 60])
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_it_fits(rows: int, columns: int) -> None:
    board = Dashboard("http://x", requests=[request("long " * 200), request("漢字" * 100)])
    board.settle()
    for _ in range(5):
        lines = drawn(board, rows, columns)
        assert len(lines) <= rows
        board.handle_key(" ", 1.0)
    text = [line for line in drawn(board, 60, columns) if "req_" not in line]
    assert all(width(line) <= columns for line in text)
