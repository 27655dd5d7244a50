"""Rules for the meaning of JSON objects that an agent prints.

The first rule whose ``when`` matches an object applies, with all its fields:

    map = [
      { when = { type = "session" }, thread = "$.id" },
      { when = { type = "say" }, emit = "agent.message", data = { text = "$.message.text" } },
      { when = { type = ["done", "end"] }, result = "$.text",
        usage = { input_tokens = "$.usage.in", output_tokens = "$.usage.out" } },
      { when = { type = "error" }, fail = { code = "provider_error", message = "$.error" } },
      { when = { type = "turn" }, each = "$.content", map = [
        { when = { type = "text" }, emit = "agent.message", data = { text = "$.text" } },
        { when = { type = "call" }, emit = "tool.started", data = { tool_id = "$.id", name = "$.name" } },
      ] },
    ]

``when`` maps paths to a required value, or to a list of allowed values. An empty ``when`` always
matches. A path has names and list indexes: ``message.parts[0].text``. A text that begins with ``$``
is a template: ``$`` is the whole object, ``$.path`` the value at a path, and ``$$…`` a text that
begins with one ``$``. A field of ``data`` whose path does not exist is left out. An object becomes
a ``backend.event`` if no rule matches, if it lacks the text of its event, or if it has no event and
lacks another value of its rule.

``each`` is the path of a list. The rules of ``map`` apply to each entry like to an object, with
paths that begin at the entry. An entry that no rule matches is a ``backend.event``. So is the whole
object if there is no list, or an empty one. At most :data:`MAX_ENTRIES` entries of an object are
read; the rest becomes one ``backend.event``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field, frozen

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.events import AGENT_EVENTS, EventType
from agent_orchestrator.domain.model import FAILURE_CODES, is_thread_id

MISSING: Final = object()
"""The value at a path that does not exist."""

MAX_ENTRIES: Final = 1_000
"""Maximum number of list entries of one object that become separate events."""

MAX_RULE_DEPTH: Final = 8
"""Maximum nesting of rules with ``each``."""

_ABOUT_TEXT: Final = {
    EventType.AGENT_MESSAGE,
    EventType.AGENT_MESSAGE_DELTA,
    EventType.AGENT_REASONING,
}
_PATH: Final = re.compile(r"(?:[^.\[\]]+|\[\d+\])(?:\.[^.\[\]]+|\[\d+\])*")
_STEP: Final = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


@frozen
class FailRule:
    """How the run fails: one of :data:`FAILURE_CODES` and a text or template."""

    code: str = "provider_error"
    message: str = "the agent reported an error"


@frozen
class UsagePaths:
    """Templates of the numbers that the run has used so far. A missing number keeps its value."""

    input_tokens: str | None = None
    cached_input_tokens: str | None = None
    output_tokens: str | None = None
    cost_usd: str | None = None


@frozen
class Rule:
    """A rule.

    :param when: paths and their required values.
    :param emit: the type of the event that it becomes; ``data`` is the event's data.
    :param thread: a template of the agent's conversation id.
    :param result: a template of the run's result.
    :param usage: templates of the run's usage.
    :param fail: the run has failed.
    :param each: the path of a list with entries for the rules of ``map``.
    :param map: the rules for these entries.
    """

    when: Mapping[str, Any] = field(factory=dict)
    emit: str | None = None
    data: Mapping[str, Any] = field(factory=dict)
    thread: str | None = None
    result: str | None = None
    usage: UsagePaths | None = None
    fail: FailRule | None = None
    each: str | None = None
    map: Sequence["Rule"] = field(default=(), converter=tuple)

    def matches(self, value: Any) -> bool:
        """Return whether ``when`` matches the object."""
        return all(_matches(lookup(value, path), expected) for path, expected in self.when.items())


@frozen
class MappedEvent:
    """The result of applying a rule to an object. A field is None or empty if the rule does not set it."""

    event_type: str | None = None
    data: Mapping[str, Any] = field(factory=dict)
    thread: str | None = None
    result: str | None = None
    usage: Mapping[str, Any] = field(factory=dict)
    """Fields of :class:`~agent_orchestrator.domain.model.Usage`."""
    fail: tuple[str, str] | None = None


def check_rules(rules: Sequence[Rule], location: str = "map", nesting: int = 0) -> None:
    """Check a table of rules.

    :raises ConfigError: naming the location of the first error.
    """
    for index, rule in enumerate(rules):
        where = f"{location}[{index}]"
        if not (rule.emit or rule.thread or rule.result or rule.usage or rule.fail or rule.each):
            raise ConfigError(f"{where}: needs one of emit, thread, result, usage, fail, each")
        _check_each(rule, where, nesting)
        for path in rule.when:
            _check_path(path.removeprefix("$."), f"{where}.when")
        if rule.emit is not None and rule.emit not in AGENT_EVENTS:
            raise ConfigError(f"{where}.emit: must be one of {', '.join(sorted(AGENT_EVENTS))}")
        if rule.data and rule.emit is None:
            raise ConfigError(f"{where}.data: needs emit")
        if rule.emit in _ABOUT_TEXT and "text" not in rule.data:
            raise ConfigError(f"{where}.data.text: is required for {rule.emit}")
        if rule.fail is not None and rule.fail.code not in FAILURE_CODES:
            raise ConfigError(f"{where}.fail.code: must be one of {', '.join(FAILURE_CODES)}")
        _check_templates(rule.data, f"{where}.data")
        for name in ("thread", "result"):
            _check_templates(getattr(rule, name), f"{where}.{name}")
        if rule.fail is not None:
            _check_templates(rule.fail.message, f"{where}.fail.message")
        for name in ("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd"):
            template = getattr(rule.usage, name, None)
            if template is not None and not template.startswith("$."):
                raise ConfigError(f"{where}.usage.{name}: must be a path such as $.usage.{name}")
            _check_templates(template, f"{where}.usage.{name}")


def _check_each(rule: Rule, where: str, nesting: int) -> None:
    if rule.each is None:
        if rule.map:
            raise ConfigError(f"{where}.map: needs each")
        return
    if not rule.map:
        raise ConfigError(f"{where}.map: is required with each")
    if not rule.each.startswith("$."):
        raise ConfigError(f"{where}.each: must be a path such as $.content")
    if nesting == MAX_RULE_DEPTH:
        raise ConfigError(f"{where}.each: is more than {MAX_RULE_DEPTH} deep")
    _check_templates(rule.each, f"{where}.each")
    check_rules(rule.map, f"{where}.map", nesting + 1)


def map_object(rules: Sequence[Rule], value: Any) -> list[MappedEvent]:
    """Apply the first rule that matches an object. With ``each`` there is a result for each entry."""
    return _Reader().read(rules, value)


@define
class _Reader:
    """Reads one object.

    :ivar room: the number of list entries that may still become separate events.
    """

    room: int = MAX_ENTRIES

    def read(self, rules: Sequence[Rule], value: Any) -> list[MappedEvent]:
        rule = next((rule for rule in rules if rule.matches(value)), None)
        if rule is None:
            return [MappedEvent(*_backend_event(value))]
        if rule.each is None:
            return [_apply_rule(rule, value)]
        entries = lookup(value, rule.each)
        if not isinstance(entries, list) or not entries:
            first = _apply_rule(rule, value)
            return [first if first.event_type is not None else _with_whole(first, value)]
        first = _apply_rule(rule, value, keep_object=True)
        events = [first] if first != MappedEvent() else []
        for index, entry in enumerate(entries):
            if self.room == 0:
                rest = {"kind": "rest", "payload": {"entries": entries[index:]}}
                return [*events, MappedEvent(EventType.BACKEND_EVENT, rest)]
            self.room -= 1
            events += self.read(rule.map, entry)
        return events


def lookup(value: Any, path: str) -> Any:
    """Return the value at a path of a JSON value, or :data:`MISSING`."""
    for index, name in _STEP.findall(path.removeprefix("$.")):
        if index and isinstance(value, list) and int(index) < len(value):
            value = value[int(index)]
        elif name and isinstance(value, Mapping) and name in value:
            value = value[name]
        else:
            return MISSING
    return value


def _with_whole(event: MappedEvent, value: Any) -> MappedEvent:
    event_type, data = _backend_event(value)
    return evolve(event, event_type=event_type, data=data)


def _apply_rule(rule: Rule, value: Any, *, keep_object: bool = False) -> MappedEvent:
    """Apply a rule to an object.

    :param keep_object: whether to keep the object even if it lacks a value of the rule.
    """
    event_type, data = rule.emit, {}
    if rule.emit is not None:
        data = _fill_template(rule.data, value)
        if rule.emit in _ABOUT_TEXT and not isinstance(data.get("text"), str):
            event_type, data = _backend_event(value)
    message = None if rule.fail is None else _text(rule.fail.message, value)
    fail = None
    if rule.fail is not None:
        fail = rule.fail.code, message or "the agent reported an error"
    thread = None if rule.thread is None else _text(rule.thread, value)
    if thread is not None and not is_thread_id(thread):
        thread = None
    result = None if rule.result is None else _text(rule.result, value)
    usage = {} if rule.usage is None else _usage(rule.usage, value)
    if (
        event_type is None
        and not keep_object
        and (
            (rule.fail is not None and message is None)
            or (rule.thread is not None and thread is None)
            or (rule.result is not None and result is None)
            or (rule.usage is not None and not usage)
        )
    ):
        event_type, data = _backend_event(value)
    return MappedEvent(event_type, data, thread, result, usage, fail)


def _backend_event(value: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, Mapping):  # an entry of a list
        value = {"entry": value}
    kind = value.get("type")
    kind = kind if isinstance(kind, str) else "object"
    return EventType.BACKEND_EVENT, {"kind": kind, "payload": dict(value)}


def _fill_template(template: Any, value: Any) -> Any:
    if isinstance(template, str) and template.startswith("$"):
        if template.startswith("$$"):
            return template[1:]
        return value if template == "$" else lookup(value, template)
    if isinstance(template, Mapping):
        filled = {name: _fill_template(part, value) for name, part in template.items()}
        return {name: part for name, part in filled.items() if part is not MISSING}
    if isinstance(template, (list, tuple)):
        return [part for entry in template if (part := _fill_template(entry, value)) is not MISSING]
    return template


def _text(template: str, value: Any) -> str | None:
    filled = _fill_template(template, value)
    if isinstance(filled, str):
        return filled
    if isinstance(filled, int) and not isinstance(filled, bool):
        return str(filled)
    return None


def _usage(paths: UsagePaths, value: Any) -> dict[str, Any]:
    usage: dict[str, Any] = {
        name: int(number)
        for name in ("input_tokens", "cached_input_tokens", "output_tokens")
        if (number := _number(getattr(paths, name), value)) is not None
    }
    if (cost := _number(paths.cost_usd, value)) is not None:
        usage["cost_usd"] = float(cost)
    return usage


def _number(path: str | None, value: Any) -> float | None:
    number = None if path is None else lookup(value, path)
    if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 <= number < 2**63:
        return number
    return None


def _matches(value: Any, expected: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        return any(_matches(value, choice) for choice in expected)
    return type(value) is type(expected) and bool(value == expected)


def _check_templates(template: Any, where: str) -> None:
    if isinstance(template, str) and template.startswith("$") and not template.startswith("$$"):
        if template != "$":
            if not template.startswith("$."):
                raise ConfigError(f"{where}: {template!r} is not a path; write $$ for a plain $")
            _check_path(template[2:], where)
    elif isinstance(template, Mapping):
        for name, part in template.items():
            _check_templates(part, f"{where}.{name}")
    elif isinstance(template, (list, tuple)):
        for index, part in enumerate(template):
            _check_templates(part, f"{where}[{index}]")


def _check_path(path: str, where: str) -> None:
    if not _PATH.fullmatch(path):
        raise ConfigError(f"{where}: {path!r} is not a path; a path is like message.parts[0].text")
