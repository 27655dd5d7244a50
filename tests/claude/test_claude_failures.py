"""What the real Claude Code makes of each failure of its model, and what a run says of it."""

import pytest
from claude_runs import of, problems, run
from loops import ON_ONE_LOOP
from model_server import closed_port

from agent_orchestrator.domain.errors import AgentFailed

pytestmark = [pytest.mark.anyio, pytest.mark.claude, ON_ONE_LOOP]

LONG = "prompt is too long: 210000 tokens > 200000 maximum"

FAILURES = {
    "a credit that is used up": (
        "http 400 Your credit balance is too low to access the Anthropic API.",
        "quota_exhausted",
        "Credit balance is too low",
    ),
    "a usage limit": (
        "http 429 You have reached your usage limit. Try again tomorrow.",
        "quota_exhausted",
        "You have reached your usage limit",
    ),
    "too many requests": ("http 429", "rate_limited", "429"),
    "an overloaded model": ("http 529", "provider_error", "usually temporary"),
    "a broken model": ("http 500", "provider_error", "server-side issue"),
    "a bad request": ("http 400", "provider_error", "400"),
    "a wrong key": ("http 401", "auth_failed", "Failed to authenticate"),
    "a key that may not": ("http 403", "auth_failed", "403"),
    "no such model": ("http 404", "invalid_config", "It may not exist"),
    "a long prompt": (f"http 400 {LONG}", "context_exceeded", "Prompt is too long"),
    "a full context window": (
        "stop model_context_window_exceeded",
        "context_exceeded",
        "context window limit",
    ),
    "a large request": ("http 413", "context_exceeded", "Request too large"),
    "a refusal": ("stop refusal", "provider_error", "safeguards flagged this message"),
    "a cut answer": ("say part\n& disconnect", "provider_unreachable", "Connection to the API was lost"),
}  # fmt: skip


async def failure_of(runner, context):
    with pytest.raises(AgentFailed) as caught:
        await run(runner, context)
    return caught.value


@pytest.mark.parametrize(("script", "code", "words"), FAILURES.values(), ids=FAILURES)
async def test_a_failure_has_its_code_and_its_reason(make_runner, record, script, code, words):
    async with make_runner() as runner:
        context = record(script)
        failure = await failure_of(runner, context)
        assert (failure.code, words in failure.message) == (code, True), failure.message
        assert len(failure.message) < 2_000
        # The conversation goes on.
        after = record("say after", thread=context.thread)
        assert (await run(runner, after)).text == "after"
        assert after.thread.id == context.thread.id


async def test_an_unreachable_model_is_provider_unreachable(make_runner, record):
    with closed_port() as port:
        async with make_runner() as runner:
            context = record("say hello", env={"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}"})
            failure = await failure_of(runner, context)
    assert failure.code == "provider_unreachable"
    assert "refused" in failure.message.lower()


async def test_a_used_up_budget_is_quota_exhausted(make_runner, record):
    async with make_runner(extra_args=("--max-budget-usd", "0.01")) as runner:
        context = record("usage 100000 0 100000\nshell true\nsay more")
        failure = await failure_of(runner, context)
    assert failure.code == "quota_exhausted"
    assert failure.message == "Reached maximum budget ($0.01)"
    assert context.usage.cost_usd > 0.01


async def test_an_answer_that_is_cut_each_time_is_tried_again_and_then_fails(
    make_runner, record, models
):
    async with make_runner() as runner:
        context = record("stream 40 20 word\n& slow 0.3\n& disconnect")
        failure = await failure_of(runner, context)
    assert failure.code == "provider_unreachable"
    assert len(models.requests) > 1
    assert of(context, "agent.message")


async def test_retries_are_logged_with_their_reason(make_runner, record):
    for status, reason in (
        (429, "rate limit (429)"),
        (500, "server error (500)"),
        (529, "overloaded (529)"),
    ):
        async with make_runner() as runner:
            context = record(f"http {status} 1\nsay hello", env={"CLAUDE_CODE_MAX_RETRIES": "2"})
            assert (await run(runner, context)).text == "hello"
        [note] = problems(context)
        assert note.endswith(f"attempt 1 of 2: {reason}")
