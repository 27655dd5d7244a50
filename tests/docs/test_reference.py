"""The generated parts of the documents match the code."""

import re

import anyio
import attrs
import pytest
from reference import DOCS, PAGES, event_data, rendered

from agent_orchestrator import FunctionRunner, RunContext, open_embedded
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event, Request
from agent_orchestrator.runners.demo import DemoRunner
from agent_orchestrator.wire.openapi import openapi_document


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_of_the_documents_are_up_to_date(name: str) -> None:
    assert rendered(name) == (DOCS / name).read_text(), "run: python tests/docs/reference.py"


def test_every_call_has_an_example_with_its_answer() -> None:
    page = (DOCS / "api-contract.md").read_text()
    sections = dict(
        re.findall(r"^### `([A-Z]+ /.*?)`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    )
    described = {
        f"{method.upper()} {path}": operation
        for path, methods in openapi_document("0")["paths"].items()
        for method, operation in methods.items()
    }
    assert sections.keys() == described.keys()
    for call, operation in described.items():
        section = sections[call]
        assert re.search(r"(Scope|Token): ", section), call
        (example, *_) = re.findall(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        method, path = call.split()
        parts = [re.escape(part) for part in re.split(r"{\w+}", path)]
        asked, _, answered = example.partition("\n\n")
        assert re.match(rf"{method} {r'[^/ ?]+'.join(parts)}(\?\S+)?$", asked, re.MULTILINE), call
        if method in ("POST", "PUT", "PATCH"):
            # A body is shown, unless it may be empty.
            assert "{" in asked or not operation["requestBody"].get("required"), call
        if call != "GET /stream":  # the line of the status is not shown there
            status = answered.split(maxsplit=1)[0]
            assert status in operation["responses"], call
            assert int(status) < 300, call
        assert len(answered.splitlines()) > 1, call


async def _parent(context: RunContext) -> str:
    if context.session.depth:
        await context.ask_parent("May I?", kind="approval_request")
        return "done"
    await context.set_thread("conversation")
    child = await context.spawn("Ask")
    await context.wait(child.run.id)
    return "all done"


async def _written() -> list[Event]:
    """Return the events of a parent with a child, of the demo, and of a cancel."""
    runners = [FunctionRunner("parent", _parent), DemoRunner(pause_s=0)]
    found = []
    async with open_embedded(":memory:", runners=runners) as client:
        session = await client.create_session(title="first")
        sent = await client.send_message(session.id, "Go")
        reply = await client.wait_run(sent.run.id, until="attention", timeout_s=60)
        await client.resolve_request(reply.request.id, "approve")
        await client.wait_run(sent.run.id, timeout_s=60)
        shown = await client.send_message(session.id, "Show", provider="demo")
        await client.wait_run(shown.run.id, timeout_s=60)
        held = await client.send_message(session.id, "Hold", provider="manual")
        await client.cancel_run(held.run.id, reason="enough")
        await client.update_session(session.id, title="last", status="closed")
        for one in (await client.list_sessions()).sessions:
            found += (await client.list_events(one.id)).events
    return found


def test_event_data_has_the_fields_in_the_reference(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    documented = event_data()
    assert documented.keys() == set(EventType)
    written = anyio.run(_written)
    kinds = {event.event_type for event in written}
    assert {"child.finished", "run.resumed", "request.resolved", "run.canceled"} <= kinds
    for event in written:
        text = documented[event.event_type]
        if event.event_type.startswith("request."):
            assert set(event.data) == {field.name for field in attrs.fields(Request)}
        elif event.event_type != "session.closed":
            assert set(event.data) <= set(re.findall(r"\w+", text)), event
            always = re.sub(r"[;:].*|\[.*?\]+|{.*?}", "", text)
            assert set(re.findall(r"\w+", always)) <= set(event.data), event
