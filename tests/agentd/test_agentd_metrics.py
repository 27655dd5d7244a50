"""The metrics for Prometheus match what happened."""

import re
from pathlib import Path

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Serving, agentd, serving, sse_reader, until

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Usage
from agent_orchestrator.ports.runner import RunContext
from agentd.exposition import CONTENT_TYPE, Histogram, gauges, render
from agentd.metrics import Metrics

SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (-?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)"
)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Parse the format strictly by its specification."""
    assert text.endswith("\n")
    samples: Samples = {}
    types: dict[str, str] = {}
    family = ""
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in types, "all lines of a metric stand together"
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert kind in ("counter", "gauge", "histogram")
            types[name] = kind
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        suffixes = ("_bucket", "_sum", "_count") if types[family] == "histogram" else ("",)
        assert name in {family + suffix for suffix in suffixes}, line
        assert "".join(found[0] for found in LABEL.finditer(labels or "")) == (labels or "")
        key = frozenset(
            (name, re.sub(r"\\.", lambda m: ESCAPES[m[0]], value))
            for name, value in LABEL.findall(labels or "")
        )
        assert (name, key) not in samples, line
        samples[name, key] = float(value)
    return samples


def of(samples: Samples, name: str, /, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def scraped(server: Serving) -> Samples:
    answer = await server.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == CONTENT_TYPE
    return parsed(answer.text)


pytestmark = pytest.mark.anyio


async def worker(context: RunContext) -> str:
    await context.report_usage(Usage(input_tokens=7, cached_input_tokens=2, output_tokens=3))
    if context.prompt == "fail":
        raise AgentFailed("quota_exhausted", "no more")
    return context.prompt


async def test_metrics_count_runs_attempts_and_tokens(tmp_path: Path) -> None:
    metrics = Metrics()
    async with serving(
        tmp_path, agents={"worker": worker}, max_concurrency=1, metrics=metrics
    ) as server:
        session = await server.session("worker")
        for _ in range(3):
            await server.say(session, "work")
        run = await server.say(session, "fail", wait=False)
        await server.client.get(f"/runs/{run}/wait")
        busy = await server.say(await server.session("forever"), "x", wait=False)
        behind = await server.say(await server.session("forever"), "x", wait=False)
        found = await scraped(server)
        assert of(found, "agentd_queue_length") == 1
        assert of(found, "agentd_runs", provider="forever", status="queued") == 1
        assert of(found, "agentd_runs", provider="forever", status="running") == 1
        assert of(found, "agentd_runs", provider="worker", status="running") == 0
        assert of(found, "agentd_workers") == 1
        assert of(found, "agentd_run_queue_seconds_count", provider="worker") == 4
        for status, count in (("completed", 3), ("failed", 1)):
            labels = {"provider": "worker", "status": status}
            assert of(found, "agentd_run_duration_seconds_count", **labels) == count
            assert of(found, "agentd_run_duration_seconds_bucket", le="+Inf", **labels) == count
            assert of(found, "agentd_attempts_total", provider="worker", left=status) == count
        failed = {"provider": "worker", "code": "quota_exhausted"}
        assert of(found, "agentd_run_failures_total", **failed) == 1
        for kind, amount in (("input", 28), ("cached_input", 8), ("output", 12)):
            assert of(found, "agentd_run_tokens_total", provider="worker", type=kind) == amount
        for one in (behind, busy):
            await server.client.post(f"/runs/{one}/cancel")
            await server.client.get(f"/runs/{one}/wait")
        found = await scraped(server)
        assert of(found, "agentd_queue_length") == 0
        assert of(found, "agentd_attempts_total", provider="forever", left="canceled") == 1
        assert of(found, "agentd_health", state="ok") == 1


async def test_metrics_count_requests_by_route(server: Serving) -> None:
    session = await server.session()
    for _ in range(2):
        await server.client.get(f"/sessions/{session}")
    await server.client.get("/sessions/nothing")
    await server.client.get("/not/there")
    await server.client.request("BREW", "/pot")
    found = await scraped(server)
    name, route = "agentd_http_request_duration_seconds_count", "/sessions/<session_id>"
    assert of(found, name, method="GET", route=route, status="200") == 2
    assert of(found, name, method="GET", route=route, status="404") == 1
    assert of(found, name, method="POST", route="/sessions", status="201") == 1
    assert of(found, name, method="any", route="none", status="404") == 2
    # Values that callers invent do not become a series.
    assert "nothing" not in (await server.client.get("/metrics")).text


async def test_metrics_count_streams(server: Serving) -> None:
    session = await server.session()
    async with sse_reader(server.client, f"/stream?sessionId={session}&cursor=0") as frames:
        with anyio.fail_after(45):
            await anext(frames)
        found = await scraped(server)
        assert of(found, "agentd_streams") == 1
        assert (of(found, "agentd_stream_items_total") or 0) >= 1

    metrics = server.metrics
    await until(lambda: metrics.streams == 0, "the stream's end")
    assert of(await scraped(server), "agentd_streams") == 0


def test_metrics_of_a_daemon_include_its_store_and_process(tmp_path: Path) -> None:
    with agentd(tmp_path, "--db", "d.db") as daemon, httpx.Client(base_url=daemon.url) as client:
        before = parsed(client.get("/metrics").text)
        for _ in range(5):
            client.post("/sessions", json={})
        after = parsed(client.get("/metrics").text)
        size = sum((tmp_path / f"d.db{part}").stat().st_size for part in ("", "-wal", "-shm"))
    for name in ("agentd_store_commit_duration_seconds_count", "agentd_store_changes_total"):
        assert (of(after, name) or 0) - (of(before, name) or 0) >= 5, name
    assert of(after, "agentd_store_events_total") == 5
    assert of(after, "agentd_store_size_bytes") == size
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"):
        assert (of(after, f"process_{name}") or 0) > 0


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_any_label_value_is_escaped_correctly(label: str, value: float) -> None:
    # Only a line feed ends a line, not Unicode's other line separators.
    text = render([gauges("x", "An x.", ("name",), {(label,): value})])
    assert of(parsed(text), "x", name=label) == value


def test_histogram_bucket_counts_values_up_to_its_bound() -> None:
    histogram = Histogram("x_seconds", "An x.", (0.5, 1))
    for value in (0.1, 0.5, 0.75, 1, 9):
        histogram.observe(value)
    found = parsed(render([histogram]))
    assert [of(found, "x_seconds_bucket", le=bound) for bound in ("0.5", "1", "+Inf")] == [2, 4, 5]
    assert of(found, "x_seconds_sum") == pytest.approx(11.35)


def test_operations_page_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    source = "".join(
        path.read_text() for path in (Path(__file__).parents[2] / "src/agentd").glob("metrics.py")
    )
    names = set(re.findall(r'"((?:agentd|process)_[a-z_]+)"', source))
    assert len(names) > 20
    assert not [name for name in names if f"`{name}`" not in page]
    documented = set(re.findall(r"`((?:agentd|process)_[a-z_]+)`", page))
    assert documented <= names
