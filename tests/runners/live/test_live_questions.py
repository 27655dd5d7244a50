"""Questions of an agent: asked, answered, withdrawn, or never put to anybody."""

import json

import anyio
import pytest
from attrs import evolve

from agent_orchestrator.domain.errors import Conflict
from agent_orchestrator.domain.model import Option
from agent_orchestrator.fields import MAX_OPTION, MAX_OPTIONS, MAX_QUESTION
from agent_orchestrator.runners.live.questions import (
    MAX_CONTENT,
    OpenQuestions,
    Question,
    QuestionOutcome,
    length_problem,
)
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio


def question(**more):
    options = (Option("y", "Yes", "allow_once"), Option("n", "No", "deny"))
    fields = {"kind": "approval_request", "text": "May I?", "detail": {}, "options": options}
    return Question(**{**fields, "answer": lambda request: {"request": request}, **more})


class People(RecordingContext):
    """Waits for the answer to each question that is asked."""

    def __init__(self, path):
        super().__init__("x", cwd=path)
        self.asked, self.decided, self.withdrawn = [], anyio.Event(), []

    async def ask_parent(self, text, **options):
        self.asked.append((text, options))
        try:
            await self.decided.wait()
        except BaseException:
            self.withdrawn.append(text)
            raise
        return await super().ask_parent(text, **options)


@pytest.fixture
def people(tmp_path):
    return People(tmp_path)


async def test_each_question_gets_its_decision(people):
    questions, ends = OpenQuestions(people, 60.0), {}

    async def ask(name):
        ends[name] = await questions.ask(name, question(text=str(name)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for name in (1, "two"):
                tasks.start_soon(ask, name)
            await anyio.wait_all_tasks_blocked()
            assert {text for text, _ in people.asked} == {"1", "two"}
            assert [options["expires_in_s"] for _, options in people.asked] == [60.0, 60.0]
            people.decided.set()
    assert {name: end.request.text for name, end in ends.items()} == {1: "1", "two": "two"}


async def test_a_question_that_is_too_long_is_reported_with_its_size_and_the_limit():
    half = "x" * (MAX_CONTENT // 2)
    assert length_problem("the input of Write", {"": [half, half]}, half, None) is None
    problem = length_problem("the input of Write", {"a": [half, half]}, half, None)
    assert problem == (
        "the input of Write has 4,194,305 characters, and a question may have at most 4,194,304"
    )
    assert len(length_problem("x" * 10**6, half * 3)) < 1_000


async def test_a_withdrawn_question_has_no_decision_and_others_stay_open(people):
    questions, ends = OpenQuestions(people, 60.0), {}

    async def ask(name):
        ends[name] = await questions.ask(name, question(text=name))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for name in ("a", "b"):
                tasks.start_soon(ask, name)
            await anyio.wait_all_tasks_blocked()
            for nothing in ("unknown", None, ["a"]):
                questions.withdraw(nothing)
            questions.withdraw("a")
            await anyio.wait_all_tasks_blocked()
            assert ends == {"a": None}
            assert people.withdrawn == ["a"]
            people.decided.set()
    assert ends["b"].request.status == "denied"
    questions.withdraw("b")


async def test_a_question_that_cannot_be_asked_is_denied_and_recorded(tmp_path):
    class Busy(RecordingContext):
        async def ask_parent(self, *_, **options):
            raise Conflict("too many open questions")

    context = Busy("x", cwd=tmp_path)
    assert await OpenQuestions(context, 60.0).ask(1, question()) == QuestionOutcome(None)
    [(kind, data)] = context.events
    assert kind == "run.error"
    assert "too many open questions" in data["message"]


async def test_the_end_of_the_run_withdraws_its_questions(people):
    questions = OpenQuestions(people, 60.0)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(questions.ask, 1, question(text="open"))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert people.withdrawn == ["open"]


@pytest.mark.parametrize(
    ("kind", "answer", "status", "words"),
    [
        ("approval_request", "only here", "approved", "approved, with this message: only here"),
        ("approval_request", "too early", "denied", "denied, with this message: too early"),
        ("approval_request", "why?", "answered", "denied, with this message: why?"),
        ("approval_request", "  ", "denied", None),
        ("approval_request", None, "denied", None),
        ("input_request", "blue", "answered", None),  # the answer itself
    ],
)
async def test_the_text_of_a_decision_becomes_a_message_for_the_agent(
    people, kind, answer, status, words
):
    people.decided.set()
    asked = question(kind=kind)
    end = await OpenQuestions(people, 60.0).ask(1, asked)
    said = asked.decision_message(evolve(end.request, status=status, answer=answer))
    assert said is None if words is None else said == f"Your request was {words}"
    assert asked.decision_message(None) is None


def test_options_that_a_request_may_not_offer_are_left_out():
    one = Option("y", "Yes", "allow_once")
    for wrong in (
        [Option.named(f"option {number}") for number in range(MAX_OPTIONS + 1)],
        [evolve(one, label="x" * (MAX_OPTION + 1))],
        [evolve(one, id="")],
        [one, Option("n", "Yes", "deny")],
    ):
        assert question(options=tuple(wrong)).options is None
    assert question(options=(one,)).options == (one,)


def nested(depth, width, leaf):
    return [nested(depth - 1, width, leaf)] * width if depth else leaf


CHANGES = [{"path": f"/w/{number}", "kind": "add", "diff": "+x\n" * 900} for number in range(300)]

DETAILS = [
    {"type": "command", "command": "\0" * 99_000, "cwd": "/", "reason": "\N{SNOWMAN}" * 9_000},
    {"type": "file_change", "changes": CHANGES, "reason": None},
    {"type": "file_change", "changes": CHANGES[:1] * 20_000, "reason": None},
    {"type": "tool", "name": "t", "server": "s", "input": {"k" * 9_000: ["x" * 999] * 999}},
    {"type": "tool", "name": "t", "server": None, "input": nested(6, 9, "x")},
    {"type": "tool", "name": "t", "server": None, "input": dict.fromkeys(map(str, range(99_999)))},
    {"type": "plan", "text": "p" * 900_000},
]


@pytest.mark.parametrize("detail", DETAILS)
def test_a_long_detail_is_cut_and_keeps_its_shape(detail):
    made = question(text="x" * (MAX_QUESTION + 1), detail={**detail, "agent": {"more": "y" * 99}})
    assert len(made.text) == MAX_QUESTION
    assert len(json.dumps(made.detail)) < 50_000
    assert "agent" in made.detail["cut"]
    assert set(made.detail) == {*detail, "cut"}
    for name, value in detail.items():
        kept = made.detail[name]
        assert type(kept) is type(value)
        assert (kept != value) is (name in made.detail["cut"])
        if isinstance(value, str):
            assert value.startswith(kept)
    for change in made.detail.get("changes", ()):
        assert set(change) == {"path", "kind", "diff"}
        assert change["diff"]


def test_the_agents_own_text_is_left_out_of_a_long_detail_first():
    detail = {"type": "plan", "text": "p" * 40_000, "agent": {"more": "y" * 20_000}}
    assert question(detail=detail).detail == {
        "type": "plan",
        "text": "p" * 40_000,
        "cut": ["agent"],
    }
