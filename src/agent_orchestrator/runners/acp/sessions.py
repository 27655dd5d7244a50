"""Starts or continues the session of an agent, with its tools, mode and model."""

from collections.abc import Mapping
from typing import Any, Final

import anyio
from attrs import frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Thread, is_thread_id
from agent_orchestrator.ports.runner import CANNOT_ASK
from agent_orchestrator.runners.acp.failures import AUTHENTICATION_REQUIRED, failure_of, message_of
from agent_orchestrator.runners.acp.process import AcpProcess
from agent_orchestrator.runners.acp.settings import Category, setting_of
from agent_orchestrator.runners.acp.tool_access import ToolAccess
from agent_orchestrator.runners.conversations import ConversationMissing
from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.live.mailbox import Mailbox
from agent_orchestrator.runners.live.messages import AgentRequest, Answer, Notification, RpcError

OPEN_S: Final = 120.0
"""Maximum seconds to open a session. opencode 1.18 takes one second, and 12 on a busy machine."""

_PING: Final = "_agent_orchestrator/ping"
"""A request that no agent knows. It is answered with an error."""


@frozen
class Requested:
    """The settings that a run needs for its session.

    :param model: None for the agent's own.
    :param mode: None to keep the present one.
    :param tools: None without them.
    """

    cwd: str
    model: str | None
    mode: str | None
    tools: ToolAccess | None


@frozen
class OpenSession:
    """A session that is ready for a prompt.

    :param thread_id: the id of the conversation.
    :param id: its id in messages.
    :param state: stored with the thread: the model that it had first.
    """

    thread_id: str
    id: str
    state: Mapping[str, Any]
    mode: str | None


async def open_session(
    process: AcpProcess, mailbox: Mailbox, thread: Thread | None, requested: Requested
) -> OpenSession:
    """Return the session of a thread, or a new one.

    :raises ConversationMissing: if the agent does not have it.
    :raises AgentFailed: if the agent does not open it.
    """
    tools = requested.tools
    token = None if tools is None else tools.token
    is_open = False
    state = {} if thread is None else dict(thread.state)
    params: dict[str, Any] = {
        "cwd": requested.cwd,
        "mcpServers": [] if tools is None else [tools.server],
    }
    if thread is None:
        answer = await _open(process, mailbox, "session/new", params)
        thread_id = session_id = text(answer.get("sessionId"))
        if not is_thread_id(session_id):
            raise AgentFailed(
                "provider_error", f"{process.spec.name} opened a session without a valid id"
            )
    else:
        thread_id = thread.id
        is_open = process.session_id == thread_id and process.token == token
        if is_open:
            answer, session_id = {}, process.address
        else:
            answer, session_id = await _continue(process, mailbox, thread_id, params)
    process.session_id, process.address, process.token = thread_id, session_id, token
    try:
        if is_open and not process.has_left_mode and _is(process, "mode", requested.mode):
            mode = requested.mode
        else:
            process.has_left_mode = False
            mode = await _set(process, mailbox, answer, session_id, "mode", requested.mode)
        first = setting_of(answer, "model")
        if thread is None and first is not None and first.value:
            state["model"] = first.value
        model = requested.model or text(state.get("model")) or None
        await _set(process, mailbox, answer, session_id, "model", model)
    except BaseException:
        process.forget_session()
        raise
    return OpenSession(thread_id, session_id, state, mode)


async def _open(
    process: AcpProcess, mailbox: Mailbox, method: str, params: JsonObject
) -> JsonObject:
    try:
        answer = await exchange(process, mailbox, method, params)
    except RpcError as refused:
        raise failure_of(process.spec.name, process.spec.agent, refused) from refused
    return answer if isinstance(answer, Mapping) else {}


def can_continue(process: AcpProcess) -> bool:
    """Return whether another process of the agent could continue a conversation."""
    return process.has("sessionCapabilities", "resume") or (
        process.has("loadSession") and process.spec.agent.resumes
    )


async def _continue(
    process: AcpProcess, mailbox: Mailbox, thread_id: str, params: JsonObject
) -> tuple[JsonObject, str]:
    """Continue a conversation. Return the agent's answer, and the conversation's id in messages."""
    name, agent = process.spec.name, process.spec.agent
    session_id = thread_id
    if not can_continue(process):
        raise ConversationMissing(f"{name} cannot continue a conversation in another process")
    if process.has("sessionCapabilities", "resume"):
        method = "session/resume"
    else:
        method = "session/load"
        session_id = agent.load_prefix + thread_id
    try:
        answer = await exchange(process, mailbox, method, {"sessionId": session_id, **params})
    except RpcError as refused:
        if refused.code == AUTHENTICATION_REQUIRED:
            raise failure_of(name, process.spec.agent, refused) from refused
        if "in use" in refused.message:
            raise AgentFailed("provider_error", message_of(refused)) from refused
        raise ConversationMissing(message_of(refused)) from refused
    if method == "session/load" and agent.late_replay:
        await _skip_replay(process, mailbox)
    return answer if isinstance(answer, Mapping) else {}, session_id


async def _skip_replay(process: AcpProcess, mailbox: Mailbox) -> None:
    """Drop the messages that repeat the conversation after the answer to ``session/load``.

    The agent writes these messages one after the other. If there is another one, it is written before the answer to a
    new request. So the repetition is over when no message comes between two answers.
    """
    with anyio.move_on_after(OPEN_S):
        await _answer_to(process, mailbox, _PING, {})
        while (await _answer_to(process, mailbox, _PING, {}))[1]:
            pass
        return
    raise _ended_as_late(process, "session/load")


async def _set(
    process: AcpProcess,
    mailbox: Mailbox,
    answer: JsonObject,
    session_id: str,
    category: Category,
    value: str | None,
) -> str | None:
    """Set a mode or model, and check it. Return the value that the agent now uses.

    :raises AgentFailed: if the agent does not have it.
    """
    setting = setting_of(answer, category) or process.settings.get(category)
    if setting is None:
        if value is None:
            return None
        message = f"{process.spec.name} has no {category}s, so {value!r} cannot be chosen"
        raise AgentFailed("invalid_config", _named(process, category, value, message))
    process.settings[category] = setting
    if value is None or (category == "model" and value == setting.value):
        return setting.value
    # Before the request, as the agent may change it again right after its answer.
    process.settings[category] = setting.having(value)
    try:
        changed = await exchange(
            process, mailbox, setting.method, setting.change(session_id, value)
        )
    except RpcError as refused:
        message = f"{process.spec.name} has no {category} {value!r}: {message_of(refused)}"
        raise AgentFailed("invalid_config", _named(process, category, value, message)) from refused
    found = setting_of(changed, category) if isinstance(changed, Mapping) else None
    if found is not None and found.value != value:
        message = (
            f"{process.spec.name} stayed in the {category} {found.value!r} instead of {value!r}"
        )
        raise AgentFailed("provider_error", _named(process, category, value, message))
    return value


def _is(process: AcpProcess, category: Category, value: str | None) -> bool:
    """Return whether a setting was set to this value last."""
    setting = process.settings.get(category)
    return setting is not None and setting.value == value


def _named(process: AcpProcess, category: Category, value: str, message: str) -> str:
    """Return the message, beginning with ``CANNOT_ASK`` if the value is the mode in which the agent asks."""
    asks = category == "mode" and value == process.spec.agent.ask_mode
    return f"{CANNOT_ASK}: {message}" if asks else message


async def exchange(process: AcpProcess, mailbox: Mailbox, method: str, params: JsonObject) -> Any:
    """Send a request and return its result. Messages before it are dropped: they repeat the conversation.

    :raises RpcError: if the answer is an error.
    :raises AgentFailed: if the process ends, or does not answer.
    """
    answer, _ = await _answer_to(process, mailbox, method, params)
    return answer.value()


async def _answer_to(
    process: AcpProcess, mailbox: Mailbox, method: str, params: JsonObject
) -> tuple[Answer, int]:
    """Send a request. Return its answer, and the number of notifications that were dropped before it.

    :raises AgentFailed: if the process ends, or does not answer in time.
    """
    number = process.submit(method, params, mailbox)
    dropped = 0
    with anyio.move_on_after(OPEN_S):
        try:
            while True:
                match await mailbox.take():
                    case Answer() as answer if answer.number == number:
                        return answer, dropped
                    case AgentRequest() as request:
                        process.refuse(request, f"this client does not answer {request.method}")
                    case Notification():
                        dropped += 1
        except anyio.EndOfStream:
            process.check()
    raise _ended_as_late(process, method)


def _ended_as_late(process: AcpProcess, method: str) -> AgentFailed:
    """End a process that has not answered a request in time. Return the failure."""
    message = f"{process.spec.name} was not done with {method} in {OPEN_S:g} s"
    failure = AgentFailed("provider_error", message)
    process.fail(failure)
    return failure
