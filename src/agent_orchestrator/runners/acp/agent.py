"""Data about an agent that the protocol does not provide."""

import re
from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen

UsageSource = Literal["turn", "last_call", "process", "quota", "chunks", "none"]
"""Where an agent reports its tokens: in the answer to a prompt, for all model calls of the turn (``turn``), for the
last one (``last_call``), or for all turns of the process (``process``); in that answer's quota (``quota``); or with
pieces of the message (``chunks``)."""


@frozen
class OwnTool:
    """How to recognise a call of an orchestration tool.

    :param path: the field of the tool call.
    :param pattern: what its value matches. Its group, if any, is the name of the tool.
    :param kind: the kind that the call must have. A title may come from the model.
    """

    path: str
    pattern: str
    kind: str | None = None


@frozen(kw_only=True)
class AcpAgent:
    """An agent.

    :param argv: the program, and the arguments with which it speaks the protocol.
    :param version: the argument with which it prints its version; empty if it has none.
    :param env: environment variables that it needs.
    :param default_env: environment variables that it gets unless the user has set them.
    :param child_env: further variables for the agents of child sessions, so that they do not execute what is
        configured in their directory. A parent's agent may have written it.
    :param home: the variables that name its home, if two processes may not use a new home at once.
    :param ask_mode: the mode in which it asks; None to leave the mode as it is.
    :param usage: where it reports its tokens.
    :param own_tool: how to recognise a call of an orchestration tool; None if it does not ask before one.
    :param takes_tools: whether it takes an MCP server.
    :param renews_tools: whether the process connects to the MCP servers again when it is to continue a session that
        it has. The token of the tools is another in each run. Without this, a run with tools gets a new process.
    :param resumes: whether another process can continue its conversations.
    :param load_prefix: what to put before the id of a conversation in ``session/load``. It is the id then.
    :param late_replay: whether ``session/load`` repeats the conversation also after its answer.
    :param steers: whether it takes messages during a turn (``_session/steering``).
    :param images: whether a prompt may have images.
    :param hides_errors: whether an error of its model is an ordinary end of the turn, but without usage.
    :param overflow_reason: the ``stopReason`` of a turn that it ends because the conversation is too long for its model.
    :param failed_request: a line of its stderr about a request that its model did not answer. Its group is the
        reason. It usually repeats the request.
    :param notice: how messages of the program begin that are not the model's.
    :param denial_ends_turn: whether it ends the turn when its request is denied.
    :param slash_prefix: what to put before a prompt that begins with ``/``, so that it is no command of the agent.
    :param stop_s: seconds that it has to end after SIGTERM. 0 if it does not end on it.
    :param login: how a person logs in.
    :param install: how a person installs it.
    """

    argv: tuple[str, ...]
    version: str = "--version"
    env: Mapping[str, str] = field(factory=dict)
    default_env: Mapping[str, str] = field(factory=dict)
    child_env: Mapping[str, str] = field(factory=dict)
    home: tuple[str, ...] = ()
    ask_mode: str | None = None
    usage: UsageSource = "turn"
    own_tool: OwnTool | None = None
    takes_tools: bool = True
    renews_tools: bool = False
    resumes: bool = True
    load_prefix: str = ""
    late_replay: bool = False
    steers: bool = False
    images: bool = True
    hides_errors: bool = False
    overflow_reason: str | None = None
    failed_request: re.Pattern[str] | None = None
    notice: re.Pattern[str] | None = None
    denial_ends_turn: bool = False
    slash_prefix: str = "\u200b"
    stop_s: float = 2.0
    login: str = ""
    install: str = ""
