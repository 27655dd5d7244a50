"""Trees in which real agents of several kinds work together, each with its own scripted model."""

import json
from typing import Any

import pytest
from adapters import AGENTS, Agent
from cases import Case, World, answer, ended, log, send, turn, until
from loops import ON_ONE_LOOP
from real_agents import required

from agent_orchestrator import Client, RunStatus, Session

KINDS = {one.name: one for one in AGENTS if one.name in ("codex-app-server", "claude", "opencode")}

MAX_INPUT = 2**20
"""Maximum number of characters of a prompt of codex."""

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    ON_ONE_LOOP,
    *(one.mark for one in KINDS.values()),
]

Call = tuple[str, dict[str, Any]]


@pytest.fixture
def children(agent: Agent) -> list[Agent]:
    """The two other kinds."""
    for one in KINDS.values():
        required(one.program)
    return [one for one in KINDS.values() if one is not agent]


@pytest.mark.parametrize("agent", KINDS.values(), ids=KINDS.keys())
async def test_limits_approvals_cancels_and_results_work_between_kinds_of_agents(
    case: Case, world: World, children: list[Agent]
) -> None:
    """Limits, sandboxes, approvals, cancels and results hold in it."""
    async with case.client() as client:
        session = await case.session(client, max_children=2)
        await limits_and_approvals(case, client, session, children)
        await a_cancel(case, world, client, session)
        await results(case, client, session, children)


def script(case: Case, *calls: Call) -> str:
    return "\n".join(f"{case.agent.tool}{name} {json.dumps(given)}" for name, given in calls)


def spawn(child: Agent | str, task: str, **more: Any) -> Call:
    name = child if isinstance(child, str) else child.name
    return "session_spawn", {"task": task, "provider": name, **more}


def wait(number: int, until: str) -> list[Call]:
    """Wait twice, as one wait may be too short for a start on a busy machine."""
    return [("session_wait", {"run_id": f"<{number}.run.id>", "until": until})] * 2


async def limits_and_approvals(
    case: Case, client: Client, session: Session, children: list[Agent]
) -> None:
    def asks(child: Agent) -> str:
        return f"{child.asking} sh -c 'echo ran > {case.workspace / child.name}'\nsay done"

    allowed, denied = children
    # Agents of opencode have no sandbox, and this provider is not open to agents with one.
    is_confined = case.agent.name != "opencode"
    calls = [spawn("opencode-hurried", "say unheard")] if is_confined else []
    first, second = len(calls), len(calls) + 1
    calls += [
        spawn(allowed, asks(allowed)),
        spawn(denied, asks(denied)),
        spawn(allowed, "say unheard"),  # a child too many
        *wait(first, "attention"),
        *wait(second, "attention"),
    ]
    for number, decision in ((len(calls) - 3, "approve"), (len(calls) - 1, "deny")):
        given = {"request_id": f"<{number}.request.id>", "decision": decision}
        calls.append(("request_resolve", given))
    calls += [*wait(first, "terminal"), *wait(second, "terminal")]
    run = await turn(client, session, f"{script(case, *calls)}\nsay decided")
    events = [one for one in await log(client, session) if one.session_id == session.id]
    tree = (await client.get_tree(session.id)).children
    found = [(await client.requests(session_id=one.session.id)).requests for one in tree]
    assert answer(run) == "decided"
    assert [one.session.provider for one in tree] == [allowed.name, denied.name]
    assert [one.runs[-1].status for one in tree] == [RunStatus.COMPLETED] * 2
    decided = [(one.decision, one.decided_by) for requests in found for one in requests]
    assert decided == [("approve", run.id), ("deny", run.id)]
    assert {one.name for one in case.workspace.iterdir()} == {allowed.name}
    tools = [event.data for event in events if event.event_type == "tool.completed"]
    spawns = [json.dumps(one) for one in tools if "session_spawn" in one["name"]]
    assert "active children of one run" in spawns[second + 1]
    assert not is_confined or "unless the provider sets `open_to_agents`" in spawns[0]


async def a_cancel(case: Case, world: World, client: Client, session: Session) -> None:
    """A cancel of a parent reaches the children that work for it."""
    children = [one.session for one in (await client.get_tree(session.id)).children]
    texts = {child.id: f"reason for {child.id}\nhang" for child in children}
    sends = [("session_send", {"session_id": one, "text": text}) for one, text in texts.items()]
    run_id = await send(client, session, script(case, *sends, *wait(0, "terminal")))
    for child in children:
        requests = world.models[str(child.provider)]
        await until(lambda requests=requests, text=texts[child.id]: has(requests, text))
    await client.cancel_run(run_id)
    assert (await ended(client, run_id)).status is RunStatus.CANCELED
    for child in children:
        last = (await client.list_runs(session_id=child.id)).runs[-1]
        assert (await ended(client, last.id)).status is RunStatus.CANCELED


def has(models: Any, text: str) -> bool:
    return any(one.prompt.strip("\n") == text for one in models.requests)


async def results(case: Case, client: Client, session: Session, children: list[Agent]) -> None:
    """Results wake the parent, also those that are together too long for one prompt of codex."""
    if case.agent.name == "codex-app-server":
        children = [KINDS["claude"], case.agent]
        texts, task = ["0123456789abcdef" * 37_500] * 2, "big 600000"
    else:
        children = [one for one in children if one.name != "opencode"][:1]
        texts, task = ["woken0 woken1"], "stream 2 0 woken"
    begun = len(case.requests)
    calls = [spawn(child, task, notify_parent="wake") for child in children]
    assert answer(await turn(client, session, f"{script(case, *calls)}\nsay sent")) == "sent"

    def told() -> list[str]:
        return [one.prompt for one in case.requests[begun:] if texts[0] in one.prompt]

    await until(lambda: sum(prompt.count(texts[0]) for prompt in told()) == len(texts))
    assert all(len(prompt) <= MAX_INPUT for prompt in told())
    for run in (await client.list_runs(session_id=session.id)).runs:
        await ended(client, run.id)
