"""Lines that an agent can say, made from the readers of its lines: their kinds and fields, in the worst shapes."""

import ast
import inspect
import json
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from attrs import frozen

from agent_orchestrator.runners.events import AgentEvent
from agent_orchestrator.runners.lines import MAX_JSON_DEPTH
from agent_orchestrator.wire import strict_json


def trees_of(*modules: ModuleType) -> list[ast.Module]:
    return [ast.parse(inspect.getsource(module)) for module in modules]


def texts_in(trees: Iterable[ast.AST], *kinds: type[ast.AST]) -> list[str]:
    """Return the string constants inside syntax tree nodes of these kinds."""
    return sorted(
        {
            one.value
            for tree in trees
            for node in ast.walk(tree)
            if isinstance(node, kinds)
            for one in ast.walk(node)
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        }
    )


def fields_in(trees: Iterable[ast.AST]) -> list[str]:
    """Return the names that are looked for in what an agent said."""
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [
        call.args[0] for call in calls if ast.unparse(call.func).endswith(".get") and call.args
    ]
    return sorted(
        {one.value for one in named if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    )


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


SHAPES: dict[str, Callable[[int], str]] = {
    "text": lambda size: json.dumps("x" * size),
    "control characters": lambda size: json.dumps("\0" * (size // 6)),
    "half pairs": lambda size: '"' + "\\ud800" * (size // 6) + '"',
    "emoji": lambda size: '"' + "😀" * (size // 4) + '"',
    "line separators": lambda size: '"' + "\u2028" * (size // 3) + '"',
    "digits": lambda size: "9" * size,
    "a fraction": lambda size: f"0.{'9' * size}e{'9' * 5}",
    "deep": lambda size: deep(size // 2),
    "lists": lambda size: "[" + "[]," * (size // 3) + "0]",
    "numbers": lambda size: "[" + "1," * (size // 2) + "0]",
    "objects": lambda size: "[" + '{"type":"text","text":"a","path":"p"},' * (size // 37) + "{}]",
    "wide": lambda size: "{" + ",".join(f'"{n}":0' for n in range(size // 8)) + "}",
    "a twin at the end": lambda size: (
        "{" + ",".join(f'"{n}":0' for n in range(size // 8)) + ',"1":{}}'
    ),
    "true": lambda _: "true",
    "nothing": lambda _: "null",
}


@frozen
class Raw:
    """JSON text."""

    text: str


def everywhere(value: str, fields: Iterable[str], **known: Any) -> str:
    """Return JSON text of an object that has the value in every field but the known ones."""
    found = {name: value for name in fields if name not in known}
    found |= {
        name: one.text if isinstance(one, Raw) else json.dumps(one) for name, one in known.items()
    }
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in found.items()) + "}"


def check_storable(events: Iterable[AgentEvent], size: int) -> None:
    """What comes of a line can be stored and read, is not deep, and not much larger than the line."""
    told = 0
    for event in events:
        text = strict_json.dumps(event.data)
        strict_json.loads(text.encode())
        told += len(text)
        assert depth_of(event.data) <= MAX_JSON_DEPTH + 1
    assert told <= 4 * size + 2_000


def depth_of(value: Any) -> int:
    level, depth = [value], 0
    while level := [
        part
        for one in level
        if isinstance(one, (dict, list))
        for part in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
    return depth
