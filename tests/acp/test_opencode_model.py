"""The real opencode, of which the runner hears that its model or its tools fail."""

from typing import Final

import anyio
import pytest
from chat_model import ChatModel
from loops import ON_ONE_LOOP
from model_server import closed_port
from opencode import PATIENCE_S
from opencode_home import opencode_env
from test_acp_runner import context_for, failed, following, messages, of

from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.runners.acp.runner import AcpRunner

pytestmark = [pytest.mark.anyio, pytest.mark.acp, pytest.mark.timeout(600), ON_ONE_LOOP]


FAILED: Final = "a request to the model of opencode failed: "


async def test_errors_of_the_model_and_unreachable_tools_are_reported(
    opencode: str, opencode_home, workspace, model: ChatModel
) -> None:
    argv = [opencode, *AGENTS["opencode"].argv[1:]]
    env = opencode_env(opencode_home, model.port)
    with closed_port() as port:
        tools = {"AGENTCTL_URL": f"http://127.0.0.1:{port}", "AGENTCTL_AUTH_TOKEN": "token"}
        async with AcpRunner(name="opencode", argv=argv) as one:
            first = context_for("say hi", cwd=workspace, env={**env, **tools})
            with anyio.fail_after(PATIENCE_S):
                assert (await one.run(first)).text == "hi"
            (note,) = [data["message"] for data in of(first, "run.error")]
            assert note == "opencode worked without its tools: it did not connect to them"

            # Errors that it does not repeat.
            words = set[str]()
            for prompt, code in (
                ("http 401 Incorrect API key provided", "auth_failed"),
                ("http 402 insufficient_quota", "quota_exhausted"),
                ("http 400 a bad request", "provider_error"),
            ):
                context = following(first, prompt, env=env)
                failure = await failed(one, context)
                assert (failure.code, failure.message) == (code, prompt.split(" ", 2)[2])
                # Its log comes through another pipe, perhaps only after the failure, in the next run.
                words.add(f"{FAILED}{failure.message}")
                assert {data["message"] for data in of(context, "run.error")} <= words

            # One that it repeats for a minute or more, without a word in the protocol.
            context = following(first, "http 500 broken", env=env)
            with anyio.fail_after(PATIENCE_S), anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(one.run, context)
                    broken = {"message": f"{FAILED}broken"}
                    await context.until(lambda one: broken in of(one, "run.error"))
                    scope.cancel()

            # A connection that breaks in the middle of the answer: it repeats the request.
            context = following(first, "say whole\nreset", env=env)
            with anyio.fail_after(PATIENCE_S):
                text = (await one.run(context)).text
            assert text in ("whole", "wholewhole")  # with what it said before, if that had arrived
            assert all(data["message"].startswith(FAILED) for data in of(context, "run.error"))

            # An answer that is cut off: it asks again by itself.
            context = following(first, "say half\ndisconnect", env=env)
            with anyio.fail_after(PATIENCE_S):
                await one.run(context)
            assert messages(context)[0] == "half"
