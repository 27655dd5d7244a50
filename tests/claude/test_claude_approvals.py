"""What the real Claude Code asks, and what it does with each answer."""

import json
from pathlib import Path

import anyio
import psutil
import pytest
from claude_runs import end_of_descendants, of, problems, run
from deciding import EXPIRED, Deciding
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Option

pytestmark = [pytest.mark.anyio, pytest.mark.claude, ON_ONE_LOOP]


@pytest.fixture
def ask(record):
    """Run a prompt with all its questions decided in one way. Return the context."""

    async def ask(runner, prompt, decide, **more):
        context = record(prompt, kind=Deciding, **more)
        context.decide = decide
        await run(runner, context)
        return context

    return ask


async def test_a_request_shows_the_command_and_its_options(make_runner, ask, workspace):
    async with make_runner(sandbox="workspace-write") as runner:
        context = await ask(runner, "shell sh -c 'echo ran > ran'", {"decision": "approve"})
    (question,) = context.questions
    assert question["kind"] == "approval_request"
    assert question["text"].startswith("Run: sh -c 'echo ran > ran'")
    assert question["detail"]["type"] == "command"
    assert question["detail"]["command"] == "sh -c 'echo ran > ran'"
    assert question["detail"]["cwd"] is None
    kinds = [option.kind for option in question["options"]]
    assert kinds == ["allow_once", "allow_session", "deny", "deny_and_stop"]
    assert (workspace / "ran").exists()


@pytest.mark.parametrize(
    ("decide", "words"),
    [
        ({"decision": "deny"}, "Nobody has approved this"),
        ({"decision": "deny", "text": "Use the other one"}, "Use the other one"),
        ({"decision": "answer", "text": "First tell me why"}, "First tell me why"),
        (EXPIRED, "Nobody has approved this"),
    ],
)
async def test_the_text_of_a_denial_reaches_the_agent(
    make_runner, ask, workspace, models, decide, words
):
    async with make_runner(sandbox="workspace-write") as runner:
        context = await ask(runner, "shell sh -c 'echo ran > ran'\nrelay", decide)
    assert not (workspace / "ran").exists()
    (tool,) = of(context, "tool.completed")
    assert tool["status"] == "declined"
    assert words in tool["output"]
    assert words in models.requests[-1].texts[-1]


async def test_a_denial_that_stops_ends_the_turn(make_runner, ask, workspace):
    decide = {"option": "deny_and_stop", "text": "Not today"}
    async with make_runner(sandbox="workspace-write") as runner:
        with pytest.raises(AgentFailed) as caught:
            await ask(runner, "shell sh -c 'echo ran > ran'\nsay on", decide)
    assert caught.value.code == "denied"
    assert caught.value.message.endswith("the turn was ended: Not today")
    assert not (workspace / "ran").exists()


async def test_an_approval_for_the_session_holds_also_after_a_restart(
    make_runner, ask, record, workspace
):
    prompt = "shell sh -c 'echo ran >> ran'"
    decide = {"decision": "approve", "scope": "session"}
    async with make_runner(sandbox="workspace-write") as runner:
        first = await ask(runner, prompt, decide)
        again = await ask(runner, prompt, {"decision": "deny"}, thread=first.thread)
    async with make_runner(sandbox="workspace-write") as runner:
        third = await ask(runner, prompt, {"decision": "deny"}, thread=again.thread)
        other = await ask(runner, "shell sh -c 'echo x'", {"decision": "deny"}, thread=third.thread)
        stranger = await ask(runner, prompt, {"decision": "deny"})
    assert [len(one.questions) for one in (first, again, third, other, stranger)] == [1, 0, 0, 1, 1]
    _, lasting, *_ = first.questions[0]["options"]
    assert "sh -c 'echo ran >> ran'" in lasting.reaches
    assert (workspace / "ran").read_text() == "ran\n" * 3
    assert not (workspace / ".claude").exists()  # nothing is kept for good


@pytest.mark.parametrize("sandbox", ["workspace-write", "read-only"])
async def test_an_approval_for_the_session_allows_what_it_says(
    make_runner, ask, workspace, tmp_path, sandbox
):
    outside, secret = tmp_path / "outside", tmp_path / "outside" / "secret"
    outside.mkdir()
    secret.write_text("S")
    lasting = {"decision": "approve", "option": "allow_session"}
    async with make_runner(sandbox=sandbox) as runner:
        first = await ask(runner, f"add {outside}/one x", lasting)
        _, option, *_ = first.questions[0]["options"]
        assert option.reaches.startswith(
            f"reading and changing files below {outside}, without asking"
        )
    async with make_runner(sandbox=sandbox) as runner:  # also after a restart
        script = f"add {outside}/two x\nread {secret}\nadd {tmp_path}/three x"
        again = await ask(runner, script, {"decision": "deny"}, thread=first.thread)
    assert (outside / "two").exists()
    asked = [question["detail"]["changes"][0]["path"] for question in again.questions]
    assert asked == [f"{tmp_path}/three"]


async def test_a_command_with_a_wildcard_is_not_allowed_for_the_session(
    make_runner, ask, workspace
):
    async with make_runner(sandbox="workspace-write") as runner:
        asked = await ask(runner, "shell sh -c 'echo *'", {"decision": "approve"})
    kinds = [option.kind for option in asked.questions[0]["options"]]
    assert kinds == ["allow_once", "deny", "deny_and_stop"]


async def test_files_are_changed_without_asking_where_the_sandbox_allows_it(
    make_runner, ask, workspace, tmp_path
):
    inside, outside = workspace / "in.txt", tmp_path / "out.txt"
    hooks = workspace / ".git" / "hooks" / "pre-commit"
    script = f"add {inside} one\nadd {outside} two\nadd {hooks} three"
    async with make_runner(sandbox="workspace-write") as runner:
        context = await ask(runner, script, {"decision": "deny"})
    assert inside.read_text() == "one"
    assert not outside.exists()
    assert not hooks.exists()
    asked = [question["detail"]["changes"][0] for question in context.questions]
    assert [(one["path"], one["diff"]) for one in asked] == [
        (str(outside), "two"),
        (str(hooks), "three"),
    ]
    async with make_runner(sandbox="read-only") as runner:
        context = await ask(runner, f"add {workspace}/more.txt one", {"decision": "deny"})
    assert len(context.questions) == 1


@pytest.mark.parametrize(
    ("sandbox", "policy", "runs"),
    [
        ("danger-full-access", "never", True),
        ("danger-full-access", "on-request", True),
        ("workspace-write", "never", False),
        ("read-only", "never", False),
    ],
)
async def test_sandbox_and_policy_may_decide_without_asking(
    make_runner, ask, workspace, sandbox, policy, runs
):
    async with make_runner(sandbox=sandbox, approval_policy=policy) as runner:
        context = await ask(runner, "shell sh -c 'echo ran > ran'", None)
    assert context.questions == []
    assert (workspace / "ran").exists() is runs


QUESTIONS = {
    "questions": [
        {
            "question": "Which colour?",
            "header": "Colour",
            "multiSelect": False,
            "options": [
                {"label": "Blue", "description": "like the sky"},
                {"label": "Red", "description": "like a rose"},
            ],
        }
    ]
}


@pytest.mark.parametrize(
    ("decide", "told"),
    [
        ({"decision": "answer", "text": "Blue"}, "Blue"),
        ({"decision": "answer", "text": "neither, but green"}, "neither, but green"),
        ({"decision": "answer", "text": '{"Which colour?": "Red"}'}, "Red"),
        ({"decision": "deny", "text": "I will not say"}, "I will not say"),
        (EXPIRED, "Nobody has answered"),
    ],
)
async def test_a_question_of_the_agent_is_answered(make_runner, ask, models, decide, told):
    async with make_runner() as runner:
        context = await ask(runner, f"question {json.dumps(QUESTIONS)}\nrelay", decide)
    (question,) = context.questions
    assert question["kind"] == "input_request"
    assert question["text"] == "Which colour? (Blue / Red)"
    assert question["options"] == (Option.named("Blue"), Option.named("Red"))
    [asked] = question["detail"]["questions"]
    assert asked == {
        "id": "Which colour?",
        "text": "Which colour?",
        "choices": QUESTIONS["questions"][0]["options"],
        "multiple": False,
        "free_text": True,
    }
    assert told in models.requests[-1].texts[-1]


async def test_a_plan_is_shown_and_its_approval_does_not_change_what_is_asked(
    make_runner, ask, workspace
):
    script = (
        "tool EnterPlanMode\nshell sh -c 'echo ran > ran'\n"
        f'tool ExitPlanMode {{"plan": "# Do it"}}\nadd {workspace}/a.txt one\nshell sh -c true'
    )
    async with make_runner(sandbox="workspace-write") as runner:
        context = await ask(runner, script, {"decision": "approve"})
    asked = [question["detail"] for question in context.questions]
    assert [one["type"] for one in asked] == ["command", "plan", "command"]
    assert asked[1]["text"] == "# Do it"
    assert (workspace / "ran").exists()
    assert (workspace / "a.txt").read_text() == "one"


async def test_an_agent_cannot_stay_in_a_mode_that_does_not_ask(make_runner, ask, workspace, env):
    """Where the user's settings switch off what makes the plan mode ask."""
    settings = Path(env["CLAUDE_CONFIG_DIR"]) / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"disableAllHooks": true}')
    script = "tool EnterPlanMode\nslow 2\nshell sh -c 'echo ran > ran'"
    async with make_runner(sandbox="workspace-write") as runner:
        context = await ask(runner, script, {"decision": "deny"})
    assert [question["detail"]["type"] for question in context.questions] == ["command"]
    assert not (workspace / "ran").exists()


async def test_a_sub_agent_asks_too(make_runner, ask, workspace):
    async with make_runner(sandbox="workspace-write") as runner:
        context = await ask(runner, "delegate shell sh -c 'echo ran > ran'", {"decision": "deny"})
    assert len(context.questions) == 1
    assert not (workspace / "ran").exists()


async def test_a_cancel_withdraws_the_question(make_runner, record, workspace):
    async with make_runner(sandbox="workspace-write") as runner:
        context = record("shell sh -c 'echo ran > ran'", kind=Deciding)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, context)
            await context.until(lambda one: one.questions)
            tasks.cancel_scope.cancel()
        await end_of_descendants(context.pid)
        assert not (workspace / "ran").exists()
        # A new attempt asks again, in the same conversation.
        after = record("shell sh -c 'echo ran > ran'", kind=Deciding, thread=context.thread)
        after.decide = {"decision": "approve"}
        await run(runner, after)
    assert (workspace / "ran").exists()


async def test_a_parked_run_ends_its_process_at_once_and_goes_on_in_its_conversation(
    make_runner, record, workspace, models
):
    async with make_runner(sandbox="workspace-write") as runner:
        context = record("say once\n& shell sh -c 'echo ran > ran'", kind=Deciding)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, context)
            await context.until(lambda one: one.questions)
            context.is_parking = True
            tasks.cancel_scope.cancel()
        assert not psutil.pid_exists(context.pid)
        after = record("say approved", kind=Deciding, thread=context.thread)
        assert (await run(runner, after)).text == "approved"
    assert after.thread.id == context.thread.id
    assert after.pid != context.pid
    assert not problems(after)
    assert any("say once" in text for text in models.requests[-1].texts)


async def test_a_question_that_is_too_long_to_judge_is_denied_with_its_size(
    make_runner, ask, workspace, models
):
    async with make_runner(sandbox="read-only") as runner:
        context = await ask(runner, f"fill {workspace}/f 3000000\nrelay", {"decision": "approve"})
    assert context.questions == []
    assert not (workspace / "f").exists()
    words = "the input of Write has 6,000,"
    assert words in problems(context)[0]
    assert words in models.requests[-1].texts[-1]
    assert of(context, "file.changed")[0]["status"] == "declined"


async def test_a_question_that_nobody_can_be_asked_is_declined(make_runner, record, workspace):
    from agent_orchestrator.domain.errors import Conflict

    class Refusing(Deciding):
        async def ask_parent(self, text, **more):
            raise Conflict("there are too many questions")

    async with make_runner(sandbox="workspace-write") as runner:
        context = record("shell sh -c 'echo ran > ran'", kind=Refusing)
        await run(runner, context)
    assert "nobody could be asked" in problems(context)[0]
    assert not (workspace / "ran").exists()
