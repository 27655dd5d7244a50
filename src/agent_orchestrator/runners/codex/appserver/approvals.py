"""Converts questions of ``codex app-server`` to requests, and decisions to codex's answers.

====================================== ==================== ==========================================
codex asks                             kind                 approve · approve for the session · no
====================================== ==================== ==========================================
item/commandExecution/requestApproval  approval_request     accept · acceptForSession · decline
item/fileChange/requestApproval        approval_request     the same
item/permissions/requestApproval       permission_request   what it asked, for the turn · for the
                                                            session · nothing
mcpServer/elicitation/request          approval_request if  accept · accept, to be kept · decline
                                       a tool is to be
                                       approved, else
                                       input_request        the text as the form · decline
item/tool/requestUserInput             input_request        the text as the answer · no answer
====================================== ==================== ==========================================

A denial, or a question that nobody could answer, is ``decline``: the agent gets it and continues. A
text answer may name an option, such as ``cancel``, which ends codex's turn. For an MCP server's
tool or question it cancels only that. Any other text approves nothing. Names are those of codex
0.169.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.domain.model import OPTION_SCOPES, SESSION_SCOPE, Request
from agent_orchestrator.runners.events import JsonObject, require_list, require_object, text
from agent_orchestrator.runners.lines import json_object
from agent_orchestrator.runners.live.messages import AgentRequest
from agent_orchestrator.runners.live.questions import Question

CANCEL: Final = "cancel"

_DECISIONS: Final = ("accept", "acceptForSession", "decline", CANCEL)

_SESSION: Final = "without asking again, until codex unloads the conversation"

_PERMANENT: Final = (
    "without asking again, in every directory and for good: codex keeps it in the files of its home, "
    "such as rules/default.rules"
)

_LONGEST_RULE: Final = 1_000
"""Characters of a lasting rule that can be shown whole; a longer one is not offered."""


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
    reason = text(params.get("reason"))
    network = params.get("networkApprovalContext")
    action = f"run: {command}" if command else f"use the network: {text(network)}"
    detail = {"command": command, **_shown_detail(params)}
    return _approval(params, action, reason, detail, f"the same {_SESSION}", remember)


def _file_change(params: JsonObject, item: JsonObject, remember: bool) -> Question:
    changes = [require_object(change) for change in require_list(item.get("changes", []))]
    paths = [f"{text(change.get('kind'))} {text(change.get('path'))}" for change in changes]
    action = f"change files: {', '.join(paths)}"
    detail = {**_shown_detail(params), "changes": changes}
    if grant := text(params.get("grantRoot")):
        # First, because the paths may be cut. Codex 0.169 never sends this field. Its schema says
        # that codex may ignore the limit, so any approval may grant the whole directory.
        action = (
            f"change anything under {grant}, {_SESSION}, also if approved only once; now {action}"
        )
    reaches = f"changes of {f'anything under {grant}' if grant else 'the same files'} {_SESSION}"
    return _approval(
        params, action, text(params.get("reason")), detail, reaches, remember, once=grant
    )


def _approval(
    params: JsonObject,
    action: str,
    reason: str,
    detail: dict[str, Any],
    session: str,
    remember: bool,
    *,
    once: str = "",
) -> Question:
    """Return the question whether codex may do something.

    :param session: a description of what an approval for the session allows.
    :param once: not empty if an approval once may allow that too.
    """
    available = params.get("availableDecisions")
    offered = available if isinstance(available, list) else list(_DECISIONS)
    lasting = {_name(one): _lasting_scope(one) for one in offered if _name(one) not in _DECISIONS}
    known = {
        _name(one): one
        for one in offered
        if _name(one) not in lasting or (remember and len(lasting[_name(one)]) <= _LONGEST_RULE)
    }
    options = tuple(known)
    reaches = {name: f"{lasting[name]} {_PERMANENT}" for name in options if name in lasting}
    lasts = "".join(f"\n\n{name} allows {words}." for name, words in reaches.items())
    reaches = {SESSION_SCOPE: session, "acceptForSession": session, **reaches}
    reaches |= {"accept": session} if once else {}

    def answer(request: Request | None) -> JsonObject:
        decision: Any = "decline"
        if request is not None and request.status == "approved":
            decision = "acceptForSession" if request.scope == "session" else "accept"
        elif request is not None and request.status == "answered":
            reply = text(request.answer).strip()
            if reply in (*options, *_DECISIONS):
                decision = known.get(reply, reply)
        return {"decision": decision}

    question = (
        f"{_capitalized(action)}\n\nReason: {reason}" if reason else _capitalized(action)
    ) + lasts
    detail = {**detail, OPTION_SCOPES: reaches}
    return Question("approval_request", question, detail, options, answer, _DECISIONS)


def _lasting_scope(decision: Any) -> str:
    """Return a description of what codex keeps for good with a decision."""
    if isinstance(decision, Mapping) and len(decision) == 1:
        (amendment,) = decision.values()
        rule = amendment.get("execpolicy_amendment") if isinstance(amendment, Mapping) else None
        if isinstance(rule, list) and all(isinstance(part, str) for part in rule):
            return f"every command that begins with {json.dumps(rule, ensure_ascii=False)}"
    return json.dumps(decision, ensure_ascii=False)


def _name(decision: Any) -> str:
    """Return the name of a decision, which is a word or an object with one name."""
    return next(iter(decision)) if isinstance(decision, Mapping) and decision else text(decision)


def _permissions(params: JsonObject) -> Question:
    requested = require_object(params.get("permissions"))
    reason = text(params.get("reason"))

    def answer(request: Request | None) -> JsonObject:
        if request is None or request.status != "approved":
            return {"permissions": {}, "scope": "turn"}
        scope = "session" if request.scope == "session" else "turn"
        granted = {name: value for name, value in requested.items() if value is not None}
        return {"permissions": granted, "scope": scope}

    action = f"Permissions: {json.dumps(requested, ensure_ascii=False)}"
    question = f"{action}\n\nReason: {reason}" if reason else action
    detail = {
        **_shown_detail(params),
        OPTION_SCOPES: {SESSION_SCOPE: f"these permissions {_SESSION}"},
    }
    return Question("permission_request", question, detail, None, answer, _DECISIONS)


def _elicitation(params: JsonObject) -> Question:
    """Return the question of an MCP server, or the question whether one of its tools may be used.

    Codex 0.169 uses the same method for both, and distinguishes them in ``_meta``. It could also
    keep an approval in its user's configuration (``always``), which is not offered: only the user
    may do that.
    """
    meta = params.get("_meta")
    if isinstance(meta, Mapping) and meta.get("codex_approval_kind") == "mcp_tool_call":
        return _tool(params, meta)
    schema = params.get("requestedSchema")
    choices = _choices(schema)
    options = (*choices, *(one for one in ("decline", CANCEL) if one not in choices))

    def answer(request: Request | None) -> JsonObject:
        reply = text(request.answer).strip() if request is not None and request.answer else ""
        if request is None or request.status not in ("approved", "answered"):
            return _action("decline")
        if reply in options and reply not in choices:
            return _action(reply)
        return _action("accept", content=_form(reply, schema) if reply else {})

    question = _shown_params(params)
    if url := text(params.get("url")):
        question += f"\n\n{url}"
    return Question("input_request", question, _shown_detail(params), options, answer)


def _tool(params: JsonObject, meta: JsonObject) -> Question:
    arguments = meta.get("tool_params")
    lasting = meta.get("persist")
    is_lasting = lasting == "session" or (isinstance(lasting, list) and "session" in lasting)
    options = ("accept", *(("acceptForSession",) if is_lasting else ()), "decline", CANCEL)

    def answer(request: Request | None) -> JsonObject:
        decision = "decline"
        if request is not None and request.status == "approved":
            decision = "acceptForSession" if request.scope == "session" else "accept"
        elif request is not None and request.status == "answered":
            reply = text(request.answer).strip()
            decision = reply if reply in options else "decline"
        if decision == "acceptForSession":
            return _action(
                "accept", content={}, meta={"persist": "session"} if is_lasting else None
            )
        return _action(decision, content={} if decision == "accept" else None)

    question = _shown_params(params)
    if arguments:
        question += f"\n\nArguments: {json.dumps(arguments, ensure_ascii=False)}"
    detail = {"tool": text(meta.get("tool_name")), "arguments": arguments, **_shown_detail(params)}
    reaches = f"every use of this tool {_SESSION}"
    lasts = {SESSION_SCOPE: reaches, "acceptForSession": reaches} if is_lasting else {}
    detail = {**detail, OPTION_SCOPES: lasts}
    return Question("approval_request", question, detail, options, answer, _DECISIONS)


def _shown_params(params: JsonObject) -> str:
    server = text(params.get("serverName"))
    message = text(params.get("message") or params.get("title") or params.get("description"))
    return f"{server}: {message}" if message else f"{server} asks"


def _action(action: str, *, content: Any = None, meta: Any = None) -> JsonObject:
    return {"action": action, "content": content, "_meta": meta}


def _choices(schema: Any) -> tuple[str, ...]:
    """Return the choices of a form with one field; empty for other forms."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or len(properties) != 1:
        return ()
    (one,) = properties.values()
    offered = one.get("enum") if isinstance(one, Mapping) else None
    return tuple(text(each) for each in offered) if isinstance(offered, list) else ()


def _form(answer_text: str, schema: Any) -> Any:
    """Return the content of a form: the JSON object in the answer, or the text for its only field."""
    if (found := json_object(answer_text.encode())) is not None:
        return found
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    names = [*properties] if isinstance(properties, Mapping) else []
    return {names[0]: answer_text} if len(names) == 1 else {}


# --- questions


def _user_input(params: JsonObject) -> Question:
    questions = [require_object(one) for one in require_list(params.get("questions"))]
    ids = [text(one.get("id")) for one in questions]
    question = "\n\n".join(_shown_question(one) for one in questions)
    options: tuple[str, ...] | None = None
    if len(questions) == 1 and isinstance(offered := questions[0].get("options"), list):
        options = tuple(text(require_object(one).get("label")) for one in offered)

    def answer(request: Request | None) -> JsonObject:
        if request is None or request.status not in ("approved", "answered") or not request.answer:
            return {"answers": {}}
        answers = json_object(request.answer.encode())
        if answers is None or not set(answers) <= set(ids):
            answers = dict.fromkeys(ids, request.answer)
        return {
            "answers": {name: {"answers": _text_list(value)} for name, value in answers.items()}
        }

    return Question("input_request", question or "?", _shown_detail(params), options, answer)


def _shown_question(one: JsonObject) -> str:
    question = text(one.get("question")) or text(one.get("header"))
    options = one.get("options")
    labels = [text(require_object(option).get("label")) for option in options] if options else []
    return f"{question} ({' / '.join(labels)})" if labels else question


def _text_list(value: Any) -> Sequence[str]:
    return [text(one) for one in value] if isinstance(value, list) else [text(value)]


# --- the detail


_INTERNAL: Final = frozenset(
    {"kind", "threadId", "turnId", "startedAtMs", "availableDecisions", "commandActions"}
)


def _shown_detail(params: JsonObject) -> dict[str, Any]:
    """Return what codex says of its question, in its words, without what only codex understands."""
    return {
        name: value for name, value in params.items() if value is not None and name not in _INTERNAL
    }


def _capitalized(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
