"""A context for runs in which the test decides what is asked."""

import json
from datetime import UTC, datetime

import anyio
from attrs import evolve

from agent_orchestrator.domain.approvals import RESOLUTIONS, decide
from agent_orchestrator.domain.model import Request
from agent_orchestrator.testing.runners import RecordingContext

THEN = datetime(2030, 1, 1, tzinfo=UTC)
EXPIRED = "expired"
CANCELED = "canceled"


class Deciding(RecordingContext):
    """A context in which what is asked is decided as told; without that, never.

    ``decide`` has the arguments of :func:`agent_orchestrator.domain.approvals.decide`, or is :data:`EXPIRED` or
    :data:`CANCELED`. A list of these is for one question after the other.
    """

    decide = None

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.questions = []

    async def ask_parent(
        self, text, *, kind="input_request", detail=None, options=None, expires_in_s=3600.0
    ):
        json.dumps(detail)
        self.questions.append({"text": text, "kind": kind, "detail": detail, "options": options})
        await self._note("ask")
        decision = self.decide
        if isinstance(decision, list):
            decision = decision.pop(0) if decision else None
        if decision is None:
            await anyio.sleep_forever()
        request = Request(
            id="req_0",
            session_id="ses_0",
            run_id="run_0",
            attempt=1,
            root_session_id="ses_0",
            parent_session_id=None,
            kind=kind,
            text=text,
            detail=detail,
            options=options,
            status="expired",
            decision=None,
            answer=None,
            scope=None,
            decided_by=None,
            created_at=THEN,
            expires_at=THEN,
            resolved_at=THEN,
        )
        if isinstance(decision, str):
            return evolve(request, status=decision)
        request = decide(request, **decision)
        return evolve(request, status=RESOLUTIONS[kind, request.decision].status)
