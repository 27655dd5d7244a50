"""Converts the errors of agents to our codes."""

import re
from typing import Final

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.values import value_at
from agent_orchestrator.runners.events import error_words, text
from agent_orchestrator.runners.live.messages import RpcError

AUTHENTICATION_REQUIRED: Final = -32000

_CODES: Final = {
    401: "auth_failed",
    402: "quota_exhausted",
    403: "auth_failed",
    429: "rate_limited",
}

_KINDS: Final = {
    "authentication_failed": "auth_failed",
    "billing_error": "quota_exhausted",
    "rate_limit": "rate_limited",
    "overloaded": "provider_error",
    "server_error": "provider_error",
}
"""Codes by the ``errorKind`` in the data of an error."""

_STATUS: Final = re.compile(r"\b(?:HTTP |error:? |status:? |rejected \(|\()?(401|402|403|429)\b")

_USED_UP: Final = re.compile(r"insufficient_quota|out of credits|daily quota", re.IGNORECASE)
"""Words about a quota that is used up for a long time. Servers send them with the status of a rate limit (429)."""

_WORDS: Final = (
    ("quota_exhausted", re.compile(r"usage limit|quota exceeded", re.IGNORECASE)),
    (
        "context_exceeded",
        re.compile(
            r"context window|context_length_exceeded|too long|too many tokens|exceeds the maximum number of tokens",
            re.IGNORECASE,
        ),
    ),
    ("auth_failed", re.compile(r"not logged in|unauthorized|authenticat|api key", re.IGNORECASE)),
    ("rate_limited", re.compile(r"rate limit|too many requests", re.IGNORECASE)),
    (
        "provider_unreachable",
        re.compile(
            r"econnrefused|econnreset|connection (?:failed|error|was closed)|fetch failed|(?:unable to|cannot) connect",
            re.IGNORECASE,
        ),
    ),
)

_MAX_SEARCHED: Final = 16 * 2**10
"""Maximum characters of a message that are searched."""

STOP_CODES: Final = {
    "max_tokens": ("provider_error", "its answer reached the maximum number of tokens"),
    "max_turn_requests": ("provider_error", "it reached its maximum number of model requests"),
    "refusal": ("provider_error", "it refused to go on"),
}
"""The codes and messages of turns that ended without a result, by ``stopReason``."""


def code_of(message: str) -> str:
    """Return our code for the message of an error."""
    words = message[:_MAX_SEARCHED]
    if _is_used_up(words):
        return "quota_exhausted"
    if (status := _STATUS.search(words)) is not None:
        return _CODES[int(status[1])]
    return next((code for code, pattern in _WORDS if pattern.search(words)), "provider_error")


def _is_used_up(message: str) -> bool:
    return _USED_UP.search(message[:_MAX_SEARCHED]) is not None


def failure_of(agent_name: str, agent: AcpAgent, error: RpcError) -> AgentFailed:
    """Return the failure for an agent's error."""
    if error.code == AUTHENTICATION_REQUIRED:
        hint = f": run {agent.login}" if agent.login else ""
        return AgentFailed("auth_failed", f"{agent_name} is not logged in{hint}")
    message = message_of(error)
    kind = text(value_at(error.data, ["errorKind"]))
    code = _CODES.get(error.code) or _KINDS.get(kind)
    if code is None or _is_used_up(message):
        code = code_of(message)
    return AgentFailed(code, message)


def message_of(error: RpcError) -> str:
    """Return the message of an error with its details."""
    # opencode 1.18 has two words before all others; gemini 0.61 quotes the answer of its model.
    message = error_words(error.message.removeprefix("Internal error: "))
    details = text(value_at(error.data, ["details"]))
    return f"{message}: {details}" if details and details not in message else message
