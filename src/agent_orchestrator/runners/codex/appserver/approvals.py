"""Converts questions of ``codex app-server`` to requests, and decisions to codex's answers.

====================================== ================== ============================================
codex asks                             kind               options
====================================== ================== ============================================
item/commandExecution/requestApproval  approval_request   accept, acceptForSession, decline, cancel, or
                                                          those that codex offers
item/fileChange/requestApproval        approval_request   the same
item/permissions/requestApproval       permission_request accept (for the turn), acceptForSession,
                                                          decline
mcpServer/elicitation/request          approval_request   accept, acceptForSession if codex offers it,
for a tool                                                decline, cancel
mcpServer/elicitation/request          input_request      the choices of a form, decline, cancel
item/tool/requestUserInput             input_request      the choices of the only question
====================================== ================== ============================================

A denial, or a question that nobody could answer, is ``decline``: the agent gets it and continues.
``cancel`` ends codex's turn. For an MCP server's tool or question it cancels only that. An answer in
other words approves nothing. Names are those of codex 0.169.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.domain.approvals import SESSION_SCOPE
from agent_orchestrator.domain.details import (
    AskedQuestion,
    Choice,
    CommandDetail,
    Detail,
    FileChangeDetail,
    PermissionDetail,
    QuestionDetail,
    ToolDetail,
)
from agent_orchestrator.domain.model import Option, Request
from agent_orchestrator.fields import MAX_REACHES
from agent_orchestrator.runners.events import JsonObject, require_list, require_object, text
from agent_orchestrator.runners.lines import json_object
from agent_orchestrator.runners.live.messages import AgentRequest
from agent_orchestrator.runners.live.questions import Question

CANCEL: Final = "cancel"

_NAMES: Final = ("accept", "acceptForSession", "decline", CANCEL)

_DECLINE: Final = Option("decline", "Deny", "deny")

_LASTING: Final = {
    "acceptWithExecpolicyAmendment": "Always allow such commands",
    "applyNetworkPolicyAmendment": "Always allow this host",
}
"""Labels of the decisions that codex stores permanently."""

_SESSION: Final = "without asking again, until codex unloads the conversation"

_PERMANENT: Final = (
    "without asking again, in every directory and for good: codex keeps it in the files of its home, "
    "such as rules/default.rules"
)

_MAX_RULE: Final = 1_000
"""Maximum characters of a permanent rule. A longer one cannot be shown whole, and is not offered."""


def question_for(
    request: AgentRequest, item: JsonObject | None, *, remember: bool = False
) -> Question | None:
    """Return the request for a question of codex; None if it is unknown.

    :param item: the tool call or file change of the question, from its start.
    :param remember: whether to offer approvals that codex keeps in its user's files.
    :raises UnexpectedShape: if a known question has an unknown shape.
    """
    match request.method:
        case "item/commandExecution/requestApproval":
            return _command(request.params, remember)
        case "item/fileChange/requestApproval":
            return _file_change(request.params, item or {}, remember)
        case "item/permissions/requestApproval":
            return _permissions(request.params)
        case "mcpServer/elicitation/request":
            return _elicitation(request.params)
        case "item/tool/requestUserInput":
            return _user_input(request.params)
    return None


# --- approvals


def _command(params: JsonObject, remember: bool) -> Question:
    command = text(params.get("command"))
    network = params.get("networkApprovalContext")
    detail: Detail
    if command or not isinstance(network, Mapping):
        action = f"run: {command}"
        detail = CommandDetail(
            type="command",
            command=command,
            cwd=text(params.get("cwd")) or None,
            reason=text(params.get("reason")) or None,
            agent=_other(params, "command", "cwd", "reason"),
        )
    else:
        action = f"use the network: {text(network)}"
        detail = PermissionDetail(
            type="permission",
            permissions={"network": network},
            reason=text(params.get("reason")) or None,
            agent=_other(params, "networkApprovalContext", "command", "reason"),
        )
    return _approval(params, action, detail, f"the same {_SESSION}", remember)


def _file_change(params: JsonObject, item: JsonObject, remember: bool) -> Question:
    changes = [require_object(change) for change in require_list(item.get("changes", []))]
    paths = [f"{text(change.get('kind'))} {text(change.get('path'))}" for change in changes]
    action = f"change files: {', '.join(paths)}"
    detail = FileChangeDetail(
        type="file_change",
        changes=changes,
        reason=text(params.get("reason")) or None,
        agent=_other(params, "reason"),
    )
    if grant := text(params.get("grantRoot")):
        # First, because the paths may be cut. Codex 0.169 never sends this field. Its schema says
        # that codex may ignore the limit, so any approval may grant the whole directory.
        action = (
            f"change anything under {grant}, {_SESSION}, also if approved only once; now {action}"
        )
    reaches = f"changes of {f'anything under {grant}' if grant else 'the same files'} {_SESSION}"
    return _approval(params, action, detail, reaches, remember, once=reaches if grant else None)


def _approval(
    params: JsonObject,
    action: str,
    detail: Detail,
    session: str,
    remember: bool,
    *,
    once: str | None = None,
) -> Question:
    """Return the question whether codex may do something.

    :param session: a description of what an approval for the session allows.
    :param once: a description of what an approval once allows beyond that.
    """
    available = params.get("availableDecisions")
    offered = available if isinstance(available, list) else []
    options: list[Option] = []
    decisions: dict[str | None, Any] = {}
    for decision in (*offered, *_NAMES):  # codex takes these also where it does not offer them
        option = _option(decision, session, once, remember)
        if option is not None and option.id not in decisions:
            options.append(option)
            decisions[option.id] = decision
    lasts = "".join(
        f"\n\n{one.label} allows {one.reaches}." for one in options if one.kind == "allow_always"
    )

    def answer(request: Request | None) -> JsonObject:
        is_approved = request is not None and request.status == "approved"
        default = "accept" if is_approved else "decline"
        return {"decision": decisions.get(request.option if request else None, default)}

    return Question(
        "approval_request",
        _with_reason(_capitalized(action), params) + lasts,
        detail,
        tuple(options),
        answer,
    )


def _option(decision: Any, session: str, once: str | None, remember: bool) -> Option | None:
    """Return the option of a decision that codex offers; None for one that is not offered."""
    match _name(decision):
        case "accept":
            return _allow_once(once)
        case "acceptForSession":
            return _allow_session(session)
        case "decline":
            return _DECLINE
        case "cancel":
            return Option(CANCEL, "Deny and stop", "deny_and_stop")
        case name:
            scope = _lasting_scope(decision)
            if not remember or scope is None or len(scope) > _MAX_RULE:
                return None
            return Option(name, _LASTING.get(name, name), "allow_always", f"{scope} {_PERMANENT}")


def _allow_once(reaches: str | None = None) -> Option:
    return Option("accept", "Allow once", "allow_once", reaches and reaches[:MAX_REACHES])


def _allow_session(reaches: str) -> Option:
    return Option(
        "acceptForSession", "Allow for this session", "allow_session", reaches[:MAX_REACHES]
    )


def _with_reason(question: str, params: JsonObject) -> str:
    reason = text(params.get("reason"))
    return f"{question}\n\nReason: {reason}" if reason else question


def _lasting_scope(decision: Any) -> str | None:
    """Return a description of what a permanent decision allows; None for a denial."""
    if isinstance(decision, Mapping) and len(decision) == 1:
        (amendment,) = decision.values()
        rule = amendment.get("execpolicy_amendment") if isinstance(amendment, Mapping) else None
        if isinstance(rule, list) and all(isinstance(part, str) for part in rule):
            return f"every command that begins with {json.dumps(rule, ensure_ascii=False)}"
        host = amendment.get("network_policy_amendment") if isinstance(amendment, Mapping) else None
        if isinstance(host, Mapping) and host.get("action") == "deny":
            return None
    return json.dumps(decision, ensure_ascii=False)


def _name(decision: Any) -> str:
    """Return the name of a decision, which is a word or an object with one name."""
    return next(iter(decision)) if isinstance(decision, Mapping) and decision else text(decision)


def _permissions(params: JsonObject) -> Question:
    requested = require_object(params.get("permissions"))
    options = (
        _allow_once("these permissions until the turn ends"),
        _allow_session(f"these permissions {_SESSION}"),
        _DECLINE,
    )

    def answer(request: Request | None) -> JsonObject:
        if request is None or request.status != "approved":
            return {"permissions": {}, "scope": "turn"}
        scope = "session" if request.scope == SESSION_SCOPE else "turn"
        granted = {name: value for name, value in requested.items() if value is not None}
        return {"permissions": granted, "scope": scope}

    action = f"Permissions: {json.dumps(requested, ensure_ascii=False)}"
    detail = PermissionDetail(
        type="permission",
        permissions=requested,
        reason=text(params.get("reason")) or None,
        agent=_other(params, "permissions", "reason"),
    )
    return Question("permission_request", _with_reason(action, params), detail, options, answer)


def _elicitation(params: JsonObject) -> Question:
    """Return the question of an MCP server, or the question whether one of its tools may be used.

    Codex 0.169 uses the same method for both, and distinguishes them in ``_meta``. It could also
    keep an approval in its user's configuration (``always``), which is not offered: only the user
    may do that.
    """
    meta = params.get("_meta")
    if isinstance(meta, Mapping) and meta.get("codex_approval_kind") == "mcp_tool_call":
        return _tool(params, meta)
    fields = _form_fields(params.get("requestedSchema"))
    choices = [choice["label"] for choice in fields[0]["choices"]] if len(fields) == 1 else []
    refusals = (_DECLINE, Option(CANCEL, "Cancel", "deny"))
    options = [
        *map(Option.named, choices),
        *([] if fields else [Option("accept", "Accept", "allow_once")]),
        *(one for one in refusals if {one.id, one.label}.isdisjoint(choices)),
    ]

    def answer(request: Request | None) -> JsonObject:
        if request is not None and request.status in ("approved", "answered"):
            reply = text(request.answer).strip()
            return _action("accept", content=_form(reply, fields) if reply else {})
        is_canceled = request is not None and request.option == CANCEL
        return _action(CANCEL if is_canceled else "decline")

    question = _shown_params(params)
    if url := text(params.get("url")):
        question += f"\n\n{url}"
    detail = QuestionDetail(type="question", questions=fields, agent=_other(params))
    return Question("input_request", question, detail, tuple(options), answer)


def _tool(params: JsonObject, meta: JsonObject) -> Question:
    arguments = meta.get("tool_params")
    lasting = meta.get("persist")
    is_lasting = lasting == "session" or (isinstance(lasting, list) and "session" in lasting)
    session = [_allow_session(f"every use of this tool {_SESSION}")] if is_lasting else []
    options = (_allow_once(), *session, _DECLINE, Option(CANCEL, "Cancel", "deny"))

    def answer(request: Request | None) -> JsonObject:
        if request is None or request.status != "approved":
            is_canceled = request is not None and request.option == CANCEL
            return _action(CANCEL if is_canceled else "decline")
        is_kept = is_lasting and request.scope == SESSION_SCOPE
        return _action("accept", content={}, meta={"persist": "session"} if is_kept else None)

    question = _shown_params(params)
    if arguments:
        question += f"\n\nArguments: {json.dumps(arguments, ensure_ascii=False)}"
    detail = ToolDetail(
        type="tool",
        name=text(meta.get("tool_name")),
        server=text(params.get("serverName")) or None,
        input=arguments,
        agent=_other(params, "serverName"),
    )
    return Question("approval_request", question, detail, options, answer)


def _shown_params(params: JsonObject) -> str:
    server = text(params.get("serverName"))
    message = text(params.get("message") or params.get("title") or params.get("description"))
    return f"{server}: {message}" if message else f"{server} asks"


def _action(action: str, *, content: Any = None, meta: Any = None) -> JsonObject:
    return {"action": action, "content": content, "_meta": meta}


def _form_fields(schema: Any) -> list[AskedQuestion]:
    """Return the fields of a form as questions."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return []
    return [_form_field(text(name), one) for name, one in properties.items()]


def _form_field(name: str, one: Any) -> AskedQuestion:
    field: Mapping[str, Any] = one if isinstance(one, Mapping) else {}
    offered = field.get("enum")
    labels = [text(each) for each in offered] if isinstance(offered, list) else []
    return AskedQuestion(
        id=name,
        text=text(field.get("title") or field.get("description") or name),
        choices=[Choice(label=label, description=None) for label in labels],
        multiple=False,
        free_text=not labels,
    )


def _form(answer_text: str, fields: Sequence[AskedQuestion]) -> JsonObject:
    """Return the content of a form: the JSON object in the answer, or the text for its only field."""
    if (found := json_object(answer_text.encode())) is not None:
        return found
    return {fields[0]["id"]: answer_text} if len(fields) == 1 else {}


# --- questions


def _user_input(params: JsonObject) -> Question:
    questions = [_asked(require_object(one)) for one in require_list(params.get("questions"))]
    ids = [one["id"] for one in questions]
    options: tuple[Option, ...] | None = None
    if len(questions) == 1 and (choices := questions[0]["choices"]):
        options = tuple(Option.named(choice["label"]) for choice in choices)

    def answer(request: Request | None) -> JsonObject:
        if request is None or request.status not in ("approved", "answered") or not request.answer:
            return {"answers": {}}
        answers = json_object(request.answer.encode())
        if request.option is not None:
            answers = {ids[0]: [*dict.fromkeys([request.option, request.answer])]}
        elif answers is None or not set(answers) <= set(ids):
            answers = dict.fromkeys(ids, request.answer)
        return {
            "answers": {name: {"answers": _text_list(value)} for name, value in answers.items()}
        }

    detail = QuestionDetail(type="question", questions=questions, agent=_other(params, "questions"))
    question = "\n\n".join(_shown_question(one) for one in questions)
    return Question("input_request", question or "?", detail, options, answer)


def _asked(one: JsonObject) -> AskedQuestion:
    offered = [require_object(each) for each in require_list(one.get("options") or [])]
    choices = [
        Choice(label=text(each.get("label")), description=text(each.get("description")) or None)
        for each in offered
    ]
    return AskedQuestion(
        id=text(one.get("id")),
        text=text(one.get("question")) or text(one.get("header")),
        choices=choices,
        multiple=False,
        free_text=not choices or one.get("isOther") is True,
    )


def _shown_question(one: AskedQuestion) -> str:
    labels = [choice["label"] for choice in one["choices"]]
    return f"{one['text']} ({' / '.join(labels)})" if labels else one["text"]


def _text_list(value: Any) -> Sequence[str]:
    return [text(one) for one in value] if isinstance(value, list) else [text(value)]


# --- the detail


_INTERNAL: Final = frozenset(
    {"kind", "threadId", "turnId", "startedAtMs", "availableDecisions", "commandActions"}
)


def _other(params: JsonObject, *shown: str) -> JsonObject:
    """Return the other fields of a question, without codex's internal ones."""
    return {
        name: value
        for name, value in params.items()
        if value is not None and name not in _INTERNAL and name not in shown
    }


def _capitalized(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
