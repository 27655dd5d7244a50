"""The app-server runner with the real codex against the local model server."""

import pytest
from model_server import FAKE_KEY, codex_env

from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.testing.runners import RecordingContext, RunnerContract

pytestmark = [pytest.mark.anyio, pytest.mark.codex]


def make_runner(codex, home, **more):
    more.setdefault("sandbox", "danger-full-access")
    return CodexAppServerRunner(command=codex, home=str(home), **more)


class TestContract(RunnerContract):
    succeeding, answer = "say hello", "hello"
    lasting = "shell sleep 300"
    failing, failure_code = "http 500", "provider_error"
    shares_processes = True

    @pytest.fixture(autouse=True)
    def surroundings(self, codex, home, monkeypatch):
        self.codex, self.home = codex, home
        monkeypatch.setenv("FAKE_KEY", FAKE_KEY)

    def make_runner(self):
        return make_runner(self.codex, self.home)

    def make_context(self, prompt, cwd):
        return RecordingContext(prompt, cwd=cwd, env=codex_env(self.home))
