"""The ``detail`` of an agent's request: one shape for each type, whatever the agent.

Each may have ``agent``, what the agent says beyond that in its own words, and ``cut``, the fields that
were shortened because the detail was too large.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict


class FileChange(TypedDict):
    """A change of a file, as in the event ``file.changed``."""

    path: str
    kind: str
    diff: NotRequired[str]


class Choice(TypedDict):
    label: str
    description: str | None


class AskedQuestion(TypedDict):
    """One of the questions that an agent asks together."""

    id: str
    text: str
    choices: Sequence[Choice]
    multiple: bool
    """Whether several choices may be given."""
    free_text: bool
    """Whether any other text may be given."""


class _Detail(TypedDict):
    agent: NotRequired[Mapping[str, Any]]
    cut: NotRequired[Sequence[str]]


class CommandDetail(_Detail):
    """The agent wants to run a command."""

    type: Literal["command"]
    command: str
    cwd: str | None
    reason: str | None


class FileChangeDetail(_Detail):
    """The agent wants to change files."""

    type: Literal["file_change"]
    changes: Sequence[FileChange | Mapping[str, Any]]
    reason: str | None


class PermissionDetail(_Detail):
    """The agent wants more access than it has. The permissions are in its own words."""

    type: Literal["permission"]
    permissions: Mapping[str, Any]
    reason: str | None


class ToolDetail(_Detail):
    """The agent wants to use a tool, of an MCP server if it names one."""

    type: Literal["tool"]
    name: str
    server: str | None
    input: Any


class QuestionDetail(_Detail):
    """The agent, or an MCP server, asks something. The answer to several questions is a JSON object by their ids; without
    ids by their texts, and without both by their places, from 0. A name that an earlier question has is followed by a number, as in ``a (2)``.
    """

    type: Literal["question"]
    questions: Sequence[AskedQuestion]


class PlanDetail(_Detail):
    """The agent wants its plan approved."""

    type: Literal["plan"]
    text: str


Detail = (
    CommandDetail | FileChangeDetail | PermissionDetail | ToolDetail | QuestionDetail | PlanDetail
)
