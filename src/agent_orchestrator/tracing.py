"""OpenTelemetry traces of runs. Needs the extra ``agent-orchestrator[otel]``.

    async with open_embedded("data.db", observers=[Tracing()]) as client: ...

Each attempt of a run is a span ``invoke_agent``. Its child spans are an ``execute_tool`` for each tool
that the agent uses, and the spans of child runs. Attributes have the names of OpenTelemetry's semantic
conventions for generative AI (1.41, in development), or begin with ``agent_orchestrator.``. Traces do
not contain prompts, answers, or the input of tools.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Run, Session, Usage

MAX_REMEMBERED: Final = 10_000
"""Maximum number of runs whose span context is kept for later children and attempts."""

_USAGE_NAMES: Final = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "cached_input_tokens": "gen_ai.usage.cache_read.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cost_usd": "agent_orchestrator.usage.cost_usd",
}


@define
class _Attempt:
    span: Span
    tools: dict[str, Span] = field(factory=dict)
    """Open spans by tool id."""


class Tracing:
    """An :class:`~agent_orchestrator.ports.observer.Observer` that creates spans.

    :param provider: the OpenTelemetry provider; None means the application's global one.
    :param vendors: ``gen_ai.provider.name`` (such as ``openai``) by the name of our provider. Without an
        entry it is the name of our provider.
    """

    def __init__(
        self, provider: TracerProvider | None = None, *, vendors: Mapping[str, str] | None = None
    ) -> None:
        self._tracer: Tracer = get_tracer("agent_orchestrator", tracer_provider=provider)
        self._makers = dict(vendors or {})
        self._attempts: dict[tuple[str, int], _Attempt] = {}
        self._places: OrderedDict[str, SpanContext] = OrderedDict()

    def started(self, run: Run, session: Session) -> None:
        """Start a span below the parent run's, if that is known, with a link to the previous attempt."""
        earlier = self._places.get(run.id)
        parent_context = self._places.get(run.parent_run_id or "", INVALID_SPAN_CONTEXT)
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": self._makers.get(run.provider, run.provider),
            "gen_ai.agent.name": run.provider,
            "gen_ai.conversation.id": run.session_id,
            "agent_orchestrator.run.id": run.id,
            "agent_orchestrator.run.attempt": run.attempt,
            "agent_orchestrator.session.depth": session.depth,
            "agent_orchestrator.session.root_id": session.root_session_id,
        }
        if run.model is not None:
            attributes["gen_ai.request.model"] = run.model
        span = self._tracer.start_span(
            f"invoke_agent {run.provider}",
            set_span_in_context(NonRecordingSpan(parent_context)),
            SpanKind.CLIENT,
            attributes,
            [] if earlier is None else [Link(earlier)],
        )
        self._attempts[run.id, run.attempt] = _Attempt(span)
        self._places[run.id] = span.get_span_context()
        self._places.move_to_end(run.id)
        if len(self._places) > MAX_REMEMBERED:
            self._places.popitem(last=False)

    def emitted(self, run: Run, event_type: str, data: Mapping[str, Any]) -> None:
        """Start or end the span of a tool, or add ``run.error`` as a span event."""
        attempt = self._attempts.get((run.id, run.attempt))
        if attempt is None or not attempt.span.is_recording():
            return
        if event_type == EventType.TOOL_STARTED:
            tool_id = _text(data, "tool_id")
            if tool_id not in attempt.tools:
                attempt.tools[tool_id] = self._tool(attempt, data)
        elif event_type == EventType.TOOL_COMPLETED:
            span = attempt.tools.pop(_text(data, "tool_id"), None) or self._tool(attempt, data)
            if data.get("status") == "failed":
                span.set_attribute("error.type", "tool_error")
                span.set_status(Status(StatusCode.ERROR))
            span.end()
        elif event_type == EventType.RUN_ERROR:
            attempt.span.add_event("run.error", {"code": _text(data, "code")})

    def _tool(self, attempt: _Attempt, data: Mapping[str, Any]) -> Span:
        name = _text(data, "name") or _text(data, "kind") or "tool"
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": _text(data, "tool_id"),
            "agent_orchestrator.tool.kind": _text(data, "kind"),
        }
        return self._tracer.start_span(
            f"execute_tool {name}",
            set_span_in_context(attempt.span),
            SpanKind.INTERNAL,
            attributes,
        )

    def ended(self, run: Run, after: Run | None) -> None:
        """End the attempt's span, and those of tools that have not completed."""
        attempt = self._attempts.pop((run.id, run.attempt), None)
        if attempt is None:
            return
        span = attempt.span
        for tool in attempt.tools.values():
            tool.set_attribute("error.type", "cut_off")
            tool.end()
        if after is not None:
            span.set_attribute("agent_orchestrator.run.status", str(after.status))
            if after.provider != run.provider:  # a fallback replaced it
                span.update_name(f"invoke_agent {after.provider}")
                span.set_attribute("gen_ai.agent.name", after.provider)
                vendor = self._makers.get(after.provider, after.provider)
                span.set_attribute("gen_ai.provider.name", vendor)
            if after.usage is not None:
                span.set_attributes(_usage_attributes(after.usage))
            if after.status is RunStatus.FAILED and after.error is not None:
                span.set_attribute("error.type", after.error.code)
                span.set_status(Status(StatusCode.ERROR, after.error.code))
        span.end()


def _usage_attributes(usage: Usage) -> dict[str, int | float]:
    values = {name: getattr(usage, field) for field, name in _USAGE_NAMES.items()}
    return {name: value for name, value in values.items() if value is not None}


def _text(data: Mapping[str, Any], name: str) -> str:
    """Return a text of an agent's event, cut to the length of a name."""
    value = data.get(name)
    return value[:200] if isinstance(value, str) else ""
