"""``agentctl mcp``: the same tools for a client that starts its server as a command."""

from pathlib import Path

import pytest
from calling import Standing, refused, use
from driving import environment
from forking import Forks
from mcp import Client, StdioServerParameters

pytestmark = pytest.mark.anyio

SERVERS = Forks(
    "agentctl",
    """
from agentctl.main import main
import agent_orchestrator.mcp.stdio, agent_orchestrator.tools.toolbox
import agent_orchestrator.remote, agentctl.commands.mcp, anyio._backends._asyncio
""",
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def agentctl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "agentctl"
    SERVERS.put(path)
    return path


def command(agentctl: Path, agents: Standing, run_id: str, **more: str) -> StdioServerParameters:
    given = agents.environments[run_id]
    own = {name: value for name, value in given.items() if name.startswith("AGENTCTL_")}
    return StdioServerParameters(command=str(agentctl), args=["mcp"], env=environment(**own) | more)


@pytest.mark.parametrize("mode", ["legacy", "auto"], ids=["handshake", "newest"])
async def test_child_can_be_spawned_and_waited_for(
    agentctl: Path, agents: Standing, mode: str
) -> None:
    parent = await agents.start()
    async with Client(command(agentctl, agents, parent), mode=mode) as tools:
        assert len((await tools.list_tools()).tools) == 6
        spawned = await use(tools, "session_spawn", task="hello", provider="echo")
        waited = await use(tools, "session_wait", run_id=spawned["run"]["id"])
        assert waited["run"]["result"] == {"text": "echo: hello"}
        listed = await use(tools, "session_list")
        assert len(listed["children"]) == 1
        assert (await refused(tools, "session_wait", run_id="run_x"))["code"] == "not_found"
        assert (await refused(tools, "session_wait"))["code"] == "invalid_request"


async def test_question_can_be_asked_and_answered(agentctl: Path, agents: Standing) -> None:
    question = {"text": "May I?", "request_kind": "approval_request"}
    async with (
        agents.family() as (above, _, _, child),
        Client(command(agentctl, agents, child), mode="legacy") as tools,
    ):
        asked = await use(tools, "session_reply_parent", **question, timeout_s=0)
        request_id = asked["request"]["id"]
        await use(above, "request_resolve", request_id=request_id, decision="approve")
        reply = await use(tools, "session_reply_parent", request_id=request_id)
        assert reply["decision"] == "approve"


async def test_tools_of_an_ended_run_are_forbidden(agentctl: Path, agents: Standing) -> None:
    run_id = await agents.start()
    async with Client(command(agentctl, agents, run_id), mode="legacy") as tools:
        await use(tools, "session_list")
        await agents.end(run_id)
        assert (await refused(tools, "session_list"))["code"] == "forbidden"


async def test_unreachable_daemon_is_a_tool_error(agentctl: Path, agents: Standing) -> None:
    run_id = await agents.start()
    away = command(agentctl, agents, run_id, AGENTCTL_URL="http://127.0.0.1:9")
    async with Client(away, mode="legacy") as tools:
        assert (await refused(tools, "session_list"))["code"] == "unreachable"
