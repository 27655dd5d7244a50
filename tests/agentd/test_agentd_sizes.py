"""Large and malformed input to every call, made from the table of operations.

It does not block the event loop: none of its steps takes 100 ms. Input above a bound is
refused with its field. ``SIZES_BYTES`` makes the input larger (the most is 8 MiB).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from attrs import frozen
from loop_cost import loop_cost
from pace import allowed_work
from serving import exchange, serving

from agent_orchestrator.fields import FieldSpec, specs
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations.table import Operation

pytestmark = pytest.mark.anyio

SIZE = int(os.environ.get("SIZES_BYTES", "100000"))
MOST_S = 0.1
MUTATIONS = [one for one in OPERATIONS if not one.has_query]
QUERIES = [one for one in OPERATIONS if not one.is_mutation]


@frozen
class Case:
    """A body, and the fields of which the refusal names one."""

    shape: str
    body: bytes
    named: tuple[str, ...]


def values(spec: FieldSpec) -> Iterator[tuple[str, bytes]]:
    """Yield the largest and most malformed values of a field, by shape."""
    if {dict, list} & set(spec.kinds):
        yield "lists", b"[" + b"[]," * 6000 + b"0]"
        yield "very nested", b"[" * SIZE
    if dict in spec.kinds:
        names = b",".join(b'"k%d":0' % number for number in range(9000))
        yield "wide", b"{" + names + b"}"
        yield "a twin at the end", b"{" + names + b',"k8999":0}'
        yield "lists within", b'{"a":[' + b"[]," * 6000 + b"0]}"
    elif {int, float} & set(spec.kinds):
        yield "digits", b"9" * SIZE
    elif str in spec.kinds:
        yield "long text", b'"' + b"a" * SIZE + b'"'


def cases(operation: Operation[Any, Any]) -> Iterator[Case]:
    fields = specs(operation.request)
    required = {
        name: (spec.choices or ("x",))[0] if str in spec.kinds else []
        for name, spec in fields.items()
        if spec.required and name not in operation.path_fields
    }
    for name, spec in fields.items():
        if name in operation.path_fields:
            continue
        others = json.dumps({key: one for key, one in required.items() if key != name})
        start = others.encode()[:-1] + (b"," if len(others) > 2 else b"")
        for shape, value in values(spec):
            yield Case(f"{name}: {shape}", start + b'"%s":%s}' % (name.encode(), value), (name,))
    names = b",".join(b'"%d":0' % number for number in range(9000))
    yield Case("unknown fields", b"{" + names + b"}", ("0",))
    yield Case("a twin at the end", b"{" + names + b',"8999":0}', ("body",))
    yield Case("a long name", b'{"' + b"a" * SIZE + b'":0}', ("a",))


@pytest.mark.parametrize("operation", MUTATIONS, ids=lambda one: one.name)
async def test_largest_bodies_are_answered_fast_and_name_the_field(
    tmp_path: Path, operation: Operation[Any, Any]
) -> None:
    path = operation.path.replace("{", "").replace("}", "")
    head = f"{operation.method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    slow: dict[str, float] = {}
    async with serving(tmp_path) as server:
        await server.client.get("/health")
        for case in cases(operation):
            length = f"Content-Type: application/json\r\nContent-Length: {len(case.body)}\r\n\r\n"
            request = (head + length).encode() + case.body
            for _ in range(3):  # the best of three: a busy machine makes a step longer
                with loop_cost() as cost:
                    status, answer = await anyio.to_thread.run_sync(
                        exchange, server.address, request
                    )
                if cost.longest_s < allowed_work(MOST_S):
                    break
            else:
                slow[case.shape] = cost.longest_s
            assert status < 500, case.shape
            if status == 400:
                found = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["details"]["fields"]
                named = (*case.named, "body")
                assert any(name.startswith(named) for name in found), (case.shape, [*found])
                assert len(answer) < 10_000, case.shape
    assert not slow


@pytest.mark.parametrize("operation", QUERIES, ids=lambda one: one.name)
async def test_largest_queries_are_answered_fast(
    tmp_path: Path, operation: Operation[Any, Any]
) -> None:
    path = operation.path.replace("{", "").replace("}", "")
    names = [name for name in specs(operation.request) if name not in operation.path_fields]
    queries = [b"&" * 15_000, b"%41=%41&" * 1000, b"x=" + b"%ff" * 4000]
    for name in names:
        queries.append(b"%s=1&" % name.encode() * 900)
    async with serving(tmp_path) as server:
        await server.client.get("/health")
        for query in queries:
            target = f"{operation.method} {path}?".encode() + query[:15_500]
            request = target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            for _ in range(3):
                with loop_cost() as cost:
                    status, _ = await anyio.to_thread.run_sync(exchange, server.address, request)
                if cost.longest_s < allowed_work(MOST_S):
                    break
            assert status < 500, query[:50]
            assert cost.longest_s < allowed_work(MOST_S), query[:50]
