"""The codex runner that chooses between the app-server and ``codex exec``."""

from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen

from agent_orchestrator.ports.runner import Availability, Outcome, RunContext
from agent_orchestrator.runners.codex.appserver.runner import CodexAppServerRunner
from agent_orchestrator.runners.codex.runner import CodexExecRunner
from agent_orchestrator.runners.codex.versions import VERSIONS
from agent_orchestrator.runners.live.pool import NotStarted

APP_SERVER = "codex-app-server"
EXEC = "codex-exec"


@frozen(kw_only=True, eq=False)
class CodexRunner(CodexAppServerRunner):
    """Runs each message as a turn of a warm ``codex app-server`` if the installed codex has a supported
    one.

    Otherwise it runs one ``codex exec`` for each message, which cannot ask: codex's approvals are
    declined. Both continue each other's threads.
    """

    _exec: CodexExecRunner = field(init=False, repr=False)
    """Used without entering its scope, which only keeps the fork server. This runner keeps that too."""

    @_exec.default
    def _new_exec(self) -> CodexExecRunner:
        extra_args: Any = (
            self.extra_args
        )  # the type that mypy knows of a converted field is not usable
        return CodexExecRunner(
            name=self.name,
            command=self.command,
            home=self.home,
            profile=self.profile,
            extra_args=extra_args,
            sandbox=self.sandbox,
            model=self.model,
            on_missing_thread=self.on_missing_thread,
            config=self.config,
            tools=self.tools,
        )

    def _probe_now(self, env: Mapping[str, str]) -> Availability:
        availability = super()._probe_now(env)
        if not availability.available and (plain := self._exec.probe_now(env)).available:
            reason = f"{availability.reason}; until then runs use codex exec, which cannot ask for approval"
            availability = evolve(plain, mode=EXEC, reason=reason)
        if availability.mode == APP_SERVER:
            return availability
        return evolve(availability, capabilities=self._exec.capabilities)

    def _with_findings(self, availability: Availability) -> Availability:
        if not availability.available:
            return evolve(availability, mode=EXEC)
        judged = super()._with_findings(availability)
        if judged.available and VERSIONS.has(availability.version):
            return evolve(judged, mode=APP_SERVER)
        if judged.available or availability.reason is not None:
            return evolve(availability, mode=EXEC)
        reason = f"{judged.reason}; until then runs use codex exec, which cannot ask for approval"
        return evolve(availability, mode=EXEC, reason=reason)

    async def run(self, context: RunContext) -> Outcome:
        """Run the turn.

        :raises AgentFailed: if codex cannot be started, fails, or ends before its turn does.
        """
        if await self._has_app_server(context.env):
            try:
                return await super().run(context)
            except NotStarted:
                pass  # An unknown program, or one that cannot start in either way: exec reports the reason.
        return await self._exec.run(context)

    async def _has_app_server(self, env: Mapping[str, str]) -> bool:
        return (await self.probe(env)).mode == APP_SERVER
