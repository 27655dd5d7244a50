"""Questions of agents answered by keys, on a terminal where their run is shown."""

import codecs
import os
import re
import select
import signal
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from driving import PATIENCE_S, Daemon, environment, on_terminal, running, wait_until
from forking import Forked

from agent_orchestrator.domain.model import Option
from agent_orchestrator.testing.stores.samples import a_request, a_run
from agentctl.console import screen_lines
from agentctl.document import plain_lines
from agentctl.questions import answer_names, choices_of, detail_blocks

AGENTS = """
from agent_orchestrator.domain.model import Option

OPTIONS = [
    Option("accept", "Approve", "allow_once"),
    Option("acceptForSession", "For this session", "allow_session", "the same without asking again"),
    Option("always", "Always allow", "allow_always", "this for good"),
    Option("decline", "Deny", "deny"),
]
DIFF = "@@ -1,2 +1,2 @@\\n one\\n-two\\n+2 \\x1b[2J\\n"
CHANGES = [{"path": "a.py", "kind": "update", "diff": DIFF},
           {"path": "long.py", "kind": "add", "diff": "".join(f"line {n}\\n" for n in range(90))}]

async def approval(context):
    detail = {"type": "file_change", "changes": CHANGES, "reason": "for the tests"}
    asked = await context.ask_parent("Change files: a.py", kind="approval_request", detail=detail,
                                     options=OPTIONS if context.prompt == "options" else None)
    return f"{asked.status} {asked.option} {asked.answer}"

async def words(context):
    asked = await context.ask_parent("Which port?", options=["80", "8080"])
    return f"{asked.status} {asked.answer}"

async def several(context):
    questions = [{"id": "a", "text": "Which?", "choices": [{"label": "this"}, {"label": "that"}]},
                 {"id": "b", "text": "Why?", "choices": []}]
    asked = await context.ask_parent("Two things", detail={"type": "question", "questions": questions})
    return str(asked.answer)

async def parent(context):
    child = await context.spawn("options", provider="approval", title="Scout", approvals="ask-human")
    waited = await context.wait(child.run.id)
    return waited.run.result.text
"""

NAMES = ("approval", "words", "several", "parent")
CONFIG = (
    "".join(
        f'[providers.{name}]\nrunner = "function"\ntarget = "answer_agents:{name}"\n'
        for name in NAMES
    )
    + '[routing]\ndefault = "approval"\n'
)


@define
class Terminal:
    """A program on a terminal, and all that it wrote there."""

    process: Forked
    descriptor: int
    raw: str = ""
    _decoder: codecs.IncrementalDecoder = field(
        factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw)

    def until(self, what: str) -> None:
        """Read until this was written; it must come after what was awaited before."""
        end = time.monotonic() + PATIENCE_S
        while what not in self.text:
            assert time.monotonic() < end, f"never: {what}\n{self.text[-3000:]}"
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    self.raw += self._decoder.decode(os.read(self.descriptor, 65536))
                except OSError:
                    raise AssertionError(f"ended without {what}\n{self.text[-3000:]}") from None

    def press(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, self.text[-3000:]
            self._drain()
        self._drain()
        return int(self.process.returncode)

    def _drain(self) -> None:
        if select.select([self.descriptor], [], [], 0.05)[0]:
            try:
                self.raw += self._decoder.decode(os.read(self.descriptor, 65536))
            except OSError:
                return


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("asking")
    (directory / "answer_agents.py").write_text(AGENTS)
    patched = pytest.MonkeyPatch()
    patched.setattr("driving.CONFIG", CONFIG)
    patched.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
    try:
        yield from running(directory)
    finally:
        patched.undo()


@contextmanager
def terminal(daemon: Daemon, *arguments: str, **env: str) -> Iterator[Terminal]:
    given = environment(**{"AGENTCTL_URL": daemon.ctl.url, "TERM": "xterm"} | env)
    with on_terminal(arguments, daemon.directory, given, (40, 100)) as (process, leader):
        yield Terminal(process, leader)


MENU = "leave open"


def asked_by(daemon: Daemon, shown: Terminal) -> str:
    """Return the id of the open request of the session that is shown."""
    session = re.search(r"session (ses_\w+)", shown.text)
    assert session is not None
    return daemon.ctl.field("requests.0.id", "request", "list", "--session-id", session[1])


@pytest.mark.parametrize(
    ("task", "keys", "outcome", "code"),
    [
        ("options", "a", "approved accept None", 0),
        ("options", "s", "approved acceptForSession None", 0),
        ("options", "d", "denied decline None", 0),
        ("plain", "a", "approved None None", 0),
        ("plain", "d", "denied None None", 0),
    ],
)
def test_a_key_press_answers_the_request(
    asking: Daemon, task: str, keys: str, outcome: str, code: int
) -> None:
    with terminal(asking, "ask", task, "--provider", "approval") as shown:
        shown.until(MENU)
        assert ("approve for the session" in shown.text) == (task == "options")
        assert "changed a.py  +1 -1" in shown.text
        assert "+2 ^[[2J" in shown.text  # what is approved is seen whole
        assert "\x1b[2J" not in shown.raw
        assert "more lines" in shown.text
        assert "line 89" not in shown.text
        shown.press(keys)
        shown.until(outcome)
        assert shown.wait() == code


def test_the_whole_diff_can_be_shown_and_a_denial_can_have_a_text(asking: Daemon) -> None:
    with terminal(asking, "ask", "options", "--provider", "approval") as shown:
        shown.until(MENU)
        shown.press("v")
        shown.until("line 89")
        shown.press("w")
        shown.until("Enter sends")
        shown.press("nonsens\x7fse\x7f\x7f e\r")
        shown.until("denied decline nonsen e")
        assert shown.wait() == 0


def test_allowing_for_good_needs_a_typed_yes(asking: Daemon) -> None:
    with terminal(asking, "ask", "options", "--provider", "approval") as shown:
        shown.until(MENU)
        shown.press("l")
        shown.until("This allows this for good. Type yes to allow it")
        shown.raw = ""
        shown.press("y\r")
        shown.until(MENU)
        shown.raw = ""
        shown.press("l")
        shown.until("allow it")
        shown.press("yes\r")
        shown.until("approved always None")


def test_a_key_typed_before_the_request_appeared_is_ignored(asking: Daemon) -> None:
    with terminal(asking, "ask", "options", "--provider", "approval") as shown:
        shown.press("a" * 20)
        shown.until(MENU)
        time.sleep(0.5)  # a key that counted would have approved by now
        assert (
            asking.ctl.field("request.status", "request", "show", asked_by(asking, shown))
            == "pending"
        )
        shown.press("d")
        shown.until("denied decline None")


@pytest.mark.parametrize(("keys", "said"), [("1", "80"), ("2", "8080"), ("r", "9090")])
def test_a_question_is_answered_by_an_option_or_text(asking: Daemon, keys: str, said: str) -> None:
    with terminal(asking, "ask", "x", "--provider", "words") as shown:
        shown.until(MENU)
        assert "1 80 · 2 8080 · r answer in words" in shown.text
        shown.press(keys)
        if keys == "r":
            shown.until("Enter sends")
            shown.press(f"{said}\r")
        shown.until(f"answered {said}")


def test_questions_that_are_asked_together_are_answered_one_by_one(asking: Daemon) -> None:
    with terminal(asking, "ask", "x", "--provider", "several") as shown:
        shown.until("Which? (1 this · 2 that)")
        shown.press("2\r")
        shown.until("Why? (Enter")
        shown.press("because\r")
        shown.until('{"a":"that","b":"because"}')


def test_a_decision_made_elsewhere_is_shown(asking: Daemon) -> None:
    with terminal(asking, "ask", "options", "--provider", "approval") as shown:
        shown.until(MENU)
        request = asked_by(asking, shown)
        assert asking.ctl("request", "deny", request, "--text", "Not today").code == 0
        shown.until(f"request {request} denied: Not today")
        shown.until("denied decline Not today")
        assert shown.wait() == 0


def test_a_request_that_is_left_open_can_be_answered_elsewhere(asking: Daemon) -> None:
    with terminal(asking, "ask", "options", "--provider", "approval") as shown:
        shown.until(MENU)
        shown.press("o")
        shown.until("left open")
        request = asked_by(asking, shown)
        assert asking.ctl("request", "approve", request).code == 0
        shown.until("approved accept None")


@pytest.mark.parametrize("command", ["wait", "follow", "tail"])
def test_requests_of_a_child_can_be_answered_where_its_parent_is_shown(
    asking: Daemon, command: str
) -> None:
    ctl = asking.ctl
    session = ctl.field("session.id", "session", "create", "--provider", "parent")
    arguments = ["message", "send", session, "--text", "x", "--follow"]
    if command != "follow":
        run = ctl.field("run.id", "message", "send", session, "--text", "x")
        arguments = ["run", "wait", run] if command == "wait" else ["events", "tail", session, "-f"]
    with terminal(asking, *arguments) as shown:
        shown.until(MENU)
        assert "Scout" in shown.text  # who asks
        assert "Change files: a.py" in shown.text
        shown.press("s")
        if command == "tail":
            shown.until("completed")
            shown.process.send_signal(signal.SIGINT)
        else:
            shown.until("approved acceptForSession")
        shown.wait()


def test_ctrl_c_asks_whether_to_cancel(asking: Daemon) -> None:
    for key, status in (("l", "waiting"), ("c", "canceled")):
        with terminal(asking, "ask", "options", "--provider", "approval") as shown:
            shown.until(MENU)
            run = re.search(r"run (run_\w+)", shown.text)
            assert run is not None
            shown.process.send_signal(signal.SIGINT)
            shown.until("c cancels the run, l leaves it running")
            shown.press(key)
            assert shown.wait() == 130
        if status == "canceled":
            asking.ctl("run", "wait", run[1])
        assert asking.ctl.field("run.status", "run", "get", run[1]) == status
        asking.ctl("run", "cancel", run[1])


def test_on_a_dumb_terminal_requests_are_answered_with_lines(asking: Daemon) -> None:
    with terminal(asking, "ask", "options", "--provider", "approval", TERM="dumb") as shown:
        shown.until(MENU)
        shown.press("nonsense\n")
        shown.until(MENU + "\r\nnonsense\r\n")
        shown.press("w\n")
        shown.until("(an empty line does not send)")
        shown.press("\n")
        shown.press("w\n")
        shown.press("not on a Friday\n")
        shown.until("denied decline not on a Friday")
        assert shown.wait() == 0
        assert "\x1b" not in shown.raw
    with terminal(asking, "ask", "several", "--provider", "several", TERM="dumb") as shown:
        shown.until("Which? (1 this · 2 that)")
        shown.press("2\n")
        shown.until("Why?")
        shown.press("because\n")
        shown.until('{"a":"that","b":"because"}')
        assert "\x1b" not in shown.raw


def test_keys_work_again_after_ask_was_suspended_and_resumed(asking: Daemon) -> None:
    with terminal(asking, "ask", "options", "--provider", "approval") as shown:
        shown.until(MENU)
        shown.process.send_signal(signal.SIGSTOP)
        cooked = termios.tcgetattr(shown.descriptor)
        cooked[3] |= termios.ICANON | termios.ECHO
        termios.tcsetattr(shown.descriptor, termios.TCSANOW, cooked)
        shown.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not termios.tcgetattr(shown.descriptor)[3] & termios.ICANON)
        shown.press("a")
        shown.until("approved accept None")
        assert shown.wait() == 0
        flags = termios.ICANON | termios.ECHO
        assert termios.tcgetattr(shown.descriptor)[3] & flags == flags


def test_without_a_terminal_the_command_to_answer_is_printed(asking: Daemon) -> None:
    with asking.ctl.going("ask", "options", "--provider", "approval") as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "agentctl request approve" in line)
        request = told.split("agentctl request approve ")[1].split()[0]
        assert asking.ctl("request", "approve", request).code == 0
        assert process.communicate(timeout=PATIENCE_S)[0] == "approved accept None\n"


# --- without a terminal -----------------------------------------------------------------------


def test_only_options_that_a_request_offers_can_be_chosen() -> None:
    def keys(*options: Option, kind: Any = "approval_request") -> str:
        request = a_request(a_run("ses_1"), kind=kind, options=options or None)
        return "".join(choice.key for choice in choices_of(request))

    once, session = Option("o", "Once", "allow_once"), Option("s", "S", "allow_session", "more")
    deny, stop = Option("d", "No", "deny"), Option("x", "Stop", "deny_and_stop")
    assert keys() == "adw"
    assert keys(once, deny) == "adw"
    assert keys(once, session, deny, stop) == "asdxw"
    assert keys(session) == "sdw"
    assert keys(Option("80", "80", "answer"), kind="input_request") == "1rdw"
    assert keys(kind="input_request") == "rdw"
    two = Option("a1", "All", "allow_always", "a"), Option("a2", "Host", "allow_always", "b")
    assert keys(once, *two) == "al1dw"


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ({"type": "command", "command": "bash -lc 'rm x'", "cwd": "/src", "reason": "r\nx"},
         ["$ rm x", "in /src", "reason r x"]),
        ({"type": "tool", "name": "query", "server": "db", "input": {"q": 1}},
         ["tool query", "server db", "{", '  "q": 1', "}"]),
        ({"type": "plan", "text": "first\nthen"}, ["first", "then"]),
        ({"type": "permission", "permissions": {"net": True}, "reason": None},
         ["{", '  "net": true', "}"]),
        ({"type": "question", "questions": [{"text": "Which?", "choices": [{"label": "a", "description": "b"}], "multiple": True}]},
         ["Which? (several may be chosen)", "  - a: b"]),
        ({"type": "file_change", "changes": [{"path": "a", "kind": "update", "diff": "@@ -1 +1 @@\n-a\n+b\n"}], "agent": {}},
         ["changed a  +1 -1", "1 -a", "1 +b"]),
        ({"type": "command", "command": "ls", "cut": ["command"], "agent": {"x": 1}},
         ["$ ls", "too long, and cut: command", "", "DETAIL", "{", '  "agent": {', '    "x": 1', "  }", "}"]),
        ({"type": "other", "x": 1}, ["DETAIL", "{", '  "type": "other",', '  "x": 1', "}"]),
        ({"type": "command", "command": ["a"], "changes": 7}, ["$ ['a']", "", "DETAIL", "{", '  "changes": 7', "}"]),
    ],
)  # fmt: skip
def test_the_detail_of_a_request_is_shown_according_to_its_type(
    detail: Any, shown: list[str], tmp_path: Path
) -> None:
    assert [*plain_lines(detail_blocks(detail))] == shown
    screen_lines(detail_blocks(detail), 60)


@pytest.mark.parametrize(
    ("questions", "names"),
    [
        ([{"id": "a", "text": "A"}, {"id": "b"}], ["a", "b"]),
        ([{"text": "A"}, {"text": "B"}], ["A", "B"]),
        ([{"id": "a"}, {"id": "a"}, {"id": "a"}], ["a", "a (2)", "a (3)"]),
        ([{}, {"id": "", "text": "A"}, {"id": None}], ["0", "", "2"]),
        ([{"id": "a (3)"}, {"id": "a"}, {"id": "a"}], ["a (3)", "a", "a (4)"]),
        ([{"id": 0}, {"text": "0"}], ["0", "0 (2)"]),
    ],
)
def test_no_answer_replaces_that_of_another_question(
    questions: list[dict[str, Any]], names: list[str]
) -> None:
    assert answer_names(questions) == names
