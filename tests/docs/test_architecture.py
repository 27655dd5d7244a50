"""The architecture document matches the layers and the path of a message."""

import importlib
import inspect
import itertools
import re
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import anyio
import pytest
from attrs import frozen
from pages import ROOT
from serving import serving

from agent_orchestrator import connect

PAGE = ROOT / "docs" / "architecture.md"


def section(title: str) -> str:
    return PAGE.read_text().partition(f"# {title}\n")[2].partition("\n#")[0]


def test_layers_in_the_document_are_those_that_import_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layered] = [one for one in contracts["contracts"] if one["type"] == "layers"]
    rows = re.findall(r"^\| (`[^|]+`) \|", section("The layers"), re.MULTILINE)
    documented = [re.findall(r"`(\w+)`", row) for row in rows]
    assert documented == [re.split(r" [|:] ", layer) for layer in layered["layers"]]
    package = ROOT / "src" / "agent_orchestrator"
    there = {
        path.stem
        for path in package.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {"__init__"} == {name for row in documented for name in row}


@frozen
class Hop:
    number: int
    name: str

    @property
    def code(self) -> CodeType:
        module, _, path = self.name.partition(":")
        function: Any = reduce(getattr, path.split("."), importlib.import_module(module))
        code: CodeType = inspect.unwrap(function).__code__
        return code


def hops(title: str) -> list[Hop]:
    rows = re.findall(r"^\| (\d+) \| `(\S+)` \|", section(title), re.MULTILINE)
    assert rows
    return [Hop(int(number), name) for number, name in rows]


@contextmanager
def tracing() -> Iterator[list[CodeType]]:
    """Record the functions called in this thread and in threads that start meanwhile, each once."""
    called: list[CodeType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if (
            event == "call"
            and "/src/agent" in frame.f_code.co_filename
            and frame.f_code not in called
        ):
            called.append(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def check(title: str, called: list[CodeType]) -> None:
    found = hops(title)
    for hop in found:
        assert hop.code in called, f"{title}: {hop.name} is not called"
    places = [(hop.number, called.index(hop.code), hop.name) for hop in found]
    for before, after in itertools.pairwise(places):
        assert before[0] == after[0] or before[1] < after[1], (title, before[2], after[2])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_message_takes_the_path_in_the_document(tmp_path: Path) -> None:
    with tracing() as called, anyio.fail_after(120):
        async with serving(tmp_path) as server, connect(server.url) as client:
            session = await client.create_session(cwd=str(tmp_path))
            called.clear()
            sent = await client.send_message(session.id, "hi")
            assert sent.run is not None
            check("It is accepted", called.copy())
            assert (await client.wait_run(sent.run.id)).run.status == "completed"
            check("It is executed", called.copy())
            called.clear()
            events = [event.event_type async for event in client.events(session.id, follow=False)]
            assert events[-1] == "run.completed"
            check("It is read", called.copy())
