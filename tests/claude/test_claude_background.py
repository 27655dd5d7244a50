"""Work in the background: the real Claude Code is refused it, starts no turn by itself, and leaves nothing alive."""

import json

import pytest
from claude_runs import end_of_descendants, lasting, of, run, with_argument
from loops import ON_ONE_LOOP

pytestmark = [pytest.mark.anyio, pytest.mark.claude, ON_ONE_LOOP]

LATER = lasting()
"""A command that does not end."""


def helper(prompt):
    """Return the step that asks for a sub-agent in the background."""
    task = {"description": "a part", "prompt": prompt, "subagent_type": "general-purpose"}
    return f"tool Task {json.dumps({**task, 'run_in_background': True})}"


IN_BACKGROUND = (
    f"tool Bash {json.dumps({'command': LATER, 'timeout': 1000, 'run_in_background': True})}"
)
FOREGROUND = f"tool Bash {json.dumps({'command': LATER, 'timeout': 1000})}"
DETACHED = f"shell setsid {LATER} >/dev/null 2>&1 &"

REFUSED = "An unexpected parameter `run_in_background` was provided"
ENDED = "Command timed out after 1s"

STEPS = {
    "a command": (IN_BACKGROUND, REFUSED),
    "a helper with a command": (helper(FOREGROUND), ENDED),
    "a helper with a command in the background": (helper(IN_BACKGROUND), REFUSED),
    "a command that detaches": (DETACHED, ""),
    "a helper with a command that detaches": (helper(DETACHED), ""),
}


@pytest.mark.parametrize(("step", "told"), STEPS.values(), ids=STEPS)
async def test_background_work_ends_with_the_run(make_runner, record, models, step, told):
    async with make_runner() as runner:
        context = record(f"{step}\nsay done")
        assert (await run(runner, context)).text == "done"
        [call] = [one for one in of(context, "tool.completed") if one["kind"] == "command"]
        assert told in call["output"]
        assert with_argument(LATER) == []
        await end_of_descendants(context.pid)
        asked = len(models.requests)
        after = record("say after", thread=context.thread)
        assert (await run(runner, after)).text == "after"
    # No turn was started by what ended in the background: that would have ended the process too.
    assert len(models.requests) == asked + 1
    assert after.pid == context.pid
