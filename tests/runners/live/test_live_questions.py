"""Questions of an agent: asked, answered, withdrawn, or never put to anybody."""

import json

import anyio
import pytest
from attrs import evolve

from agent_orchestrator.domain.errors import Conflict
from agent_orchestrator.fields import MAX_METADATA, MAX_OPTIONS, MAX_QUESTION
from agent_orchestrator.runners.live.questions import Asked, OpenQuestions, Question
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio


def question(**more):
    fields = {"kind": "approval_request", "text": "May I?", "detail": {}, "options": ("yes", "no")}
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

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for name in (1, "two"):
                tasks.start_soon(ask, name)
            await anyio.wait_all_tasks_blocked()
            assert {text for text, _ in people.asked} == {"1", "two"}
            assert [options["expires_in_s"] for _, options in people.asked] == [60.0, 60.0]
            people.decided.set()
    assert {name: end.request.text for name, end in ends.items()} == {1: "1", "two": "two"}


async def test_a_withdrawn_question_has_no_decision_and_others_stay_open(people):
    questions, ends = OpenQuestions(people, 60.0), {}

    async def ask(name):
        ends[name] = await questions.ask(name, question(text=name))

    with anyio.fail_after(5):
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


async def test_a_question_that_cannot_be_asked_is_a_no_that_is_recorded(tmp_path):
    class Busy(RecordingContext):
        async def ask_parent(self, *_, **options):
            raise Conflict("too many open questions")

    context = Busy("x", cwd=tmp_path)
    assert await OpenQuestions(context, 60.0).ask(1, question()) == Asked(None)
    [(kind, data)] = context.events
    assert kind == "run.error"
    assert "too many open questions" in data["message"]


async def test_the_end_of_the_run_withdraws_its_questions(people):
    questions = OpenQuestions(people, 60.0)
    with anyio.fail_after(5):
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
        ("approval_request", "yes", "answered", None),  # an option
        ("approval_request", "cancel", "answered", None),  # a decision
        ("approval_request", "  ", "denied", None),
        ("approval_request", None, "denied", None),
        ("input_request", "blue", "answered", None),  # the answer itself
    ],
)
async def test_words_that_no_answer_of_the_agent_holds_are_a_message(
    people, kind, answer, status, words
):
    people.decided.set()
    asked = question(kind=kind, decisions=("cancel",))
    end = await OpenQuestions(people, 60.0).ask(1, asked)
    said = asked.words(evolve(end.request, status=status, answer=answer))
    assert said is None if words is None else said == f"Your request was {words}"
    assert asked.words(None) is None


def test_a_question_is_made_to_fit():
    many = tuple(f"option {number}" for number in range(MAX_OPTIONS + 1))
    detail = {"long": "x" * 200_000, "short": "y", **{f"f{n}": "z" * 3_000 for n in range(20)}}
    made = question(text="x" * (MAX_QUESTION + 1), options=many, detail=detail)
    assert len(made.text) == MAX_QUESTION
    assert made.options is None
    assert made.detail["short"] == "y"
    assert "long" in made.detail["cut"]
    assert len(json.dumps(made.detail)) < MAX_METADATA
