"""Which of a user's arguments take the sandbox of the real codex away, and what the doctor says of them."""

import json
from pathlib import Path

import anyio
from attrs import evolve
from gateway import THROUGH_A_GATEWAY, Gateways, turn

from agent_orchestrator import Client, RunStatus
from agent_orchestrator.engine.doctor import runner_findings
from agentd.daemon import engine_config
from agentd.settings import load

pytestmark = THROUGH_A_GATEWAY

LIFTING = {
    "override": 'extra_args = ["-c", "sandbox_mode=danger-full-access"]',
    "yolo": 'extra_args = ["--yolo"]',
    "option": 'extra_args = ["-s", "danger-full-access"]',
    "setting": 'config = { sandbox_mode = "danger-full-access" }',
    "profile": 'config = { default_permissions = ":danger-full-access" }',
}
"""Ways to ask codex for no sandbox, besides the setting ``sandbox``."""

COUNTING = {f"codex-exec-{way}" for way in LIFTING}
"""The providers whose agents have no sandbox."""


async def _try(client: Client, provider: str, file: Path) -> None:
    """Have an agent write a file beside the directory it works in."""
    session = await client.create_session(provider=provider, cwd=str(file.parent.parent / "in"))
    run = await turn(client, session.id, f"shell echo x > {file}\nsay done")
    assert run.status is RunStatus.COMPLETED, (provider, run.error)


async def test_doctor_warns_of_settings_that_disable_the_sandbox(
    gateways: Gateways, tmp_path: Path, outside: Path
) -> None:
    (outside / "in").mkdir()
    (outside / "out").mkdir()
    gateway = gateways(config="base.toml", sandbox="workspace-write")
    base = (tmp_path / "gateway-0" / "base.toml").read_text()
    common = base.partition("command =")[2].replace('sandbox = "workspace-write"\n', "")
    tables = [base]
    for runner in ("codex-exec", "codex-app-server"):
        for way, lifting in LIFTING.items():
            # A thread of the app-server always names a sandbox.
            is_tried_named = runner == "codex-exec" and way in ("override", "yolo")
            named = [(f"{way}-named", 'sandbox = "workspace-write"')] if is_tried_named else []
            for name, sandbox in ((way, ""), *named):
                tables += [f"[providers.{runner}-{name}]", f"runner = {json.dumps(runner)}"]
                tables += [f"command ={common}", lifting, sandbox]
    gateway.stop()
    file = tmp_path / "gateway-0" / "base.toml"
    file.write_text("\n".join(tables))
    gateway.start()
    settings = load({}, {}, str(file))
    names = [name for name in settings.providers if name != "codex"]
    assert len(names) == 12
    limit = anyio.CapacityLimiter(4)
    async with gateway.client() as client, anyio.create_task_group() as tasks:

        async def try_one(name: str) -> None:
            async with limit:
                await _try(client, name, outside / "out" / name)

        for name in names:
            tasks.start_soon(try_one, name)
    assert {path.name for path in (outside / "out").iterdir()} == COUNTING
    found = runner_findings(evolve(engine_config(settings), environ={}))
    warned = {
        one.about.removeprefix("provider ") for one in found if "without its sandbox" in one.message
    }
    assert warned == COUNTING
