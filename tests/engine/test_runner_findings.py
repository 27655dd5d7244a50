"""Doctor and diagnosis show what a runner reports about its agents."""

from collections.abc import Iterable, Mapping
from typing import Any

import anyio
import pytest
from attrs import define
from loops import ON_ONE_LOOP

from agent_orchestrator import AgentFailed, Client, Outcome, RunContext, open_embedded
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.model import RunError
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.runs import Diagnostics, Issue

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


@define
class Knowing:
    """A runner whose agents fail. It may know why."""

    name: str = "knowing"
    is_broken: bool = False
    is_unknown: bool = False
    capabilities: Capabilities = Capabilities(protect=True)

    def findings(self, about: str, env: Mapping[str, str]) -> Iterable[Finding]:
        yield Finding("note", about, f"its PATH has {len(env['PATH'])} characters")
        if self.is_broken:
            raise RuntimeError("no findings")

    def diagnose(self, error: RunError) -> Issue | None:
        if self.is_broken:
            raise RuntimeError("no diagnosis")
        if self.is_unknown:
            return None
        return Issue("auth_failed", error.message, "log in by hand")

    async def run(self, context: RunContext) -> Outcome:
        raise AgentFailed("auth_failed", "who are you?")


async def diagnosed(client: Client) -> Diagnostics:
    session = await client.create_session()
    sent = await client.send_message(session.id, "hello")
    assert sent.run is not None
    with anyio.fail_after(60):
        await client.wait_run(sent.run.id)
    return (await client.diagnose_run(sent.run.id)).diagnostics


async def findings(client: Client) -> list[tuple[str, str]]:
    report = await client.doctor()
    return [(one.level, one.message) for one in report.findings if one.about == "provider knowing"]


async def test_diagnosis_is_the_issue_that_the_runner_reports() -> None:
    async with open_embedded(":memory:", runners=[Knowing()]) as client:
        issue = (await diagnosed(client)).likely_issue
    assert issue == Issue("auth_failed", "who are you?", "log in by hand")


@pytest.mark.parametrize("known", [{"is_broken": True}, {"is_unknown": True}])
async def test_diagnosis_follows_from_the_error_code_if_the_runner_has_none(
    known: dict[str, Any],
) -> None:
    async with open_embedded(":memory:", runners=[Knowing(**known)]) as client:
        found = await diagnosed(client)
    assert found.likely_issue.code == "auth_failed"
    assert found.likely_issue.message == "auth_failed: who are you?"
    assert found.agent_invocation is None


@pytest.mark.parametrize("is_broken", [False, True])
async def test_doctor_shows_the_findings_of_a_runner(is_broken: bool) -> None:
    env = {"PATH": "/bin"}
    runner = Knowing(is_broken=is_broken)
    async with open_embedded(":memory:", runners=[runner], environ=env) as client:
        found = await findings(client)
    assert found[:2] == [("ok", "ready: knowing"), ("note", "its PATH has 4 characters")]
    assert found[2:] == ([("warning", "checking it failed: no findings")] if is_broken else [])


@pytest.mark.parametrize(
    ("able", "is_named"),
    [
        (Capabilities(), True),
        (Capabilities(confine=True), False),
        (Capabilities(protect=True), False),
    ],
)
async def test_doctor_names_agents_without_a_sandbox(able: Capabilities, is_named: bool) -> None:
    async with open_embedded(":memory:", runners=[Knowing(capabilities=able)]) as client:
        found = await findings(client)
        (provider,) = (await client.status()).providers
    assert any("no sandbox" in message for _, message in found) == is_named
    assert provider.capabilities == able
