"""The conversation on a full screen: what it shows, what it sends, and what it outlives."""

import base64
import os
import pty
import re
import select
import signal
import stat
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from driving import COMMAND, PATIENCE_S, Ctl, Daemon, environment, finished, started
from pictures import RED
from screens import Stage, crew, on_stage
from textual.content import Content

from agent_orchestrator.domain.model import Session
from agentctl.screens import question_panel
from agentctl.screens.chat import PAGE, ChatApp, ChatScreen
from agentctl.screens.composer import Composer, History, image_at
from agentctl.screens.entries import Card, Entry
from agentctl.screens.text import MAX_LINES, bounded, shortened
from agentctl.screens.transcript import Transcript

PNG = RED.data


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    yield from crew(tmp_path, monkeypatch)


def chat(daemon: Daemon, play: Any, *, session: str | None = None, **options: Any) -> ChatApp:
    size = options.pop("size", (80, 24))

    async def make(connection: Any, output: Any) -> ChatApp:
        found: Session | None = None
        if session is not None:
            found = await connection.client().get_session(session)
        return ChatApp(connection, output, found, options)

    app = on_stage(daemon, make, play, size)
    assert isinstance(app, ChatApp)
    return app


def session_of(stage: Stage) -> str:
    screen = stage.app.screen
    assert isinstance(screen, ChatScreen)
    return screen.id_of_session


async def said(stage: Stage) -> list[str]:
    """What the user has said in the session."""
    page = await stage.client.list_messages(session_id=session_of(stage))
    return [one.text for one in page.messages if one.role == "user"]


def test_a_turn_is_shown_with_its_tools_changes_plan_and_usage(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("look around", "enter")
        await stage.shows("› look around", "✓ $ ls [b]x[/b]  done, exit 0  · 2 lines")
        await stage.shows("✎ changed a.py  +1 -1", "-old", "+new", "☰ plan", "▸ answer")
        await stage.shows("✓ completed after", "1,200 tokens in, 34 out")
        assert "Here is a <List>" in stage.text, "Markdown is shown, HTML is text"
        assert "line one" not in stage.text
        assert "second thought" not in stage.text
        await stage.pilot.press("ctrl+o")
        await stage.shows("line one", "second thought")
        await stage.pilot.press("ctrl+o")
        await stage.hides("line one")
        await stage.pilot.press("ctrl+up", "ctrl+up", "enter")
        await stage.shows("line one")
        await stage.pilot.press("escape")
        assert isinstance(stage.app.focused, Composer)
        session = await stage.client.get_session(session_of(stage))
        assert session.title == "look around"

    chat(daemon, play, size=(80, 40))


def test_a_refused_first_message_leaves_no_session_and_is_not_lost(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("one\ntwo", "enter")
        await stage.shows("nowhere")
        await stage.until(lambda: stage.find(Composer).text == "one\ntwo", "the text")
        assert (await stage.client.list_sessions()).sessions == ()

    app = chat(daemon, play, provider="nowhere")
    assert app.chat.session is None


# --- requests -------------------------------------------------------------------------------------


def test_an_option_answers_a_request(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("rm -r build", "enter")
        await stage.shows("? rm -r build asks", "$ rm -r build", "in /work")
        await stage.shows("Allow for this session allows all of [red]rm[/red] in this session")
        await stage.shows("a approve", "s approve for the session", "d deny")
        await stage.shows("tab answers", "? waiting for an answer")
        await stage.type("sa")
        assert stage.find(Composer).text == "sa", "what is typed is for the composer"
        await stage.pilot.press("tab")
        await stage.press("s", lambda: "approved always" in stage.text, "the answer")
        assert isinstance(stage.app.focused, Composer)
        await stage.answered()

    chat(daemon, play, provider="asks", size=(100, 40))


def test_a_key_typed_before_the_request_appeared_is_ignored(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("first", "enter")
        first = await stage.asked("Run: first")
        await stage.pilot.press("tab")
        await stage.press("a", lambda: "approved yes" in stage.text, "the answer")
        await stage.answered()
        await stage.type("second", "enter")
        assert await stage.asked("Run: second") != first
        monkeypatch.setattr(question_panel, "SEEN_S", 1e6)  # however slow the machine is
        await stage.pilot.press("tab", "a")  # too early to have been read
        await stage.shows("read it first")
        found = await stage.client.requests(session_id=session_of(stage), status="pending")
        assert len(found.requests) == 1

    chat(daemon, play, provider="asks")


def test_a_denial_can_have_a_text(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("rm", "enter")
        await stage.shows("w deny with words")
        await stage.pilot.press("tab")
        await stage.press("w", lambda: "enter sends, escape cancels" in stage.text, "the line")
        await stage.type("not a s d of these", "escape")
        await stage.press("w", lambda: "enter sends, escape cancels" in stage.text, "the line")
        await stage.type("use git clean", "enter")
        await stage.shows("denied no use git clean")

    chat(daemon, play, provider="asks")


def test_a_question_is_answered_by_an_option_or_text(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("x", "enter")
        await stage.shows("1 8080", "r answer in words")
        await stage.pilot.press("tab")
        await stage.press("r", lambda: "enter sends, escape cancels" in stage.text, "the line")
        await stage.type("7 1", "enter")
        await stage.shows("port 7 1")
        await stage.answered()
        await stage.type("x", "enter")
        await stage.asked("1 8080")
        await stage.pilot.press("tab")
        await stage.press("2", lambda: "port 9090" in stage.text, "the answer")

    chat(daemon, play, provider="port")


def test_a_late_answer_shows_who_decided_first(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("rm", "enter")
        await stage.asked("? rm asks")
        page = await stage.client.requests(session_id=session_of(stage), status="pending")
        request = page.requests[0]
        await stage.client.resolve_request(request.id, "deny")
        await stage.shows(f"request {request.id} denied")
        await stage.answered()
        await stage.app.decide(request, {"decision": "approve"})
        await stage.shows("already")

    chat(daemon, play, provider="asks", size=(100, 30))


def test_a_question_too_long_for_the_screen_is_read_to_its_end_first(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        composer = stage.find(Composer)
        composer.text = "\n".join(f"line {number}" for number in range(40))
        await stage.pilot.press("enter")
        await stage.shows("space: more")
        assert "│ line 39" not in stage.text
        await stage.pilot.press("tab")
        await stage.press("a", lambda: "press space to read the rest" in stage.text, "the refusal")
        await stage.press("space", lambda: "space: more" not in stage.text, "the end of it")
        await stage.press("a", lambda: "approved yes" in stage.text, "the answer")

    chat(daemon, play, provider="asks")


def test_several_questions_are_answered_one_after_the_other(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("x", "enter")
        await stage.asked("Which colour?", "Which size?", "- red: like fire")
        await stage.pilot.press("tab")
        await stage.press("r", lambda: "Which colour?: enter sends" in stage.text, "the first")
        await stage.type("red", "enter")
        await stage.shows("Which size?: enter sends")
        await stage.type("large", "enter")
        await stage.shows('{"colour":"red","size":"large"}')

    chat(daemon, play, provider="several")


def test_allowing_for_good_needs_a_typed_yes(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("x", "enter")
        await stage.asked("l Always")
        await stage.pilot.press("tab")
        await stage.press("l", lambda: "this allows everything; type yes" in stage.text, "the line")
        await stage.type("no", "enter")
        await stage.press("l", lambda: "this allows everything; type yes" in stage.text, "the line")
        await stage.type("yes", "enter")
        await stage.shows("approved ever")

    chat(daemon, play, provider="lasting")


# --- while the agent works --------------------------------------------------------------------


def test_a_message_is_queued_steers_or_interrupts(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("begin", "enter")
        await stage.shows("at work", "queue: after this turn")
        await stage.type("later", "enter")
        await stage.shows("1 queued")
        await stage.pilot.press("shift+tab")
        await stage.shows("steer: into this turn")
        await stage.type("now", "enter")
        await stage.shows("steered: now")
        await stage.until(lambda: stage.text.count("at work") == 2, "the second turn")
        await stage.shows("● working")
        await stage.pilot.press("shift+tab")
        await stage.shows("interrupt: instead of this turn")
        await stage.type("instead", "enter")
        await stage.shows("■ canceled")
        assert await said(stage) == ["begin", "later", "now", "instead"]

    chat(daemon, play, provider="steered", size=(80, 50))


def test_quitting_leaves_the_run_and_slash_cancel_cancels_it(daemon: Daemon) -> None:
    async def quits(stage: Stage) -> None:
        await stage.type("begin", "enter")
        await stage.shows("● working")
        await stage.pilot.press("ctrl+c")
        await stage.shows("ctrl+c again quits; the run goes on")
        await stage.pilot.press("ctrl+c")

    app = chat(daemon, quits, provider="waits")
    assert app.chat.session is not None
    (run,) = app.chat.runs
    assert daemon.ctl.field("run.status", "run", "get", run) == "running"

    async def cancels(stage: Stage) -> None:
        await stage.shows("● working", "at work")
        await stage.type("/cancel", "enter")
        await stage.shows("■ canceled", "idle")
        await stage.type("/cancel", "enter")
        await stage.shows("no run to cancel")
        await stage.pilot.press("ctrl+d")

    chat(daemon, cancels, session=app.chat.session.id)


def test_chat_survives_a_daemon_restart_and_a_resize(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("begin", "enter")
        await stage.shows("at work")
        await stage.pilot.resize_terminal(50, 18)
        await anyio.to_thread.run_sync(daemon.end, signal.SIGKILL)
        await stage.shows("connection lost")
        await anyio.to_thread.run_sync(daemon.start)
        await stage.shows("connected again")
        await stage.shows("worker_lost")
        await stage.pilot.resize_terminal(140, 40)
        await stage.shows("› begin")
        assert stage.text.count("› begin") == 1, "nothing is shown twice"
        await stage.type("go on", "enter")
        await stage.until(lambda: stage.text.count("at work") == 2, "the next turn")

    chat(daemon, play, provider="waits")


# --- children -------------------------------------------------------------------------------------


def test_a_child_is_spawned_asks_with_its_path_and_is_opened(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.shows("boss")
        await stage.type("/spawn dig a hole", "enter")
        await stage.shows("↳ spawned", "? boss › ", "Run: dig a hole")
        child = (await stage.client.list_sessions(parent_session_id=parent)).sessions[0]
        await stage.shows(f"? boss › {child.title or child.id} asks")
        await stage.pilot.press("ctrl+up", "enter")
        await stage.shows("◂ escape goes back")
        assert session_of(stage) == child.id
        await stage.shows("› parent: dig a hole", " asks · tab")
        await stage.pilot.press("tab")
        await stage.press("d", lambda: "denied no" in stage.text, "the answer")
        await stage.type("more", "enter")
        await stage.shows("Run: more")
        await stage.pilot.press("escape")
        await stage.until(lambda: session_of(stage) == parent, "the way back")
        await stage.shows("Run: more", "completed")
        await stage.type("/tree", "enter")
        await stage.until(lambda: not isinstance(stage.app.screen, ChatScreen), "the tree")
        await stage.shows("boss", child.id[:20])
        await stage.pilot.press("down", "enter")
        await stage.until(lambda: isinstance(stage.app.screen, ChatScreen), "the child")
        await stage.until(lambda: session_of(stage) == child.id, "the child")

    ctl = daemon.ctl
    parent = ctl.field("session.id", "session", "create", "--provider", "asks", "--title", "boss")
    chat(daemon, play, session=parent, size=(100, 40))


# --- what is typed --------------------------------------------------------------------------------


def test_typed_messages_are_in_the_history_of_the_next_chat(daemon: Daemon, tmp_path: Path) -> None:
    async def first(stage: Stage) -> None:
        await stage.type("one\nand more", "enter")
        await stage.type("two", "enter")
        await stage.until(lambda: len(stage.app.screen.query(".message")) == 2, "both")

    async def second(stage: Stage) -> None:
        composer = stage.find(Composer)
        await stage.type("draft", "up")
        assert composer.text == "two"
        await stage.pilot.press("up", "up")
        assert composer.text == "one\nand more"
        await stage.pilot.press("down", "down", "down")
        assert composer.text == "draft"

    chat(daemon, first)
    chat(daemon, second)
    file = tmp_path / "state" / "agent-orchestrator" / "chat-history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_history_is_bounded_and_a_broken_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    history, other = History(), History()
    for number in range(600):
        history.add(f"entry {number}")
    other.add("of another chat")
    history.add("x" * 600_000)
    again = History()
    assert again.entries == [], "one entry that is too long for the file ends what is kept"
    history.add("last")
    file = tmp_path / "agent-orchestrator" / "chat-history"
    file.write_bytes(b"\xff\n[1]\n{\n" + file.read_bytes())
    assert History().entries == ["last"]


def test_slash_commands_work_and_an_unknown_one_is_refused(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("/tree", "enter")
        await stage.shows("begins with your first message")
        await stage.type("/nothing", "enter")
        await stage.shows("there is no command /nothing")
        await stage.type("/help", "enter")
        await stage.shows("/spawn TASK", "shift+tab: queue, steer or interrupt")
        await stage.type("/model opus", "enter")
        await stage.shows("model: opus")
        await stage.type("/sandbox soft", "enter")
        await stage.shows("the sandbox is one of read-only")
        await stage.type("/etc/hosts is odd", "enter")
        await stage.shows("› /etc/hosts is odd", "✓ completed")
        session = await stage.client.get_session(session_of(stage))
        assert session.model == "opus"
        await stage.type("/sandbox read-only", "enter")
        await stage.shows("sandbox: read-only")
        await stage.type("/model sonnet", "enter")
        await stage.shows("model: sonnet")
        session = await stage.client.get_session(session_of(stage))
        assert (session.sandbox, session.model) == ("read-only", "sonnet")
        await stage.type("/attach", "enter")
        await stage.shows(f"quit, then: agentctl attach {session.id}")
        await stage.type("/status", "enter")
        await stage.shows("agentd ", "1 run · 1,200 tokens in")
        await stage.type("/quit", "enter")

    chat(daemon, play, size=(100, 60))


def test_a_pasted_path_of_an_image_attaches_the_image(daemon: Daemon, tmp_path: Path) -> None:
    image = tmp_path / "my shot.png"
    image.write_bytes(PNG)
    (tmp_path / "no.png").write_text("text")

    async def play(stage: Stage) -> None:
        composer = stage.find(Composer)
        await stage.paste(f"'{image}'")
        await stage.shows("─ with my shot.png (ctrl+x: without)")
        assert composer.text == ""
        await stage.paste(str(tmp_path / "no.png"))
        refusal = "no.png is not a PNG"  # wherever its line is wrapped
        await stage.until(lambda: refusal in " ".join(stage.text.split()), refusal)
        composer.text = ""
        await stage.type("see", "enter")
        await stage.shows("is not supported by")
        await stage.until(lambda: composer.text == "see", "nothing is lost")
        await stage.shows("─ with my shot.png")
        await stage.pilot.press("ctrl+x")
        await stage.hides("my shot.png")
        await stage.pilot.press("enter")
        await stage.shows("✓ completed")

    chat(daemon, play)


@pytest.mark.parametrize("wrap", ["{}", "'{}'", "file://{}", " {} \n"])
def test_a_pasted_path_is_recognised_in_each_terminals_notation(tmp_path: Path, wrap: str) -> None:
    image = tmp_path / "a b.png"
    image.write_bytes(PNG)
    path = str(image)
    found = image_at(wrap.format(path.replace(" ", "%20") if "file:" in wrap else path))
    assert found is not None
    assert base64.b64decode(found[1]["data"]) == PNG
    assert image_at(path.replace(" ", "\\ ")) == found
    for other in ("a b.png", f"see {path}", f"{path}\n{path}", "it's", str(tmp_path), "/" * 5000):
        assert image_at(other) is None
    long = "x" * 300
    for other in (
        "~5 minutes",
        "~nobody-here/a.png",
        f"/{long}.png",
        f"'{long}.png'",
        "file://[",
        "/a\0.png",
    ):
        assert image_at(other) is None


# --- what is hostile or large ---------------------------------------------------------------------


def test_terminal_controls_and_markup_of_an_agent_are_shown_as_text(daemon: Daemon) -> None:
    async def play(stage: Stage) -> None:
        await stage.type("x", "enter")
        await stage.asked("? x asks")
        transcript = stage.find(Transcript)
        await stage.until(lambda: "THE END" not in stage.text, "a bounded text")
        transcript.scroll_home(animate=False)
        await stage.shows("[red]not red[/red] [@click=app.quit]x[/]")
        await stage.pilot.press("ctrl+o")
        for card in transcript.query(Card):
            card.action_unfold()
        await stage.pilot.pause()
        transcript.scroll_home(animate=False)
        await stage.pilot.pause()
        for line in stage.text.split("\n"):
            assert not [one for one in line if ord(one) < 32 or 127 <= ord(one) < 160], line
            assert "\u202e" not in line
            assert "stolen" not in line or "^[" in line or "u001b" in line, (
                "only a question shows what was in it"
            )
        await stage.pilot.press("tab")
        await stage.press("d", lambda: "is denied" in stage.text, "the answer")
        transcript.scroll_end(animate=False)
        await stage.shows("survived")
        await stage.type("/quit", "enter")

    chat(daemon, play, provider="hostile")


def test_a_long_log_opens_at_its_end_and_loads_earlier_events(daemon: Daemon) -> None:
    ctl = daemon.ctl
    session = ctl.field("session.id", "session", "create", "--provider", "many")
    assert ctl("ask", "3000", "--session-id", session).code == 0

    async def play(stage: Stage) -> None:
        await stage.shows("message 2999", "✓ completed")
        transcript = stage.find(Transcript)
        first = transcript.before
        assert first >= 3000 - PAGE
        assert len(transcript.children) <= PAGE + 1
        await stage.pilot.press("pageup")
        transcript.scroll_home(animate=False)
        await stage.press("pageup", lambda: transcript.before < first, "earlier ones")
        assert (first - transcript.before) % PAGE == 0, "by whole pages, as often as it was pressed"
        assert f"▲ {transcript.before:,} earlier events" in str(transcript.children[0].render())
        shown = [str(one.render()) for one in transcript.children if isinstance(one, Card)]
        assert not shown
        await stage.hides("✓ completed")

    chat(daemon, play, session=session)


@pytest.mark.parametrize("kept", [PAGE + 50, PAGE - 50])
def test_earlier_events_that_were_deleted_meanwhile_are_passed_over(
    daemon: Daemon, kept: int
) -> None:
    ctl = daemon.ctl
    session = ctl.field("session.id", "session", "create", "--provider", "many")
    assert ctl("ask", str(3 * PAGE), "--session-id", session).code == 0

    async def play(stage: Stage) -> None:
        await stage.shows(f"message {3 * PAGE - 1}", "✓ completed")
        transcript = stage.find(Transcript)
        before = transcript.before
        assert before > PAGE
        pruned = await stage.client.prune_session(session, retain_events=kept)
        transcript.scroll_home(animate=False)
        await stage.press("pageup", lambda: not transcript.before, "the oldest")
        shown = sorted(one.seq for one in transcript.query(Entry) if one.seq)
        oldest = pruned.session.oldest_cursor
        assert shown[0] > min(oldest, before)
        assert (shown[0] <= before) == (oldest < before)
        assert "no longer kept" not in stage.text

    chat(daemon, play, session=session)


def test_an_unfolded_card_keeps_its_colours() -> None:
    body = Content("\n").join([Content.styled("-old", "red"), Content.styled("+new", "green")])
    card = Card(Content("changed"), body, seq=1, is_open=True)
    shown = card.render()
    assert isinstance(shown, Content)
    assert shown.plain == "changed\n  -old\n  +new"
    assert [(span.start, str(span.style)) for span in shown.spans] == [(10, "red"), (17, "green")]


def test_long_texts_are_cut_for_the_screen() -> None:
    assert bounded("a\nb\n") == "a\nb"
    text = bounded("\n".join(map(str, range(1000))))
    assert text.endswith("\n399\n… 600 lines more in the log")
    assert bounded("\n".join(map(str, range(1000))), is_tail=True).startswith("… 600 lines")
    assert len(bounded("x" * 10**7)) < 30_000
    assert text.count("\n") == MAX_LINES
    changes = [{"path": "p", "diff": "+" * 10**6}]
    cut = shortened({"output": "x" * 10**6, "changes": changes, "steps": list(range(1000))})
    assert len(cut["output"]) == 200_000
    assert cut["changes"] == [{"path": "p"}], "no count is told of a diff that is not whole"
    assert len(cut["steps"]) == MAX_LINES


# --- on a terminal --------------------------------------------------------------------------------


def test_without_a_terminal_chat_and_top_name_another_command(ctl: Ctl) -> None:
    for command, other in (("chat", "`ask`"), ("top", "`run list`")):
        for arguments in ((command,), (command, "--format", "json")):
            done = ctl(*arguments)
            assert (done.code, other in done.err, done.out) == (2, True, "")


def test_other_commands_do_not_load_the_library_of_screens() -> None:
    program = (
        "import sys; from agentctl.main import invoke\n"
        "for words in (['chat', '--help'], ['top', '--help'], ['run', 'list', '--url', 'http://127.0.0.1:1']):\n"
        "    invoke(words)\n"
        "print('textual' in sys.modules)"
    )
    done = finished([sys.executable, "-c", program], PATIENCE_S, env=environment())
    assert done.stdout.decode().splitlines()[-1] == "False", done.stderr


def on_terminal(
    daemon: Daemon,
    *arguments: str,
    keys: bytes = b"",
    after: str = "enter send",
    term: str = "xterm",
    **more: str,
) -> tuple[int, str]:
    """Run agentctl on a terminal, type when it has drawn its screen, and return its end and output."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    env = environment(AGENTCTL_URL=daemon.ctl.url, TERM=term, **more)
    out = b""
    try:
        with started(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            cwd=daemon.directory,
        ) as process:
            end = time.monotonic() + PATIENCE_S
            while time.monotonic() < end:
                ready, _, _ = select.select([master], [], [], 0.05)
                if ready:
                    out += os.read(master, 65536)
                elif process.poll() is not None:
                    break
                if keys and after.encode() in out:
                    os.write(master, keys)
                    keys = b""
            return process.wait(1), out.decode()
    finally:
        os.close(master)
        os.close(slave)


def test_chat_restores_the_terminal_and_says_how_to_continue(daemon: Daemon) -> None:
    session = daemon.ctl.field("session.id", "session", "create", "--title", "mine")
    daemon.ctl("session", "create", "--cwd", str(daemon.directory.parent))
    code, out = on_terminal(daemon, "chat", "--continue", keys=b"\x04", after="mine")
    assert code == 0, out
    screen, after = out.split("\x1b[?1049l")
    assert "mine" in screen
    assert f"agentctl chat --session-id {session}" in after


def test_no_colour_is_used_with_no_color(daemon: Daemon) -> None:
    for theme in ("", "textual-light"):
        more = {"NO_COLOR": "1", "TEXTUAL_THEME": theme}
        code, out = on_terminal(daemon, "chat", keys=b"\x04", term="xterm-256color", **more)
        assert code == 0
        assert "\x1b[34m" not in out
        used = {found for found in re.findall(r"[34]8;5;(\d+)", out) if int(found) < 16}
        assert not used
        assert theme or "8;5;" not in out, "the terminal's own colours, and not black on black"


def test_a_terminal_without_cursor_control_is_refused(daemon: Daemon) -> None:
    code, out = on_terminal(daemon, "chat", term="dumb")
    assert code == 2
    assert "TERM" in out
    assert "\x1b" not in out


def test_errors_before_the_screen_opens_are_one_line(daemon: Daemon, tmp_path: Path) -> None:
    code, out = on_terminal(daemon, "chat", "--session-id", "ses_none")
    assert (code, "no session" in out or "not found" in out.lower()) == (4, True), out
    code, out = on_terminal(daemon, "chat", "--continue")
    assert (code, "no open session" in out) == (2, True), out
    daemon.end()
    code, out = on_terminal(daemon, "chat", "--session-id", "ses_none")
    assert (code, "cannot reach" in out) == (3, True), out
