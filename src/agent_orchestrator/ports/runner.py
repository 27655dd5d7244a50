"""Runners, and the engine's interface for them."""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, Protocol, runtime_checkable

from attrs import frozen

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import (
    Invocation,
    Request,
    Run,
    RunError,
    Session,
    Thread,
    Usage,
)
from agent_orchestrator.fields import takes
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.messages import MessageReply, SpawnReply
from agent_orchestrator.operations.options import AskOptions, SendOptions, SpawnOptions
from agent_orchestrator.operations.runs import Issue, WaitReply
from agent_orchestrator.operations.takeovers import Program

TAG_VARIABLE: Final = "AGENT_ORCHESTRATOR_TAG"
"""The variable in :attr:`RunContext.env` whose value identifies this attempt's processes. A runner finds
processes by it that have left its process group."""

RUN_VARIABLES: Final = frozenset(
    {"AGENTCTL_RUN_ID", "AGENTCTL_SESSION_ID", "AGENTCTL_AUTH_TOKEN", TAG_VARIABLE}
)
"""The variables in :attr:`RunContext.env` that belong to one run. A process that serves several runs
must not have them."""

CWD_MISSING: Final = "the working directory does not exist"
"""An ``invalid_config`` error whose message begins with this is diagnosed as ``cwd_missing``."""

CANNOT_ASK: Final = "the agent cannot be made to ask before it uses a tool"
"""An error whose message begins with this is diagnosed as ``agent_cannot_ask``."""


@frozen
class Outcome:
    """The outcome of a completed run.

    :param text: the result. The run fails if it has more than 240 MiB as JSON, which no client could read.
    :param exit_code: of the agent's process, if it has one; negative for a signal. At most 32 bits.
    """

    text: str
    exit_code: int | None = None


@frozen
class Availability:
    """Whether a runner can start an agent now.

    :param reason: why it cannot.
    :param version: of the agent.
    :param mode: how it runs agents, if it has several ways.
    :param logged_in: whether the agent has a login; None if only the agent knows.
    :param capabilities: those of the installed agent; None for those that the runner declares.
    """

    available: bool
    reason: str | None = None
    version: str | None = None
    mode: str | None = None
    logged_in: bool | None = None
    capabilities: Capabilities | None = None


@frozen
class ProtectedPaths:
    """Files and directories that agents may not access: absolute paths without symbolic links.

    :param read_only: paths that no agent may change, or create if they are missing.
    :param secret: paths that no agent may read or change.
    """

    read_only: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.read_only or self.secret)


@frozen
class ToolSpec:
    """A tool for agents, as a model needs to know it.

    :param title: for people.
    :param description: for the model: what the tool does and when to use it.
    :param input_schema: the JSON Schema of its arguments, which are an object.
    :param read_only: True if the tool changes nothing.
    """

    name: str
    title: str
    description: str
    input_schema: Mapping[str, Any]
    read_only: bool = False


@frozen
class ToolResult:
    """The answer of a tool.

    :param content: a JSON object. If ``is_error``, its ``error`` has ``code``, ``message`` and ``details``.
    :param text: the same as JSON text, for the model.
    """

    content: Mapping[str, Any]
    text: str
    is_error: bool = False


class Toolbox(Protocol):
    """The orchestration tools for one agent. Adapters offer them to its model.

    A call has the access, the limits and the audit trail of the run's token.
    """

    def list(self) -> Sequence[ToolSpec]:
        """Return the tools."""
        ...

    def holding(self, seconds: float) -> "Toolbox":
        """Return the same tools, whose calls wait at most so long unless their ``timeout_s`` says otherwise."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool and return its answer.

        Refusals are answers with ``is_error``: an unknown tool, invalid arguments, a lack of access, an
        attempt that has ended. Cancelling a call that waits changes nothing: a question stays open, and
        the same call continues to wait for its answer.

        :param given: the arguments, as the model gave them.
        """
        ...


class RunContext(Protocol):
    """The engine's interface for a runner during one attempt of a run.

    To stop the runner the engine cancels the anyio scope around it. The runner must end everything
    that it started before it re-raises the cancellation.
    """

    @property
    def run(self) -> Run: ...

    @property
    def session(self) -> Session: ...

    @property
    def is_cwd_resolved(self) -> bool:
        """Whether ``session.cwd`` has no symbolic links and must have none when the agent starts in it.

        It is True if workspaces are confined (``workspace_roots``): a path that changed since it was
        checked could lead out of them.
        """
        ...

    @property
    def protected(self) -> ProtectedPaths:
        """The paths that the sandbox of the agent must deny, if its runner has a sandbox."""
        ...

    @property
    def shared_cwd(self) -> str:
        """The deepest common directory of ``session.cwd`` and the ``cwd`` of each ancestor.

        An ancestor's agent may have written any file below it, so a runner must not execute
        configuration that it finds there.
        """
        ...

    @property
    def prompt(self) -> str: ...

    @property
    def images(self) -> Sequence[ImageContent]:
        """The images for the prompt, in order. Empty unless the runner's capabilities have ``images``."""
        ...

    @property
    def model(self) -> str | None: ...

    @property
    def thread(self) -> Thread | None:
        """The conversation to resume, if the session has one with this provider."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """The complete environment for a process of this run."""
        ...

    @property
    def has_used_token(self) -> bool:
        """Whether something has used the agent's token so far, such as the agent to connect to the tools."""
        ...

    @property
    def is_parking(self) -> bool:
        """Whether the run is being stopped because it waits for an answer. The agent is not needed until then, so a
        runner that keeps processes between runs should end this one, if no other run uses it.
        """
        ...

    @property
    def tools(self) -> Toolbox:
        """The orchestration tools, acting as this run, for a runner that offers them to its agent.

        A call waits for a day unless its ``timeout_s`` says otherwise, as nothing cuts it off here. While the
        engine stops, a call that would change something does not return (see :meth:`spawn`).
        """
        ...

    async def emit(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Append an event of the agent; see ``AGENT_EVENTS`` for the types.

        Returns when the event has its place in the order. It is durable before the run ends. Later
        changes of ``data`` have no effect.

        :raises InvalidEvent: a ``ValueError``, if agents may not emit the type, or the data is not valid
            JSON for clients: nested deeper than 400 levels, a number of more than 100 digits, two keys
            of an object that are equal in JSON, more than 2,097,152 values, or more than 240 MiB.
        """
        ...

    async def delivered(self) -> None:
        """Record that the agent has the prompt: from now on the attempt may have effects.

        It is durable when this returns. If the engine ends before, the next attempt starts afresh.
        """
        ...

    async def set_thread(self, thread_id: str, state: Mapping[str, Any] | None = None) -> None:
        """Record the agent's conversation, so that the next run resumes it.

        :param state: the runner's own data about it; None keeps the current data of this id.
        :raises InvalidEvent: a ``ValueError``, if the id is not text, the state is not an object, or either is not
            valid JSON as for :meth:`emit`.
        """
        ...

    async def report_usage(self, usage: Usage) -> None:
        """Record the usage of this run, not of the whole thread. A later report replaces it."""
        ...

    async def report_process(self, pid: int, invocation: Invocation) -> None:
        """Record the agent's process for diagnosis, before it gets any work.

        It is durable with the next write, or after half a second. After a crash, processes are found by
        the tag in their environment instead.
        """
        ...

    async def report_confinement(
        self, *, sandbox: str | None = None, approval_policy: str | None = None
    ) -> None:
        """Record a confinement that differs from what the run asks for, such as an administrator's.

        Children get no more than this. None changes nothing.

        :raises ValueError: if a value is unknown.
        """
        ...

    def note_stderr(self, tail: str) -> None:
        """Record the end of the agent's stderr, for diagnosis."""
        ...

    def touch(self) -> None:
        """Record that the agent is alive, when its output is not a complete event, such as half a line."""
        ...

    async def stop_deadline(self) -> None:
        """Wait for the stop deadline. When this returns, kill the agent instead of waiting for it."""
        ...

    @takes(SpawnOptions)
    async def spawn(self, options: SpawnOptions) -> SpawnReply:
        """Create a child of this run and send it its task.

        An attempt may be repeated: with an ``idempotency_key`` the next attempt gets the same child.
        While the engine stops this does not return, and the attempt goes back to the queue.

        :param cwd: this run's directory, or one below it.
        :param effort: reasoning effort for the task; default: that of this run's message.
        :raises Conflict: if a limit of the tree is reached, or this run is canceled.
        :raises Forbidden: if the child would be too deep, work in another directory, or have another model
            or more effort than was chosen for this run.
        """
        ...

    @takes(SendOptions)
    async def send(self, options: SendOptions) -> MessageReply:
        """Send a message to the agent of a descendant.

        :raises NotFound: if the session is not a descendant.
        """
        ...

    async def wait(
        self,
        run_id: str,
        *,
        until: Literal["terminal", "attention"] = "terminal",
        ignore: Collection[str] = (),
        timeout_s: float | None = None,
    ) -> WaitReply:
        """Wait until a descendant's run has ended. Other runs may use the worker meanwhile.

        :param until: ``attention`` also returns when the run's session or a descendant has a request
            that this agent may resolve: the reply's ``request``.
        :param ignore: ids of requests to ignore, such as those that this agent leaves to people.
        :param timeout_s: seconds after which the reply has ``timed_out``; None means no limit.
        :raises NotFound: if it is not a run of a descendant.
        """
        ...

    @takes(AskOptions)
    async def ask_parent(self, question: AskOptions) -> Request:
        """Ask the parent or people, and wait. Meanwhile the run is ``waiting`` and takes no worker.

        Cancelling this call withdraws the question.

        :return: the resolved request; ``denied``, ``expired`` and ``canceled`` all mean no.
        :raises InvalidRequest: if the question is invalid.
        :raises Conflict: if the run is canceled, or has too many open questions.
        """
        ...

    def steering(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Accept messages during the run: ``async with context.steering() as messages``.

        The iterator yields each message sent with ``when_busy="steer"``, and marks it as delivered. A
        message that the iterator has not yielded when the run ends starts another run.
        """
        ...


@runtime_checkable
class Runner(Protocol):
    """The adapter that executes runs. One object serves all runs of a provider concurrently.

    If it is an async context manager too, the engine enters it at its start and leaves it when it
    stops. A runner can use this to keep processes warm.
    """

    @property
    def name(self) -> str: ...

    async def run(self, context: RunContext) -> Outcome:
        """Execute one attempt.

        :raises AgentFailed: to end the run as failed with its code. Any other exception ends it as
            failed with ``agent_crashed``.
        """
        ...


@runtime_checkable
class Probing(Protocol):
    """A runner that can check whether it is available."""

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Check quickly, without side effects. It is called often: cache costly results.

        :param env: the environment of its provider's runs.
        """
        ...


@runtime_checkable
class Declaring(Protocol):
    """A runner that declares its capabilities."""

    @property
    def capabilities(self) -> Capabilities:
        """Must not change while the engine is open."""
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """A runner with findings for the administrator."""

    def findings(self, about: str, env: Mapping[str, str]) -> Iterable[Finding]:
        """Return what is wrong with its agent, and settings that give the agent more rights.

        The doctor calls it in a thread. It may block.

        :param about: the subject of the findings: the provider.
        :param env: the environment of the provider's runs.
        """
        ...


@runtime_checkable
class Diagnosing(Protocol):
    """A runner that can explain failed runs."""

    def diagnose(self, error: RunError) -> Issue | None:
        """Return the likely issue of a failed run; None to leave it to the error's code. Must not block."""
        ...


@frozen
class Handover:
    """A program for a person, and the conversation that it continues.

    :param thread: the conversation, with the place in the agent's own record where the program begins.
    """

    program: Program
    thread: Thread


@frozen
class Conversation:
    """A conversation in an agent's own record.

    :param thread: the conversation, with the beginning of the record as the place to read from.
    :param cwd: its directory, as an absolute path.
    """

    thread: Thread
    cwd: str
    model: str | None = None


@runtime_checkable
class Attachable(Protocol):
    """A runner whose agent keeps a record of its conversations, and has a program for a terminal."""

    async def hand_over(self, session: Session, thread: Thread, env: Mapping[str, str]) -> Handover:
        """Release a conversation from all processes of the runner, and return the program that opens it.

        No run of the session is active.

        :param env: the environment of its provider's runs.
        :raises AgentFailed: if it has no record of the conversation, or no such program.
        """
        ...

    async def find_conversation(
        self, thread_id: str | None, cwd: str, env: Mapping[str, str]
    ) -> Conversation:
        """Return a conversation of the agent.

        :param thread_id: its id; None for the latest conversation in the directory.
        :raises AgentFailed: if there is none.
        """
        ...

    async def read_record(self, context: RunContext) -> Outcome:
        """Emit the entries of the agent's record of ``context.thread``, from the position in the thread's state on,
        and store the new position. The result is the last answer.

        The record is untrusted: any program may have written it.

        :raises AgentFailed: if it cannot be read.
        """
        ...


_NO_CAPABILITIES: Final = Capabilities()


def capabilities_of(runner: Runner) -> Capabilities:
    """Return the capabilities of a runner."""
    # Not by `isinstance(runner, Declaring)`, which is slow: a run asks often.
    found = getattr(runner, "capabilities", None)
    return found if isinstance(found, Capabilities) else _NO_CAPABILITIES
