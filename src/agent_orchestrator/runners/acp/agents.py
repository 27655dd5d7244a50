"""The known agents, one row each. A row comes with a recording in ``tests/acp/recordings``.

A row describes the agent's versions in the recordings.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from agent_orchestrator.runners.acp.agent import AcpAgent, OwnTool
from agent_orchestrator.runners.mcp_messages import TOOL_SERVER

_MCP_NAME: Final = rf"mcp__{TOOL_SERVER}__(\w+)"

_OPENCODE_PERMISSION: Final = {
    "*": "ask",
    **dict.fromkeys(
        ("read", "grep", "glob", "list", "lsp", "skill", "todowrite", "todoread", "task"), "allow"
    ),
    f"{TOOL_SERVER}_*": "allow",
}
"""Makes opencode ask before every tool that is not allowed here. By default it asks before none."""

AGENTS: Final[Mapping[str, AcpAgent]] = {
    "opencode": AcpAgent(
        argv=("opencode", "acp", "--print-logs", "--log-level", "ERROR"),
        env={"OPENCODE_PERMISSION": json.dumps(_OPENCODE_PERMISSION)},
        child_env={"OPENCODE_DISABLE_PROJECT_CONFIG": "1"},
        home=("HOME", "XDG_DATA_HOME"),
        ask_mode="build",
        usage="last_call",
        own_tool=OwnTool("title", rf"{TOOL_SERVER}_(\w+)", kind="other"),
        renews_tools=True,
        failed_request=re.compile(
            r'[^"]*message="stream error" [^"]*small=false [^"]*error\.error="(?:AI_APICallError: )?(.*)"'
        ),
        denial_ends_turn=True,
        login="opencode auth login",
        install="npm install -g opencode-ai",
    ),
    "gemini": AcpAgent(
        argv=("gemini", "--acp"),
        # By default gemini 0.61 starts itself a second time, with a larger heap, and writes its log only when it ends.
        default_env={
            "GEMINI_CLI_NO_RELAUNCH": "true",
            "GEMINI_DEBUG_LOG_FILE": "/dev/stderr",
        },
        ask_mode="default",
        usage="quota",
        own_tool=OwnTool("title", rf"(\w+) \({TOOL_SERVER} MCP Server\)", kind="other"),
        renews_tools=True,
        # The name of a conversation's file has the minute of the time and the beginning of the id. Within a minute, a
        # conversation that is loaded by its id is overwritten first. gemini strips an id, but not for the name.
        load_prefix=" ",
        late_replay=True,
        overflow_reason="max_tokens",
        failed_request=re.compile(r"\[.*?\] \[WARN\] (Attempt \d+ failed.*?)\. Retrying"),
        stop_s=0,
        login="gemini, or set GEMINI_API_KEY",
        install="npm install -g @google/gemini-cli",
    ),
    "claude-acp": AcpAgent(
        argv=("claude-agent-acp",),
        ask_mode="default",
        own_tool=OwnTool("name", _MCP_NAME),
        renews_tools=True,
        steers=True,
        notice=re.compile(r"\*\*Warning:\*\* |API Error: |Failed to authenticate\. "),
        slash_prefix="\n",
        login="claude, then /login, or set ANTHROPIC_API_KEY",
        install="npm install -g @agentclientprotocol/claude-agent-acp",
    ),
    "codex-acp": AcpAgent(
        argv=("codex-acp",),
        ask_mode="workspace-write",
        own_tool=OwnTool("rawInput.server", TOOL_SERVER),
        steers=True,
        hides_errors=True,
        denial_ends_turn=True,
        slash_prefix="\n",
        login="codex login",
        install="npm install -g @agentclientprotocol/codex-acp",
    ),
    "qwen": AcpAgent(
        argv=("qwen", "--acp"),
        ask_mode="default",
        usage="chunks",
        own_tool=OwnTool("_meta.toolName", _MCP_NAME),
        denial_ends_turn=True,
        slash_prefix="\n",
        login="qwen, or set OPENAI_API_KEY",
        install="npm install -g @qwen-code/qwen-code",
    ),
    "copilot": AcpAgent(
        argv=("copilot", "--acp"),
        ask_mode="https://agentclientprotocol.com/protocol/session-modes#agent",
        usage="process",
        own_tool=OwnTool("title", rf"{TOOL_SERVER}-(\w+)", kind="other"),
        hides_errors=True,
        notice=re.compile(r"Info: "),
        denial_ends_turn=True,
        stop_s=4.0,
        login="copilot, then /login",
        install="npm install -g @github/copilot",
    ),
    "kimi": AcpAgent(
        argv=("kimi", "acp"),
        login="kimi, then /login",
        install="npm install -g @moonshot-ai/kimi-code",
    ),
    "cline": AcpAgent(
        argv=("cline", "--acp"),
        takes_tools=False,
        login="cline auth",
        install="npm install -g cline",
    ),
    "droid": AcpAgent(
        argv=("droid", "exec", "--output-format", "acp"),
        takes_tools=False,
        login="droid, then /login, or set FACTORY_API_KEY",
        install="npm install -g droid",
    ),
    "auggie": AcpAgent(
        argv=("auggie", "--acp"),
        takes_tools=False,
        login="auggie login",
        install="npm install -g @augmentcode/auggie",
    ),
    "pi": AcpAgent(
        argv=("pi-acp",),
        version="",
        takes_tools=False,
        login="pi, then /login",
        install="npm install -g pi-acp @earendil-works/pi-coding-agent",
    ),
}
