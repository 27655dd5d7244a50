"""The parts of the documents that are made from the code.

``python tests/docs/reference.py`` writes them into their pages.
"""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints, is_typeddict

import attrs
import click

from agent_orchestrator.configuration import ProviderOptions
from agent_orchestrator.domain import events as domain_events
from agent_orchestrator.domain.access import ALLOWED, Action, Relation
from agent_orchestrator.domain.details import Detail
from agent_orchestrator.domain.lifecycle import STEPS, TERMINAL, RunStatus, Signal
from agent_orchestrator.domain.model import FAILURE_CODES
from agent_orchestrator.engine.diagnosis import _FAILURES
from agent_orchestrator.fields import MAX_METADATA, FieldSpec, specs
from agent_orchestrator.known_runners import BUILT_IN
from agent_orchestrator.notice_settings import TARGET_KINDS, NotifyOptions, TargetOptions
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.tools.arguments import fields
from agent_orchestrator.tools.toolbox import TOOLS
from agent_orchestrator.wire.openapi import openapi_document
from agent_orchestrator.wire.problems import STATUSES
from agentctl.main import cli
from agentctl.options import GlobalOption
from agentd.providers import ProviderSettings
from agentd.settings import Settings, declared

DOCS: Final = Path(__file__).parents[2] / "docs"


def _refusals() -> tuple[set[int], dict[str, set[int]]]:
    """Return the error statuses that all calls share, and the additional ones of each call."""
    every = {
        described["operationId"]: {
            int(status) for status in described["responses"] if int(status) >= 400
        }
        for methods in openapi_document("0")["paths"].values()
        for described in methods.values()
    }
    found = {operation.name: every[operation.name] for operation in OPERATIONS}
    common = set.intersection(*found.values())
    return common, {name: statuses - common for name, statuses in found.items()}


def calls() -> str:
    """Return a section for every operation with its fields and an example."""
    from exchanges import example

    common, others = _refusals()
    statuses_of_all = ", ".join(map(str, sorted(common)))
    parts = [f"Every call may be refused with {statuses_of_all}; what else stands with each."]
    for operation in OPERATIONS:
        statuses = " or ".join(str(status) for status in operation.statuses)
        parts.append(f"### `{operation.method} {operation.path}`\n\n{operation.summary}")
        answer = ", ".join(f"`{name}`" for name in operation.answer.__annotations__)
        answer = "JSON lines" if operation.answers_lines else answer
        refusals = ", ".join(map(str, sorted(others[operation.name])))
        parts.append(
            f"Client: `{operation.name}`. Scope: `{operation.scope}`. Answer: {statuses}, {answer}."
            + (f" Refusals: {refusals}." if refusals else "")
        )
        rows = [_row(spec, operation.path_fields) for spec in specs(operation.request).values()]
        if rows:
            parts.append(_table(["field", "type", "default", ""], rows))
        parts.append(example(operation.name))
    return "\n\n".join(parts)


def others() -> str:
    """Return a section for every call that is no operation."""
    from exchanges import said, stream

    known = {(one.method.lower(), one.path) for one in OPERATIONS}
    parts = []
    for path, methods in openapi_document("0")["paths"].items():
        for method, described in methods.items():
            if (method, path) in known:
                continue
            call = f"{method.upper()} {path}"
            parts.append(f"### `{call}`\n\n{described['summary']}")
            if text := described.get("description"):
                parts.append(text)
            statuses = [int(status) for status in described["responses"]]
            done = " or ".join(str(status) for status in statuses if status < 400)
            refusals = ", ".join(str(status) for status in statuses if status >= 400)
            token = "Token: none" if described.get("security") == [{}] else _TOKENS[call]
            parts.append(f"{token}. Answer: {done}. Refusals: {refusals}.")
            rows = [
                f"| `{one['name']}` | {one['in']} | {one['schema'].get('type')} | "
                f"{one['description']} |"
                for one in described.get("parameters", [])
            ]
            if rows:
                parts.append(_table(["parameter", "in", "type", ""], rows))
            parts.append(stream() if call == "GET /stream" else said().others[call])
    return "\n\n".join(parts)


_TOKENS = {
    "GET /stream": "Scope: `read`",
    "GET /openapi.json": "Token: any",
    "GET /metrics": "Scope: `read`, not of a run",
    "POST /mcp": "Token: a run's",
}


def _table(head: list[str], rows: list[str]) -> str:
    return "\n".join(
        [f"| {' | '.join(head)} |".replace("  ", " "), "|" + "---|" * len(head), *rows]
    )


def _row(spec: FieldSpec, path_fields: tuple[str, ...], doc: str | None = None) -> str:
    kind = " or ".join(f"`{choice}`" for choice in spec.choices)
    kind = kind or " or ".join(_KINDS[one] for one in spec.kinds)
    default = "in the path" if spec.name in path_fields else "required" if spec.required else ""
    if not default:
        default = f"`{spec.default}`" if isinstance(spec.default, str | int | float) else ""
    if not default and isinstance(spec.default, tuple):
        default = ", ".join(f"`{one}`" for one in spec.default)
    limits = spec.limits
    bounds = [doc or limits.doc]
    if limits.max_length is not None and str in spec.kinds and not spec.choices:
        bounds.append(f"At most {limits.max_length:,} characters.")
    elif dict in spec.kinds:
        bounds.append(f"At most {limits.max_length or MAX_METADATA:,} bytes.")
    elif limits.max_length is not None and list in spec.kinds:
        bounds.append(f"At most {limits.max_length:,} of them.")
    if limits.maximum is not None and limits.minimum is not None:
        bounds.append(f"{limits.minimum:,} to {limits.maximum:,}.")
    return f"| `{spec.name}` | {kind} | {default} | {' '.join(bounds)} |"


_KINDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "list",
}


def errors() -> str:
    """Return the table of errors."""
    rows = [f"| {status} | `{kind.code}` |" for kind, status in STATUSES.items()]
    return _table(["status", "code"], rows)


def tools() -> str:
    """Return a section for every tool with its arguments."""
    parts = []
    for tool in TOOLS.values():
        parts.append(f"### `{tool.name}`\n\n{tool.description}")
        rows = [_row(spec, (), spec.limits.tool_doc) for spec in fields(tool.arguments)]
        if rows:
            parts.append(_table(["argument", "type", "default", ""], rows))
    return "\n\n".join(parts)


def events() -> str:
    """Return what the data of each type of event holds."""
    rows = [f"| `{name}` | {_plain(data)} |" for name, data in event_data().items()]
    return _table(["type", "data"], rows)


def event_data() -> dict[str, str]:
    """Return what the module of the event types says their data holds, by type."""
    assert domain_events.__doc__ is not None
    tables = re.findall(
        r"^=+  =+\ntype +data\n=+  =+\n(.*?)^=+  =+$", domain_events.__doc__, _BLOCK
    )
    rows = re.findall(r"^([\w.]+) +(.*\n(?:  +.*\n)*)", "".join(tables), re.MULTILINE)
    return {name: " ".join(data.split()) for name, data in rows}


_BLOCK: Final = re.MULTILINE | re.DOTALL


def lifecycle() -> str:
    """Return the table of a run's states: a row for each, a column for what happens to it."""
    signals = list(Signal)
    rows = [
        f"| `{status}` | "
        + " | ".join(f"`{STEPS[status, one]}`" if (status, one) in STEPS else "" for one in signals)
        + " |"
        for status in RunStatus
        if status not in TERMINAL
    ]
    final = ", ".join(f"`{status}`" for status in RunStatus if status in TERMINAL)
    table = _table(["a run that is", *map(str, signals)], rows)
    return f"{table}\n\nA run begins as `{RunStatus.QUEUED}`. A run in a final state never changes again: {final}."


def commands() -> str:
    """Return a section for each command of agentctl, from its own help."""
    parts = []
    for path, command, context in _commands(cli, click.Context(cli, info_name="agentctl")):
        parts.append(f"### `{path}`\n\n{_plain(command.help or '')}")
        rows = [
            row
            for parameter in command.get_params(context)
            if not isinstance(parameter, GlobalOption)
            and "--help" not in parameter.opts
            and (row := _command_row(parameter, context))
        ]
        if rows:
            parts.append(_table(["option", ""], rows))
        if examples := getattr(command, "examples", ""):
            lines = "\n".join(line.strip() for line in examples.strip().splitlines())
            parts.append(f"```text\n{lines}\n```")
    return "\n\n".join(parts)


def _commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
        elif not command.hidden:
            yield inner.command_path, command, inner


def _command_row(parameter: click.Parameter, context: click.Context) -> str | None:
    if isinstance(parameter, click.Argument):
        return f"| `{parameter.make_metavar(context)}` | |"
    record = parameter.get_help_record(context)
    if record is None:
        return None
    option, doc = record
    option = option.replace("|", " / ")
    return f"| `{option}` | {_plain(doc)} |"


def settings() -> str:
    """Return the table of the daemon's settings."""
    defaults = Settings()
    rows = []
    for name, setting in declared().items():
        default = getattr(defaults, name)
        shown = f"`{default}`" if default not in (None, ()) else ""
        variables = ", ".join(f"`{variable}`" for variable in setting.env)
        place = f"`{setting.table}.{setting.key}`"
        rows.append(f"| `{setting.flag}` | {variables} | {place} | {shown} | {setting.doc} |")
    return _table(["flag", "variable", "in the file", "default", ""], rows)


def providers() -> str:
    """Return the settings every provider has, with their defaults."""
    known = specs(ProviderOptions)
    rows = []
    for entry in sorted(attrs.fields(ProviderSettings), key=lambda entry: entry.name != "runner"):
        if entry.name in ("options", "set"):
            continue
        name, default = entry.name, entry.default
        if name == "inherit":
            name, default = "env", '{ inherit = "all", set = {} }'
        doc = _PROVIDER.get(name) or known[name].limits.doc
        rows.append(f"| `{name}` | {_default(default)} | {doc} |")
    return _table(["setting", "default", ""], rows)


def notices() -> str:
    """Return the settings of notices, and those of each channel."""
    parts = [_table(["setting", "default", ""], _setting_rows(NotifyOptions))]
    common = specs(TargetOptions)
    parts.append("Settings of every target, besides `channel`:")
    parts.append(_table(["setting", "default", ""], _setting_rows(TargetOptions)))
    for name, kind in TARGET_KINDS.items():
        parts.append(f'Settings of a target with `channel = "{name}"`: {_first_line(kind)}')
        parts.append(_table(["setting", "default", ""], _setting_rows(kind, without=common)))
    return "\n\n".join(parts)


def _first_line(kind: type) -> str:
    line = (kind.__doc__ or "").partition("\n")[0]
    return line[0].lower() + line[1:]


def _setting_rows(kind: type, *, without: Collection[str] = ()) -> list[str]:
    return [
        f"| `{name}` | {_default_of(spec)} | {spec.limits.doc} |"
        for name, spec in specs(kind).items()
        if name not in without
    ]


def _default_of(spec: FieldSpec) -> str:
    if isinstance(spec.default, tuple):
        return f"`{json.dumps(spec.default)}`"
    return "required" if spec.required else _default(spec.default)


_PROVIDER = {
    "runner": "The kind of runner: a built-in one or one that a package offers.",
    "env": "What its agents get of the daemon's environment (`all`, `none` or a list of names), and "
    "which variables to set.",
}


def acp_agents() -> str:
    """Return the table of the known agents that speak ACP."""
    marks = {True: "yes", False: "no"}
    rows = [
        f"| `{name}` | `{' '.join(agent.argv)}` | {agent.login} | "
        f"{(agent.ask_mode or '').rpartition('#')[2]} | {marks[agent.resumes]} | "
        f"{marks[agent.takes_tools]} | {marks[agent.steers]} |"
        for name, agent in AGENTS.items()
    ]
    header = ["agent", "program", "log in with", "mode that asks", "continues", "tools", "steering"]
    return _table(header, rows)


def runners() -> str:
    """Return the settings of each built-in runner."""
    sections: dict[str, list[str]] = {}
    for kind, place in BUILT_IN.items():
        module, _, name = place.partition(":")
        sections.setdefault(_options(getattr(import_module(module), name)), []).append(kind)
    return "\n\n".join(
        f"### {' and '.join(f'`{kind}`' for kind in kinds)}\n\n{table}"
        for table, kinds in sections.items()
    )


def _options(runner: type) -> str:
    # What the file says for every runner does not reach this one's own options.
    common = {"name", *(entry.name for entry in attrs.fields(ProviderSettings))}
    said, known = _parameters(runner), specs(runner)
    hints = get_type_hints(runner)
    rows = []
    for entry in attrs.fields(runner):
        if not entry.init or entry.name in common:
            continue
        kind = entry.metadata.get("option", hints[entry.name])
        rows.append(
            f"| `{entry.name}` | {_type(kind)} | {_default(entry.default)} | "
            f"{known[entry.name].limits.doc or _told(said[entry.name])} |"
        )
    return _table(["setting", "type", "default", ""], rows)


def _parameters(documented: type) -> dict[str, str]:
    """Return what the docstrings of a class, and of those it derives from, say of its fields."""
    return {
        name: text
        for cls in reversed(documented.__mro__)
        for name, text in re.findall(_PARAMETER, cls.__doc__ or "")
    }


def _told(text: str) -> str:
    """Return a docstring's text for a table of a page."""
    plain = _plain(text)
    return plain[0].upper() + plain[1:]


def _plain(text: str) -> str:
    without_roles = re.sub(r":\w+:`~?(.+?)`", r"`\1`", " ".join(text.split()))
    return without_roles.replace("``", "`").replace("|", "\\|")


_PARAMETER: Final = re.compile(r":param (\w+): (.+?)(?=\n\s*:|\n\s*\n|\Z)", re.DOTALL)


def _default(default: Any) -> str:
    if default is attrs.NOTHING:
        return "required"
    if default in (None, ()) or isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(hint: Any) -> str:
    parts = [part for part in get_args(hint) if part is not type(None)]
    origin = get_origin(hint) or hint
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if isinstance(origin, type):
        if origin in _KINDS:
            return _KINDS[origin]
        if issubclass(origin, Mapping):
            return "table"
        if issubclass(origin, Sequence):
            return "list of strings" if parts[0] is str else "list of tables"
    (part,) = parts  # what may be left out
    return _type(part)


def access() -> str:
    """Return the table of actions by relation."""
    relations = list(Relation)
    rows = [
        f"| {action} | "
        + " | ".join("yes" if action in ALLOWED[relation] else "" for relation in relations)
        + " |"
        for action in Action
    ]
    return _table(["", *map(str, relations)], rows)


def issues() -> str:
    """Return the table of error codes with their likely issue and hint."""
    rows = []
    for code in FAILURE_CODES:
        issue, hint = _FAILURES[code]
        rows.append(f"| `{code}` | `{issue}` | {hint} |")
    return _table(["`run.error.code`", "`likely_issue.code`", "hint"], rows)


def details() -> str:
    """Return the shapes of the details of requests."""
    return _table(
        ["`type`", "fields", ""],
        [
            f"| `{_words(hints.pop('type'))[0]}` | {_fields(hints)} | {' '.join((kind.__doc__ or '').split())} |"
            for kind in get_args(Detail)
            for hints in [get_type_hints(kind)]
        ],
    )


def _fields(hints: Mapping[str, Any]) -> str:
    """Return the fields of a detail, with those of the objects in a list in braces."""
    found = []
    for name, hint in hints.items():
        inner = next((one for one in _words(hint) if is_typeddict(one)), None)
        if name not in ("agent", "cut"):
            found.append(
                name if inner is None else f"{name} [{{{_fields(get_type_hints(inner))}}}]"
            )
    return ", ".join(found)


def _words(hint: Any) -> list[Any]:
    """Return the parts of an annotation that have no parts."""
    parts = get_args(hint)
    return [part for one in parts for part in _words(one)] if parts else [hint]


def agents() -> str:
    """Return the behaviours of each real agent that the suite in ``tests/agents`` runs."""
    from adapters import AGENTS
    from behaviours import BEHAVIOURS

    columns = [f"`{agent.name}`" for agent in AGENTS]
    rows = [f"| version tested | {' | '.join(agent.version for agent in AGENTS)} |"]
    for name, words in BEHAVIOURS.items():
        cells = [_cell(agent, name) for agent in AGENTS]
        rows.append(f"| {words} | {' | '.join(cells)} |")
    return _table(["", *columns], rows)


def _cell(agent: Any, behaviour: str) -> str:
    if behaviour in agent.cannot:
        return f"cannot: {agent.cannot[behaviour]}"
    return f"yes; but {agent.but[behaviour]}" if behaviour in agent.but else "yes"


PAGES: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "api-contract.md": {
        "calls": calls,
        "details": details,
        "errors": errors,
        "events": events,
        "lifecycle": lifecycle,
        "others": others,
        "tools": tools,
    },
    "v1-decisions.md": {"settings": settings, "providers": providers, "access": access},
    "providers.md": {"agents": agents, "runners": runners},
    "acp.md": {"agents": acp_agents},
    "notices.md": {"notices": notices},
    "runbook.md": {"issues": issues},
    "commands.md": {"commands": commands},
}


def rendered(name: str) -> str:
    """Return a page with its made parts as the code says them now."""
    page = (DOCS / name).read_text()
    for section, make in PAGES[name].items():
        begin, end = f"<!-- made: {section} -->", "<!-- end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        made = f"{begin}\n\n{make()}\n\n{end}"
        page, count = pattern.subn(lambda _, made=made: made, page)  # type: ignore[misc]
        assert count == 1, section
    return page


if __name__ == "__main__":
    # Where a daemon to talk to is, and the suite of the real agents.
    for folder in ("acp", "agentd", "support", "agents", "claude", "codex"):
        sys.path.append(str(Path(__file__).parents[1] / folder))
    for name in PAGES:
        (DOCS / name).write_text(rendered(name))
