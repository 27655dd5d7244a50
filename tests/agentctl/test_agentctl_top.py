"""The live screen: what it shows follows what happens, and its keys answer what is asked."""

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from driving import COMMAND, PATIENCE_S, Ctl, Daemon, environment, started
from screens import Stage, crew, on_stage
from textual.widgets import OptionList

from agentctl.connection import DaemonConnection
from agentctl.screens import question_panel
from agentctl.screens.chat import ChatScreen
from agentctl.screens.question_panel import QuestionPanel
from agentctl.screens.top import TopApp, TopScreen


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    yield from crew(tmp_path, monkeypatch)


def top(daemon: Daemon, play: Any, *, root: str | None = None, size: Any = (80, 24)) -> TopApp:
    async def make(connection: Any, output: Any) -> TopApp:
        found = None if root is None else await connection.client().get_session(root)
        return TopApp(connection, output, found)

    app = on_stage(daemon, make, play, size)
    assert isinstance(app, TopApp)
    return app


def begin(ctl: Ctl, provider: str, text: str, title: str) -> str:
    session = ctl.field("session.id", "session", "create", "--provider", provider, "--title", title)
    return ctl.field("run.id", "message", "send", "--session-id", session, "--text", text)


def selected(stage: Stage) -> str | None:
    option = stage.find(OptionList).highlighted_option
    return None if option is None else option.id


async def call(function: Any, *arguments: Any) -> Any:
    return await anyio.to_thread.run_sync(function, *arguments)


def test_a_run_that_starts_while_top_reads_its_lists_shows_its_activity(daemon: Daemon) -> None:
    ctl = daemon.ctl

    async def play(stage: Stage) -> None:
        await stage.shows("agentd ok · 0 of ", "0 queued")
        connection, screen = stage.app.connection, stage.app.screen
        assert isinstance(screen, TopScreen)
        begun: list[str] = []

        async def held_up(operation: Any, **values: Any) -> Any:
            reply = await DaemonConnection.call(connection, operation, **values)
            if values.get("status") == "queued" and not begun:
                begun.append("")
                begun.append(await call(begin, ctl, "waits", "x", "later"))
                await stage.until(lambda: begun[1] in screen._doing, "its event")
            return reply

        with patch.object(connection, "call", held_up):
            ctl("session", "create")
            await stage.shows("later", "at work")
        await call(ctl, "run", "cancel", begun[1])
        await stage.hides("at work")

    top(daemon, play)


def test_top_updates_while_runs_change(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    ctl = daemon.ctl
    monkeypatch.setattr("agentctl.screens.top.CONFIRM_S", PATIENCE_S)  # however slow the machine is

    async def play(stage: Stage) -> None:
        await stage.shows("agentd ok · 0 of ", "0 queued")
        run = await call(begin, ctl, "waits", "x", "count [b]them[/b]")
        await stage.shows("1 of ", "count [b]them[/b]", "at work")
        await stage.pilot.press("down")
        await stage.shows(run, "waits", "running, attempt 1")
        await stage.pilot.press("c")
        await stage.shows(f"c again cancels {run}")
        await stage.pilot.press("c")
        await stage.shows("0 of ")
        assert selected(stage) is None
        await stage.pilot.press("f")
        await stage.shows("canceled  ", "count [b]them[/b]")
        await stage.pilot.press("f")
        await stage.hides("count [b]them[/b]")

    top(daemon, play)


def test_a_request_shows_its_path_directory_and_command_and_is_answered(daemon: Daemon) -> None:
    run = begin(daemon.ctl, "asks", "rm -r build", "cleaner")

    async def play(stage: Stage) -> None:
        await stage.shows("? asks", "cleaner", "Run: rm -r build", "1 asked")
        assert selected(stage) is None, "nothing is selected by itself"
        assert not stage.find(QuestionPanel).display
        await stage.pilot.press("down")
        await stage.shows("? cleaner asks · expires in 59 min", str(daemon.directory)[:40])
        await stage.shows("$ rm -r build", "in /work", "allows all of [red]rm[/red]", "d deny")
        await stage.press("w", lambda: "enter sends, escape cancels" in stage.text, "the line")
        await stage.type("q c a", "enter")
        await stage.shows("is denied")

    top(daemon, play, size=(100, 30))
    assert daemon.ctl.field("run.result.text", "run", "wait", run) == "denied no q c a"


def test_after_an_answer_the_next_request_is_not_selected(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(daemon.ctl, "asks", "one", "first")
    begin(daemon.ctl, "asks", "two", "second")

    async def play(stage: Stage) -> None:
        await stage.shows("2 asked", "Run: one", "Run: two")
        await stage.pilot.press("down")
        await stage.shows("? first asks")
        await stage.press("a", lambda: "is approved" in stage.text, "the answer")
        await stage.shows("1 asked")
        await stage.pilot.press("a", "a")
        assert selected(stage) is None
        assert not stage.find(QuestionPanel).display
        monkeypatch.setattr(question_panel, "SEEN_S", 1e6)  # however slow the machine is
        await stage.pilot.press("down", "a")
        await stage.shows("read it first")
        page = await stage.client.requests(status="pending")
        assert [one.text for one in page.requests] == ["Run: two"]

    top(daemon, play, size=(100, 30))
    assert daemon.ctl.field("run.result.text", "run", "wait", first) == "approved yes None"


def test_top_opens_a_run_in_the_chat_and_returns(daemon: Daemon) -> None:
    begin(daemon.ctl, "waits", "begin", "mine")

    async def play(stage: Stage) -> None:
        await stage.shows("mine")
        await stage.pilot.press("down", "enter")
        await stage.until(lambda: isinstance(stage.app.screen, ChatScreen), "the conversation")
        await stage.shows("› begin", "at work", "● working")
        await stage.type("/cancel", "enter")
        await stage.shows("■ canceled")
        await stage.pilot.press("escape")
        await stage.until(lambda: isinstance(stage.app.screen, TopScreen), "the list")
        await stage.hides("mine")

    top(daemon, play)


def test_top_can_show_one_tree_only(daemon: Daemon) -> None:
    ctl = daemon.ctl
    begin(ctl, "waits", "x", "other")
    begin(ctl, "waits", "x", "mine")
    root = next(
        one["id"] for one in ctl("session", "list", "--format", "json").json["sessions"]
        if one["title"] == "mine"
    )  # fmt: skip
    task = ("--task", "x", "--title", "child")
    spawned = ctl("tool", "session-spawn", "--parent-session-id", root, *task)
    assert spawned.code == 0, spawned

    async def play(stage: Stage) -> None:
        await stage.shows("only mine", "mine › child")
        assert "other" not in stage.text
        await stage.pilot.press("t")
        await stage.shows("other")
        await stage.pilot.press("down", "t")
        await stage.shows("only ")

    top(daemon, play, root=root)


def test_terminal_controls_and_markup_in_a_request_are_shown_as_text(daemon: Daemon) -> None:
    begin(daemon.ctl, "hostile", "x", "[@click=app.quit]\x1b[2Jtitle")

    async def play(stage: Stage) -> None:
        await stage.shows("[@click=app.quit]title", "1 asked")
        await stage.pilot.press("down")
        await stage.shows("^[]0;stolen^G^[[2J[red]not red[/red]")
        assert not [one for one in stage.text if ord(one) < 32 and one != "\n"]

    top(daemon, play)


@pytest.mark.parametrize("size", [(50, 18), (80, 24), (140, 40)])
def test_top_fits_the_size_of_the_terminal(daemon: Daemon, size: tuple[int, int]) -> None:
    begin(daemon.ctl, "asks", "long " * 300, "漢字" * 60)

    async def play(stage: Stage) -> None:
        await stage.shows("asks")
        await stage.pilot.press("down")
        await stage.shows("a approve", "w deny with words", "space: more")
        await stage.pilot.resize_terminal(size[0] + 20, size[1])
        await stage.shows("w deny with words", "space: more")
        await stage.press("space", lambda: "space: more" not in stage.text, "its end")

    top(daemon, play, size=size)


def test_top_survives_a_daemon_restart_and_shows_its_state(daemon: Daemon) -> None:
    daemon.end()
    daemon.options += ("--grace-s", "60")
    daemon.start()
    begin(daemon.ctl, "waits", "x", "takes its time")

    async def play(stage: Stage) -> None:
        await stage.shows("agentd ok", "takes its time")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        await stage.shows("agentd draining")
        daemon.process.send_signal(signal.SIGKILL)
        await call(daemon.end)
        await stage.shows("agentd unreachable", "connection lost")
        await call(daemon.start)
        await stage.shows("connected again", "agentd ok")
        await call(begin, daemon.ctl, "waits", "x", "back again")
        await stage.shows("back again")

    top(daemon, play)
    daemon.end(signal.SIGKILL)  # its agent takes longer than the test


@pytest.mark.parametrize("ending", ["q", "interrupt"])
def test_top_restores_the_terminal(ctl: Ctl, ending: str) -> None:
    code, out = played(ctl, b"q workers" if ending == "q" else None)
    assert code == (0 if ending == "q" else 130), out
    assert "Traceback" not in out
    assert "\x1b[?1049h" in out.split("\x1b[?1049l")[0]


def test_an_unreachable_daemon_is_reported_after_the_screen_is_restored(tmp_path: Path) -> None:
    code, out = played(Ctl("http://127.0.0.1:1", tmp_path), b"")
    assert code == 3
    assert "cannot reach" in out.split("\x1b[?1049l")[1]


def played(ctl: Ctl, keys: bytes | None) -> tuple[int, str]:
    """Run top on a terminal until it shows the daemon, type or interrupt, and return its end."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    env = environment(AGENTCTL_URL=ctl.url, TERM="xterm-256color")
    out = b""
    try:
        before = termios.tcgetattr(slave)
        with started(
            [*COMMAND, "top"], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=ctl.cwd
        ) as process:
            end = time.monotonic() + PATIENCE_S
            is_done = False
            while time.monotonic() < end:
                ready, _, _ = select.select([master], [], [], 0.05)
                if ready:
                    out += os.read(master, 65536)
                elif process.poll() is not None:
                    break
                if b"queued" in out and not is_done:
                    is_done = True
                    if keys is None:
                        process.send_signal(signal.SIGINT)
                    else:
                        os.write(master, keys)
            code = process.wait(1)
        assert termios.tcgetattr(slave) == before
        return code, out.decode()
    finally:
        os.close(master)
        os.close(slave)
