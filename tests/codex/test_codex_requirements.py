"""What an administrator's requirements leave of how a run is to be confined."""

import os
import shlex
import subprocess

import anyio
import pytest
from attrs import evolve
from model_server import codex_env

from agent_orchestrator import open_embedded
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.ports.runner import Outcome
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.runners.codex.appserver.requirements import Requirements
from agent_orchestrator.runners.codex.appserver.threads import LoadedThread
from agent_orchestrator.testing.runners import RecordingContext

REQUIREMENTS = """\
allowed_sandbox_modes = ["read-only"]
allowed_approval_policies = ["never"]
"""


def wanted(sandbox="workspace-write", approval_policy="on-request"):
    return LoadedThread("/w", (), None, approval_policy, sandbox)


def answer(sandboxes, policies):
    names = {"allowedSandboxModes": sandboxes, "allowedApprovalPolicies": policies}
    return {"requirements": names}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer(["read-only"], None), wanted("read-only")),
        (answer(["read-only", "workspace-write"], ["never"]), wanted(approval_policy="never")),
        (answer(None, ["untrusted", "on-request"]), wanted()),
        (answer("?", [{}]), wanted()),
        ({"requirements": None}, wanted()),
        (None, wanted()),
        ([], wanted()),
    ],
)
def test_settings_that_requirements_forbid_are_replaced_as_in_codex(said, expected):
    assert Requirements.of(said).applied(wanted()) == expected


@pytest.fixture
def required(codex, tmp_path):
    """Codex as it is where an administrator requires something, in a mount namespace."""
    layer = tmp_path / "layer"
    layer.mkdir()
    # /etc with one directory more, for this program and what it starts only.
    script = f"""set -e
        mount -t tmpfs none {shlex.quote(str(layer))}
        mkdir {shlex.quote(str(layer))}/upper {shlex.quote(str(layer))}/work
        ( cd {shlex.quote(str(layer))} &&
          mount -t overlay overlay -o lowerdir=/etc,upperdir=upper,workdir=work /etc )
        mkdir -p /etc/codex
        printf %s {shlex.quote(REQUIREMENTS)} > /etc/codex/requirements.toml
        exec {shlex.quote(codex)} "$@"
    """
    program = tmp_path / "codex"
    program.write_text(f'#!/bin/sh\nexec unshare -m sh -c {shlex.quote(script)} codex "$@"\n')
    program.chmod(0o755)
    tried = subprocess.run([program, "--version"], capture_output=True, check=False, timeout=60)
    if os.geteuid() != 0 or tried.returncode != 0:
        pytest.skip(f"no mount namespaces: {tried.stderr.decode()}")
    return str(program)


@pytest.mark.anyio
@pytest.mark.codex
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", [CodexAppServerRunner, CodexExecRunner])
async def test_a_run_reports_the_sandbox_that_requirements_impose(required, home, workspace, kind):
    context = RecordingContext("shell touch f\nsay hi", cwd=workspace, env=codex_env(home))
    context.run = evolve(context.run, sandbox="workspace-write")
    async with kind(command=required, home=str(home)) as runner:
        with anyio.fail_after(120):
            outcome = await runner.run(context)
    assert outcome.text == "hi"
    assert not (workspace / "f").exists()
    assert context.confinement is not None
    assert context.confinement["sandbox"] == "read-only"


# --- what the engine makes of it ----------------------------------------------------------------


class Confined:
    """A runner that is confined otherwise than it is asked for."""

    name = "confined"
    capabilities = Capabilities(confine=True)

    async def run(self, context):
        if context.prompt != "go":
            return Outcome("")
        with pytest.raises(ValueError, match="everything"):
            await context.report_confinement(sandbox="everything")
        await context.report_confinement(sandbox="read-only")
        await context.report_confinement(sandbox="read-only")
        child = await context.spawn("hello")
        assert context.run.sandbox == "read-only"
        return Outcome(child.session.sandbox or "")


@pytest.mark.anyio
async def test_a_run_and_its_children_record_the_imposed_sandbox(tmp_path):
    async with open_embedded(":memory:", runners=[Confined()]) as client:
        session = await client.create_session(cwd=str(tmp_path), sandbox="workspace-write")
        sent = await client.send_message(session.id, "go")
        run = (await client.wait_run(sent.run.id, timeout_s=60)).run
        events = [event async for event in client.events(session.id)]
    assert run.result is not None, run.error
    assert (run.result.text, run.sandbox) == ("read-only", "read-only")
    (told,) = [event.data for event in events if event.event_type == "run.error"]
    assert "read-only" in told["message"]
