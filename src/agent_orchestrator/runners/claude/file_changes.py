"""The changes of Claude Code's file tools, as in ``file.changed``. Names and shapes are those of 2.1.332.

A new file is ``add``, with its text. Any other is ``update``, with a unified diff.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from agent_orchestrator.runners.diffs import unified
from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.numbers import whole
from agent_orchestrator.runners.present_files import PresentFile

FILE_TOOLS: Final = frozenset({"Edit", "MultiEdit", "NotebookEdit", "Write"})

_PLACES: Final = ("oldStart", "oldLines", "newStart", "newLines")

_MAX_TEXT: Final = 4 * 2**20
"""Maximum characters of a file after a change that is shown with its surroundings."""

_MAX_EDITS: Final = 100
"""Maximum number of edits in one call that are shown so. Each searches the file."""

_UNKNOWN: Final = PresentFile(exists=True)


def path_of(tool_input: JsonObject) -> str:
    """Return the path of the file that a tool would change."""
    return text(tool_input.get("file_path") or tool_input.get("notebook_path"))


def proposed(name: str, tool_input: JsonObject, present: PresentFile = _UNKNOWN) -> dict[str, Any]:
    """Return the change that a tool would make.

    :param present: the file before the change. Without its text, the diff comes from the tool's input only.
    """
    path = path_of(tool_input)
    if not present.exists:
        return {"path": path, "kind": "add", "diff": _after(name, tool_input, "") or ""}
    diff = None
    if present.text is not None and (after := _after(name, tool_input, present.text)) is not None:
        diff = unified(present.text, after)
    elif name == "Write":
        diff = unified("", text(tool_input.get("content")))
    elif name == "NotebookEdit":
        mode, old = tool_input.get("edit_mode"), _cell(tool_input, present.text)
        diff = _cell_diff(mode, old, text(tool_input.get("new_source")))
    return {"path": path, "kind": "update", "diff": _pieces(tool_input) if diff is None else diff}


def completed(name: str, tool_input: JsonObject, result: Any) -> dict[str, Any]:
    """Return the change that a tool has made.

    :param result: its ``tool_use_result``.
    """
    if not isinstance(result, Mapping):
        return proposed(name, tool_input)
    path = text(result.get("filePath")) or path_of(tool_input)
    if result.get("type") == "create":
        return {"path": path, "kind": "add", "diff": text(result.get("content"))}
    if result.get("oldString") == "" == result.get("originalFile"):
        return {"path": path, "kind": "add", "diff": text(result.get("newString"))}
    if "new_source" in result:
        old, new = text(result.get("old_source")), text(result.get("new_source"))
        diff = _cell_diff(result.get("edit_mode"), old, new)
    elif isinstance(patch := result.get("structuredPatch"), list):
        diff = _patch(patch)
    else:
        return proposed(name, tool_input)
    return {"path": path, "kind": "update", "diff": diff}


def _after(name: str, tool_input: JsonObject, before: str) -> str | None:
    """Return the text of a file after a change; None if it is unknown, or too long."""
    if name == "Write":
        return text(tool_input.get("content"))
    if name == "NotebookEdit":
        return None
    edits = _edits(tool_input)
    if len(edits) > _MAX_EDITS:
        return None
    for one in edits:
        old, new = text(one.get("old_string")), text(one.get("new_string"))
        if old not in before or (not old and before):
            return None
        count = before.count(old) if one.get("replace_all") is True else 1
        if len(before) + count * (len(new) - len(old)) > _MAX_TEXT:
            return None
        before = before.replace(old, new, count)
    return before


def _edits(tool_input: JsonObject) -> list[JsonObject]:
    found = tool_input.get("edits")
    edits = found if isinstance(found, list) else [tool_input]
    return [one for one in edits if isinstance(one, Mapping)]


def _pieces(tool_input: JsonObject) -> str:
    """Return the replaced texts as hunks without line numbers."""
    return "".join(
        unified(text(one.get("old_string")), text(one.get("new_string")))
        for one in _edits(tool_input)
    )


def _cell(tool_input: JsonObject, notebook: str | None) -> str:
    """Return the present text of a notebook's cell; empty if it is unknown."""
    try:
        found = json.loads(notebook or "null")
    except (ValueError, RecursionError):
        return ""
    cells = found.get("cells") if isinstance(found, dict) else None
    for cell in cells if isinstance(cells, list) else ():
        if isinstance(cell, dict) and cell.get("id") == tool_input.get("cell_id"):
            source = cell.get("source")
            return "".join(map(text, source)) if isinstance(source, list) else text(source)
    return ""


def _cell_diff(mode: Any, old: str, new: str) -> str:
    return unified("" if mode == "insert" else old, "" if mode == "delete" else new)


def _patch(hunks: list[Any]) -> str:
    lines: list[str] = []
    for one in hunks:
        if isinstance(one, Mapping):
            places = [whole(one.get(name)) or 0 for name in _PLACES]
            lines.append("@@ -{},{} +{},{} @@".format(*places))
            found = one.get("lines")
            lines += [text(line) for line in found] if isinstance(found, list) else []
    return "".join(f"{line}\n" for line in lines)
