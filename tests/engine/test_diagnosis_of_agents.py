"""The diagnosis of agents that cannot be made to ask, or whose login is refused."""

from collections.abc import Mapping

import pytest
from attrs import field, frozen

from agent_orchestrator import open_embedded
from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.operations.runs import Issue
from agent_orchestrator.ports.runner import CANNOT_ASK, Availability, Outcome, RunContext

pytestmark = pytest.mark.anyio


@frozen
class _Failing:
    """A runner whose runs fail, with a probe that knows about its login."""

    code: str
    message: str
    logged_in: bool | None = None
    name: str = field(default="agent", init=False)

    async def run(self, context: RunContext) -> Outcome:
        raise AgentFailed(self.code, self.message)

    async def probe(self, env: Mapping[str, str]) -> Availability:
        return Availability(available=True, logged_in=self.logged_in)


async def issue_of(client: Client) -> Issue:
    sent = await client.start_session("work")
    assert sent.run is not None
    run = (await client.wait_run(sent.run.id, timeout_s=60)).run
    return (await client.diagnose_run(run.id)).diagnostics.likely_issue


@pytest.mark.parametrize(
    ("logged_in", "code"), [(True, "login_stale"), (False, "auth_failed"), (None, "auth_failed")]
)
async def test_a_refused_login_is_stale_if_the_agent_has_one(
    logged_in: bool | None, code: str
) -> None:
    runner = _Failing("auth_failed", "401 from the model", logged_in)
    async with open_embedded(":memory:", runners=[runner]) as client:
        issue = await issue_of(client)
    assert issue.code == code
    assert issue.message.startswith("auth_failed: 401 from the model")
    assert issue.hint


@pytest.mark.parametrize("code", ["provider_unavailable", "invalid_config", "provider_error"])
async def test_an_agent_that_cannot_ask_is_named_whatever_the_code_of_its_failure(
    code: str,
) -> None:
    runner = _Failing(code, f"{CANNOT_ASK}: its self-test failed")
    async with open_embedded(":memory:", runners=[runner]) as client:
        issue = await issue_of(client)
    assert issue.code == "agent_cannot_ask"
    assert "self-test" in issue.message
    assert issue.hint == "install another version of the agent"
