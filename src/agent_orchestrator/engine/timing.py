"""Time limits of an attempt: in total, and without output. Time in which it is blocked does not count."""

from math import inf
from typing import Final

import anyio

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import RunError
from agent_orchestrator.engine.config import ProviderConfig
from agent_orchestrator.engine.recorder import Recorder
from agent_orchestrator.engine.running_attempt import RunningAttempt
from agent_orchestrator.ports.changes import Draft

SILENCE_LIMIT: Final = "(silence_timeout_s)"
"""The end of the error message of a run that failed because of its silence."""


async def enforce_time_limits(
    running: RunningAttempt, recorder: Recorder, provider: ProviderConfig
) -> None:
    """Fail a run that exceeds a time limit of the provider, as long as this provider executes it.

    Warn at half of ``silence_timeout_s``.
    """
    limit_s = inf if provider.run_timeout_s is None else provider.run_timeout_s
    quiet = inf if provider.silence_timeout_s is None else provider.silence_timeout_s
    began_at = recorder.last_activity_at = anyio.current_time()
    still_before_s = running.blocked.total_s
    warned_of = -inf
    while running.provider is provider:
        now = anyio.current_time()
        last_activity_at = max(recorder.last_activity_at, running.blocked.ended_at)
        must_end_at = began_at + running.blocked.total_s - still_before_s + limit_s
        if now >= must_end_at:
            message = f"the run was not done within {limit_s:g} s (run_timeout_s)"
        elif now >= last_activity_at + quiet:
            # A busy machine may have missed the time of the warning.
            if warned_of < last_activity_at:
                await recorder.put(_warning(running, now - last_activity_at, quiet))
            message = f"the agent had no output for {quiet:g} s {SILENCE_LIMIT}"
        else:
            due = last_activity_at + (quiet if warned_of >= last_activity_at else quiet / 2)
            if now >= due:
                warned_of, due = last_activity_at, last_activity_at + quiet
                await recorder.put(_warning(running, now - last_activity_at, quiet))
            await anyio.sleep_until(min(due, must_end_at))
            await running.blocked.wait_over()
            continue
        running.fail(RunError("timeout", message))
        return


def _warning(running: RunningAttempt, silent_s: float, quiet: float) -> Draft:
    data = {
        "code": "agent_silent",
        "message": f"the agent has had no output for {silent_s:.3g} s; the run fails after {quiet:g} s",
        "silent_s": round(silent_s, 3),
    }
    return Draft(EventType.RUN_ERROR, data, running.run.id, running.run.attempt)
