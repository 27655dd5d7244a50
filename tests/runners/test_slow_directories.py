"""Runs in a directory that does not answer, as on a server that is gone."""

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agent_orchestrator.runners.acp import runner as acp
from agent_orchestrator.runners.acp.runner import AcpRunner
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex import runner as codex_exec
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.runners.codex.appserver import runner as app_server
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio


class Gone:
    """A directory, looked at by a function that does not return until it may."""

    def __init__(self) -> None:
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, *_: Any) -> Any:
        self.is_asked.set()
        self.may_answer.wait(60)
        return ()

    is_directory = __call__


@pytest.mark.parametrize(
    ("make", "module", "name"),
    [
        (CodexExecRunner, codex_exec, "untrusted_directories"),
        (CodexAppServerRunner, app_server, "untrusted_directories"),
        (lambda: AcpRunner(name="mine", argv=["mine"]), acp, "current_host"),
    ],
    ids=["codex exec", "app-server", "acp"],
)
async def test_a_canceled_run_does_not_wait_for_it_and_others_go_on_meanwhile(
    make: Callable[[], Any], module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Gone()
    monkeypatch.setattr(module, name, (lambda: gone) if name == "current_host" else gone)
    context = RecordingContext("x", cwd="/shared/child", shared_cwd="/shared")
    try:
        with anyio.fail_after(30):
            async with make() as runner, anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, context)
                while not gone.is_asked.is_set():
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
    finally:
        gone.may_answer.set()
