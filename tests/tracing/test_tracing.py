"""Runs as OpenTelemetry spans: agents, their tools and children, named by the conventions."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from serving import agentd, answering, environment

from agent_orchestrator import AgentFailed, FunctionRunner, RunContext, Usage, open_embedded
from agent_orchestrator import tracing as tracing_module
from agent_orchestrator.tracing import Tracing

SECRET = "what nobody else may read"


async def worker(context: RunContext) -> str:
    tool = {"tool_id": "t1", "kind": "command", "name": "shell", "input": {"command": SECRET}}
    await context.emit("tool.started", tool)
    await context.emit("tool.completed", {**tool, "status": "completed", "output": SECRET})
    failed = {**tool, "tool_id": "t2", "name": "patch", "status": "failed", "output": ""}
    await context.emit("tool.completed", failed)
    await context.emit("tool.started", {**tool, "tool_id": "t3", "name": "slow"})
    await context.report_usage(Usage(7, 2, 3, 0.5))
    if context.prompt == "fail":
        raise AgentFailed("quota_exhausted", SECRET)
    return SECRET


async def lead(context: RunContext) -> str:
    child = await context.spawn("work", provider="worker")
    await context.wait(child.run.id)
    return "done"


async def stays_once(context: RunContext) -> str:
    if context.run.attempt == 1:
        await context.emit("agent.message", {"text": "here"})
        await anyio.sleep_forever()
    return "done"


RUNNERS = [
    FunctionRunner("worker", worker),
    FunctionRunner("lead", lead),
    FunctionRunner("stays", stays_once),
]


class Traces:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observer = Tracing(provider, vendors={"worker": "openai"})

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.mark.anyio
async def test_run_is_a_span_with_spans_of_its_tools(traces: Traces) -> None:
    async with open_embedded(":memory:", runners=RUNNERS, observers=[traces.observer]) as client:
        session = await client.create_session(provider="worker", model="large")
        sent = await client.send_message(session.id, SECRET)
        assert sent.run is not None
        await client.wait_run(sent.run.id)
    span = traces.only("invoke_agent worker")
    assert span.kind is SpanKind.CLIENT
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.agent.name": "worker",
        "gen_ai.conversation.id": session.id,
        "gen_ai.request.model": "large",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "agent_orchestrator.usage.cost_usd": 0.5,
        "agent_orchestrator.run.id": sent.run.id,
        "agent_orchestrator.run.attempt": 1,
        "agent_orchestrator.run.status": "completed",
        "agent_orchestrator.session.depth": 0,
        "agent_orchestrator.session.root_id": session.id,
    }
    tools = {name: traces.only(f"execute_tool {name}") for name in ("shell", "patch", "slow")}
    for name, tool in tools.items():
        assert tool.kind is SpanKind.INTERNAL
        assert tool.parent is not None
        assert tool.parent.span_id == span.context.span_id
        attributes = dict(tool.attributes or {})
        assert attributes["gen_ai.operation.name"] == "execute_tool"
        assert attributes["gen_ai.tool.name"] == name
    assert tools["shell"].status.status_code is StatusCode.UNSET
    assert tools["patch"].status.status_code is StatusCode.ERROR
    assert (tools["slow"].attributes or {})["error.type"] == "cut_off"
    everything = "".join(span.to_json() for span in traces.exporter.get_finished_spans())
    assert SECRET not in everything


@pytest.mark.anyio
async def test_span_of_a_failed_run_has_the_error_type(traces: Traces) -> None:
    async with open_embedded(":memory:", runners=RUNNERS, observers=[traces.observer]) as client:
        session = await client.create_session(provider="worker")
        sent = await client.send_message(session.id, "fail")
        assert sent.run is not None
        await client.wait_run(sent.run.id)
    span = traces.only("invoke_agent worker")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "quota_exhausted"
    assert SECRET not in span.to_json()


@pytest.mark.anyio
async def test_span_of_a_child_run_is_below_its_parents(traces: Traces) -> None:
    async with open_embedded(":memory:", runners=RUNNERS, observers=[traces.observer]) as client:
        session = await client.create_session(provider="lead")
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        await client.wait_run(sent.run.id)
    parent, child = traces.only("invoke_agent lead"), traces.only("invoke_agent worker")
    assert child.parent is not None
    assert child.parent.span_id == parent.context.span_id
    assert child.context.trace_id == parent.context.trace_id


@pytest.mark.anyio
async def test_spans_of_two_attempts_are_linked(traces: Traces, tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    async with open_embedded(path, runners=RUNNERS, observers=[traces.observer]) as client:
        session = await client.create_session(provider="stays")
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        with anyio.fail_after(60):
            async with client.events(session.id, follow=True) as events:
                async for event in events:
                    if event.event_type == "agent.message":
                        break
    async with open_embedded(path, runners=RUNNERS, observers=[traces.observer]) as client:
        await client.wait_run(sent.run.id)
    first, second = traces.named("invoke_agent stays")
    statuses = [
        (span.attributes or {})["agent_orchestrator.run.status"] for span in (first, second)
    ]
    assert statuses == ["queued", "completed"]
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


@pytest.mark.anyio
async def test_memory_of_the_tracing_observer_is_bounded(
    traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "MAX_REMEMBERED", 2)
    async with open_embedded(":memory:", runners=RUNNERS, observers=[traces.observer]) as client:
        session = await client.create_session(provider="worker")
        for _ in range(5):
            sent = await client.send_message(session.id, "work")
            assert sent.run is not None
            await client.wait_run(sent.run.id)
    assert len(traces.observer._places) == 2
    assert not traces.observer._attempts


# --- the daemon -----------------------------------------------------------------------------


class _Collector(BaseHTTPRequestHandler):
    taken: list[tuple[dict[str, str], ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.taken.append((dict(self.headers), ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    handler = type("Collector", (_Collector,), {"taken": []})
    with answering(handler) as url:
        yield url, handler.taken


CONFIG = """
[providers.env]
runner = "command"
argv = ["env"]
output = "text"
"""


def test_daemon_sends_spans_to_the_collector(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text(CONFIG)
    with collector() as (url, taken):
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a-key-of-the-daemon",
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
        }
        with agentd(tmp_path, "--traces", "otlp", env=env) as daemon:
            with httpx.Client(base_url=daemon.url) as client:
                session = client.post("/sessions", json={}).json()["session"]["id"]
                sent = client.post(f"/sessions/{session}/messages", json={"text": "x"}).json()
                run = client.get(f"/runs/{sent['run']['id']}/wait").json()["run"]
            assert run["status"] == "completed", run
            assert "OTEL_EXPORTER_OTLP_ENDPOINT" in run["result"]["text"]
            assert "a-key-of-the-daemon" not in run["result"]["text"]
            daemon.process.terminate()
            assert daemon.wait() == 0, daemon.stderr()
    [(headers, request)] = taken
    assert headers["x-key"] == "a-key-of-the-daemon"
    [resource] = request.resource_spans
    names = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert names["service.name"] == "agentd"
    [span] = resource.scope_spans[0].spans
    assert span.name == "invoke_agent env"
    assert not [line for line in daemon.log() if line["level"] in ("warning", "error")]


def test_unreachable_collector_does_not_delay_runs_or_the_shutdown(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text(CONFIG)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with agentd(tmp_path, "--traces", "otlp", env=env) as daemon:
        with httpx.Client(base_url=daemon.url) as client:
            session = client.post("/sessions", json={}).json()["session"]["id"]
            sent = client.post(f"/sessions/{session}/messages", json={"text": "x"}).json()
            run = client.get(f"/runs/{sent['run']['id']}/wait").json()["run"]
        assert run["status"] == "completed"
        daemon.process.terminate()
        assert daemon.wait() == 0


def test_traces_without_the_extra_name_the_package_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()  # hides the real one
    (tmp_path / "opentelemetry" / "__init__.py").write_text("")
    # Started, not forked: what daemons are forked from has loaded the real one.
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "--port", "0", "--traces", "otlp"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'agent-orchestrator[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
