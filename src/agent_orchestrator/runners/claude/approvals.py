"""Converts questions of Claude Code to requests, and decisions to its answers.

=================== ===================== ====================================================
tool                kind                  approve · approve for the session · no
=================== ===================== ====================================================
AskUserQuestion     input_request         the text as the answer · the words of the denial
any other           approval_request      allow · allow with a rule for the session · deny
=================== ===================== ====================================================

A denial, an answer in words, or a question that nobody could answer, is ``deny``: the agent reads the words, and
continues. With the option ``deny_and_stop`` the turn ends. Names are those of 2.1.332.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import evolve

from agent_orchestrator.domain.approvals import SESSION_SCOPE
from agent_orchestrator.domain.details import (
    AskedQuestion,
    Choice,
    CommandDetail,
    Detail,
    FileChangeDetail,
    PlanDetail,
    QuestionDetail,
    ToolDetail,
)
from agent_orchestrator.domain.model import Option, Request
from agent_orchestrator.fields import MAX_REACHES
from agent_orchestrator.runners.claude import items
from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.lines import json_object
from agent_orchestrator.runners.live.questions import Question

_ALLOW: Final = Option("allow_once", "Allow", "allow_once")
_ALLOW_SESSION: Final = Option("allow_session", "Allow for this session", "allow_session")
_DENY: Final = Option("deny", "Deny", "deny")
_STOP: Final = Option("deny_and_stop", "Deny, and end the turn", "deny_and_stop")

_SESSION_RULES: Final = {"type": "addRules", "behavior": "allow", "destination": "session"}
_FILE_RULES: Final = {"Edit": "reading and changing files", "Read": "reading"}
_WILDCARDS: Final = frozenset("*?[]!\\()")

QUESTION_TOOL: Final = "AskUserQuestion"
PLAN_TOOL: Final = "ExitPlanMode"

Answer = Mapping[str, Any]

_NOBODY: Final = "Nobody has approved this. Do not try it again in another way."


def question_for(
    params: JsonObject, call: tuple[str, JsonObject] | None, change: JsonObject | None = None
) -> Question:
    """Return the request for a question whether a tool may be used.

    :param call: name and input of the call, from the model.
    :param change: the change of a file that the call would make.
    """
    name = text(params.get("tool_name"))
    given = params.get("input")
    tool_input: JsonObject = given if isinstance(given, Mapping) else {}
    if name == QUESTION_TOOL:
        return _user_input(tool_input)
    shown_input = tool_input or (call[1] if call is not None else {})
    return _approval(name, shown_input, tool_input, params, change)


def allow(tool_input: JsonObject, updates: Sequence[JsonObject] = ()) -> Answer:
    """Return the answer that allows a tool call."""
    more = {"updatedPermissions": list(updates)} if updates else {}
    return {"behavior": "allow", "updatedInput": tool_input, **more}


def deny(words: str = "", *, stop: bool = False) -> Answer:
    """Return the answer that denies a tool call.

    :param words: the text for the agent.
    :param stop: whether the turn ends.
    """
    more = {"interrupt": True} if stop else {}
    return {"behavior": "deny", "message": words or _NOBODY, **more}


def granted_rules(answer: Answer) -> list[str]:
    """Return the rules of an answer for the session, in the syntax of Claude Code's settings."""
    return [
        _rule(rule)
        for update in answer.get("updatedPermissions", ())
        if update.get("type") == "addRules"
        for rule in update["rules"]
    ]


# --- approvals


def _approval(
    name: str,
    shown_input: JsonObject,
    tool_input: JsonObject,
    params: JsonObject,
    change: JsonObject | None,
) -> Question:
    rules = _session_rules(params.get("permission_suggestions"))
    updates = [{**_SESSION_RULES, "rules": rules}]
    reaches = _reach(rules)
    session = () if reaches is None else (evolve(_ALLOW_SESSION, reaches=reaches),)

    def answer(request: Request | None) -> Answer:
        if request is None:
            return deny()
        if request.status == "approved":
            is_lasting = request.scope == SESSION_SCOPE
            return allow(tool_input, updates if is_lasting else ())
        said = text(request.answer).strip()
        return deny(said, stop=request.option == _STOP.id)

    reason = text(params.get("decision_reason"))
    action, detail = _description(name, shown_input, reason or None, change)
    question = f"{action}\n\nReason: {reason}" if reason else action
    if found := params.get("blocked_path"):
        detail["agent"] = {"blocked_path": found}
    options = (_ALLOW, *session, _DENY, _STOP)
    return Question("approval_request", question, detail, options, answer)


def _description(
    name: str, tool_input: JsonObject, reason: str | None, change: JsonObject | None
) -> tuple[str, Detail]:
    """Return the action of a tool call, as a text and as a detail."""
    detail: Detail
    if name == items.COMMAND_TOOL:
        command = text(tool_input.get("command"))
        detail = CommandDetail(type="command", command=command, cwd=None, reason=reason)
        return f"Run: {command}", detail
    if change is not None:
        detail = FileChangeDetail(type="file_change", changes=[change], reason=reason)
        return f"Change files: {change['path']}", detail
    if name == PLAN_TOOL:
        plan = text(tool_input.get("plan"))
        return f"Carry out this plan:\n\n{plan}", PlanDetail(type="plan", text=plan)
    server, tool = items.mcp_names(name)
    detail = ToolDetail(type="tool", name=tool or name, server=server or None, input=tool_input)
    shown_name = f"{tool} of {server}" if server else name
    arguments = json.dumps(tool_input, ensure_ascii=False)
    return f"Use {shown_name}: {arguments}", detail


def _session_rules(suggestions: Any) -> list[JsonObject]:
    """Return the rules of an approval for the session, from the suggested changes.

    A suggestion may be for the settings of the directory, where it would be permanent. A further working directory,
    whose files only some modes may change, becomes a rule, which holds in every mode and can be kept.
    """
    rules: list[JsonObject] = []
    for one in suggestions if isinstance(suggestions, list) else ():
        match one:
            case {"type": "addRules", "behavior": "allow", "rules": [*found]}:
                rules += [rule for rule in found if isinstance(rule, Mapping)]
            case {"type": "addDirectories", "directories": [*found]}:
                paths = [text(path).strip("/") for path in found]
                rules += [{"toolName": "Edit", "ruleContent": f"//{path}/**"} for path in paths]
    return rules


def _rule(rule: JsonObject) -> str:
    name, content = text(rule.get("toolName")), rule.get("ruleContent")
    return f"{name}({text(content)})" if content else name


def _reach(rules: Sequence[JsonObject]) -> str | None:
    """Return a description of what rules allow; None if there is no exact one."""
    words = [_rule_words(text(one.get("toolName")), text(one.get("ruleContent"))) for one in rules]
    if not words or None in words:
        return None
    reaches = f"{'; '.join(map(text, words))}, without asking again in this session"
    return reaches if len(reaches) <= MAX_REACHES else None


def _rule_words(name: str, content: str) -> str | None:
    """Return a description of what a rule allows; None if it has a wildcard that is not at its end.

    Claude Code suggests the command, or its beginning, as the rule. A ``*`` in a rule matches any text. So the rule
    ``sh -c 'echo *'`` would allow every script that begins with ``echo``.
    """
    if not name:
        return None
    if not content:
        return f"all uses of {name}"
    if name == items.COMMAND_TOOL:
        stem = content.removesuffix(" *").removesuffix(":*")
        what = "the command" if stem == content else "commands that begin with"
        return None if "*" in stem else f"{what} {stem}"
    stem = content.removesuffix("/**")
    if _WILDCARDS & set(stem):
        return None
    if name in _FILE_RULES and stem != content and stem.startswith("/"):
        return f"{_FILE_RULES[name]} below {stem.removeprefix('/')}"
    return f"uses of {name}({content})" if stem == content else None


# --- questions


def _user_input(tool_input: JsonObject) -> Question:
    found = tool_input.get("questions")
    questions = [_asked(one) for one in _objects(found)]
    names = [one["id"] for one in questions]
    options: tuple[str, ...] | None = None
    if len(questions) == 1:
        options = tuple(choice["label"] for choice in questions[0]["choices"]) or None

    def answer(request: Request | None) -> Answer:
        said = text(request.answer).strip() if request is not None else ""
        if request is None or request.status not in ("approved", "answered") or not said:
            return deny(said or "Nobody has answered. Go on without an answer, or end your turn.")
        answers = json_object(said.encode())
        if answers is None or not set(answers) <= set(names):
            answers = dict.fromkeys(names, said)
        return allow({**tool_input, "answers": {one: text(each) for one, each in answers.items()}})

    shown = "\n\n".join(_shown(one) for one in questions)
    detail = QuestionDetail(type="question", questions=questions)
    return Question("input_request", shown or "?", detail, options, answer)


def _objects(found: Any) -> list[JsonObject]:
    return [one for one in (found if isinstance(found, list) else ()) if isinstance(one, Mapping)]


def _asked(one: JsonObject) -> AskedQuestion:
    choices = [
        Choice(label=text(each.get("label")), description=text(each.get("description")) or None)
        for each in _objects(one.get("options"))
    ]
    return AskedQuestion(
        id=text(one.get("question")),
        text=text(one.get("question")) or text(one.get("header")),
        choices=choices,
        multiple=one.get("multiSelect") is True,
        free_text=True,
    )


def _shown(question: AskedQuestion) -> str:
    labels = [choice["label"] for choice in question["choices"]]
    return f"{question['text']} ({' / '.join(labels)})" if labels else question["text"]
