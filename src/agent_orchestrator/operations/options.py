"""Fields that several commands share."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.images import MAX_IMAGE_BYTES, MAX_IMAGES, size_problem
from agent_orchestrator.domain.model import (
    ApprovalPolicy,
    Approvals,
    Decision,
    NoticeLevel,
    NotifyParent,
    Option,
    RequestKind,
    Sandbox,
)
from agent_orchestrator.fields import (
    MAX_LABELS,
    MAX_NAME,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_QUESTION,
    MAX_REACHES,
    MAX_RETAIN_BYTES,
    MAX_RETAIN_DAYS,
    MAX_RETAIN_EVENTS,
    MAX_TEXT,
    MAX_TREE_DEPTH,
    MAX_TREE_SIZE,
    Limits,
    command,
    identifier,
    optional_host,
    optional_name,
    optional_path,
    param,
    positional,
    required,
)

MIN_OPEN_S: Final = 0.01
MAX_OPEN_S: Final = 30 * 86_400
"""Bounds of the seconds for which a question may be open."""

MAX_IGNORED: Final = 200
"""Maximum number of ids in ``ignore``: they must fit into a URL."""

WhenBusy = Literal["queue", "steer", "interrupt", "reject"]


@command
class OfSession:
    session_id: str = identifier("The session.", kw_only=False)


@command
class OfRun:
    run_id: str = identifier("The run.", kw_only=False)


@command
class OfRequest:
    request_id: str = identifier("The request.", kw_only=False)


@command
class Keyed:
    idempotency_key: str | None = optional_name(
        "Idempotency key. A repeat with the same key returns the first answer.",
        tool_doc="Idempotency key. A repeat with the same key changes nothing.",
    )


@command
class Page:
    limit: int = param("Maximum number of items to return.", default=100, minimum=1, maximum=1000)
    cursor: str | None = param(
        "`next_cursor` of the previous page.", default=None, max_length=MAX_NAME
    )


ListOrder = Literal["oldest", "newest"]
RequestOrder = Literal["oldest", "newest", "deadline"]


@command
class Searched(Page):
    """A page of a list, of the items that match a search."""

    q: str | None = optional_name(
        "Only items whose texts contain every word of this. Upper and lower case are the same. A search "
        "reads at most 2,000 items a page, so a page may have few or no items and a `next_cursor`.",
        flag="--search",
    )


@command
class InOrder:
    """The order of a list.

    A cursor is a place in the list: with the other order it pages the other way.
    """

    order: ListOrder = param("`newest` lists the newest first.", default="oldest")


@command
class Ordered(InOrder, Searched):
    """A page of a list in either order, of the items that match a search."""


@command
class SessionLimits:
    """Limits on the descendants of a session."""

    max_depth: int | None = param(
        "Maximum depth of descendants. Cannot exceed the inherited limit.",
        default=None,
        minimum=0,
        maximum=MAX_TREE_DEPTH,
    )
    max_children: int | None = param(
        "Maximum number of active children of one run, in this session and its "
        "descendants. Cannot exceed the inherited limit.",
        default=None,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )
    max_descendants: int | None = param(
        "Maximum number of active descendants. Cannot exceed the inherited limit.",
        default=None,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )


@command
class ConfinementOptions:
    """When an agent asks for approval, and what its commands may do without."""

    approval_policy: ApprovalPolicy | None = param(
        "When the agent asks for approval: `untrusted` before every command that is not known to be "
        "harmless, `on-request` when it needs more than the sandbox allows, or `never`. Default: the "
        "session's setting, else the provider's.",
        default=None,
    )
    sandbox: Sandbox | None = param(
        "What the agent's commands may do without approval. Default: the session's setting, else the "
        "provider's. More than `read-only` needs the scope `approve`.",
        default=None,
    )


@command
class NoticeOptions:
    """What people are notified of, without an open client."""

    notices: NoticeLevel | None = param(
        "What people are notified of: `none`, `requests`, or `all`: also the ends of its runs. `default`: "
        "what its parent says, else what each target and device is set for.",
        default=None,
    )


@command
class RetentionOptions:
    """How much of a session's log is kept."""

    retain_days: int | None = param(
        "How many days the session's events are kept. 0: no limit. Default: the daemon's setting.",
        default=None,
        minimum=0,
        maximum=MAX_RETAIN_DAYS,
        for_agents=False,
    )
    retain_events: int | None = param(
        "Maximum number of events of the session to keep. 0: no limit. Default: the daemon's setting.",
        default=None,
        minimum=0,
        maximum=MAX_RETAIN_EVENTS,
        for_agents=False,
    )
    retain_bytes: int | None = param(
        "Maximum size of the session's events to keep, in bytes of their data. 0: no limit. Default: the "
        "daemon's setting.",
        default=None,
        minimum=0,
        maximum=MAX_RETAIN_BYTES,
        for_agents=False,
    )


MAX_IMAGE_TEXT: Final = -(-MAX_IMAGE_BYTES // 3) * 4
"""Maximum number of base64 characters of an image."""

MAX_SCHEMA: Final = 32_768
"""Maximum size of an output schema, in bytes of JSON."""


@command
class AnswerOptions:
    """How a message is to be answered."""

    effort: str | None = param(
        "Reasoning effort for this message only, as the model names it, such as `low`, `medium` or "
        "`high`. Default: the provider's setting.",
        default=None,
        max_length=32,
        pattern=r"[a-z][a-z0-9_-]*",
    )
    output_schema: Mapping[str, Any] | None = param(
        "A JSON Schema (an object) that the agent's answer must match. The answer is JSON text.",
        default=None,
        max_length=MAX_SCHEMA,
    )


@command
class ModelOptions(AnswerOptions):
    """The model that answers a message, and how."""

    model: str | None = optional_name(
        "The model for this message only. Default: the session's, else the provider's."
    )


@command
class ImageUpload:
    data: str = required(
        "The bytes of the file in base64.", kw_only=False, max_length=MAX_IMAGE_TEXT
    )
    media_type: str | None = param(
        "`image/png`, `image/jpeg`, `image/gif` or `image/webp`. Must match the file's first bytes.",
        default=None,
        max_length=MAX_NAME,
    )


def _uploads(images: Any) -> Any:
    # A daemon refuses a body of that size unread, and so could not name the field.
    if not isinstance(images, (list, tuple)):
        return images
    if problem := size_problem([len(image) for image in images if isinstance(image, bytes)]):
        raise InvalidRequest.of({"images": problem})
    return tuple(
        ImageUpload(b64encode(image).decode()) if isinstance(image, bytes) else image
        for image in images
    )


@command
class ImageOptions:
    images: Sequence[ImageUpload | bytes] = param(
        "Images that the agent sees with the text: PNG, JPEG, GIF or WebP, at most "
        f"{MAX_IMAGE_BYTES:,} bytes together.",
        default=(),
        converter=_uploads,
        max_length=MAX_IMAGES,
        flag="--image",
    )


@command
class BusyOption:
    when_busy: WhenBusy = param(
        "What to do if a run of the session is active: `queue` the message, `steer` the active run with "
        "it (queues if the runner cannot), `interrupt` that run, or `reject` the message.",
        default="queue",
        tool_doc="What to do if that agent is working: `queue` the message for its next turn, `steer` "
        "its current turn, `interrupt` that turn, or `reject` the message with an error.",
    )


@command
class Labels:
    title: str | None = optional_name("A short title.")


def _label_list(doc: str, flag: str, *, tool_doc: str | None = None) -> Any:
    return param(
        doc,
        default=(),
        max_length=MAX_LABELS,
        flag=flag,
        for_agents=tool_doc is not None,
        tool_doc=tool_doc,
    )


@command
class Placement:
    """The choice of a host. Without one, a session is on the host of the daemon that creates it, and a child on
    its parent's.
    """

    host: str | None = optional_host(
        "The host that its agents work on. Another one than the daemon's needs a `cwd`, a directory there, which "
        "is checked when a run starts.",
        tool_doc="Another host for the child to work on, in the directory that its administrator has chosen for this: "
        "give no `cwd`. Default: yours.",
    )
    labels: Sequence[str] = _label_list(
        "Labels that its host must have. Needs a `cwd`, a directory of that host. 409 `conflict` if no daemon that "
        "is there has them all.",
        "--label",
        tool_doc="Labels that the child's host must have, such as `gpu`. See `host`.",
    )
    preferred_labels: Sequence[str] = _label_list(
        "Labels that its host should have: the most of these, and then the most free workers, decide. Needs a "
        "`cwd`.",
        "--prefer",
    )


@command
class SpawnOptions(Labels, Placement, SessionLimits, ModelOptions, Keyed):
    """The task and the settings of a child session."""

    task: str = required(
        "What the child should do.",
        kw_only=False,
        max_length=MAX_TEXT,
        not_blank=True,
        tool_doc="Everything the child needs to know: it does not see your conversation. Say what to "
        "do, where, and what to report.",
    )
    provider: str | None = optional_name(
        "The child's provider. Default: its parent's.",
        tool_doc="The provider whose agent does the task. Default: yours.",
    )
    cwd: str | None = optional_path(
        "The directory that the child works in, an absolute path. Default: its parent's."
    )
    notify_parent: NotifyParent = param(
        "`wake` sends the child's outcome to the parent's agent as its next message; `record` only "
        "records it.",
        default="record",
        tool_doc="`wake`: its outcome starts a new turn of yours after this one, so you need not wait "
        "for it. `record`: its outcome is only recorded.",
    )
    metadata: Mapping[str, Any] | None = param(
        "Any JSON object to keep with the child.", default=None, for_agents=False
    )
    approvals: Approvals | None = param(
        "Who decides the requests of the child's agents: its parent's policy or a stricter one.",
        default=None,
        for_agents=False,
    )


@command
class Text:
    text: str = required(
        "The text for the agent.", kw_only=False, max_length=MAX_TEXT, not_blank=True
    )


@command
class SendOptions(BusyOption, ModelOptions, Keyed, Text, OfSession):
    """A message from one agent to another."""


_OPTION_LIMITS: Final = {
    "id": Limits(
        max_length=MAX_OPTION,
        not_blank=True,
        doc="Its name in a decision. Neither it nor the label may name two options.",
    ),
    "label": Limits(max_length=MAX_OPTION, not_blank=True, doc="The text for people."),
    "kind": Limits(
        doc="What it decides: `allow_once`, `allow_session` and `allow_always` approve, `deny` and "
        "`deny_and_stop` deny, `answer` answers."
    ),
    "reaches": Limits(
        max_length=MAX_REACHES, doc="What it allows beyond this one time, for people."
    ),
}


def _offered(options: Any) -> Any:
    if not isinstance(options, Iterable) or isinstance(options, (str, bytes, Mapping)):
        return options
    return tuple(Option.named(one) if isinstance(one, str) else one for one in options)


@command
class QuestionDetails:
    """The details of a question."""

    detail: Mapping[str, Any] | None = param("Facts for the approver: a JSON object.", default=None)
    options: Sequence[Option | str] | None = param(
        "The answers to choose from. A text is an option of the kind `answer`.",
        default=None,
        converter=_offered,
        max_length=MAX_OPTIONS,
        items=_OPTION_LIMITS,
        flag="--option",
    )
    expires_in_s: float = param(
        "Seconds until the question expires. An expired question counts as denied.",
        default=3600.0,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
        alias="timeout_s",
    )

    @property
    def offered(self) -> tuple[Option, ...] | None:
        """The options; each text is one."""
        return cast("tuple[Option, ...] | None", self.options)


@command
class QuestionOptions(QuestionDetails):
    """Options that turn a message to the parent into a question."""

    request_kind: RequestKind | None = param(
        "Turns the message into a question of this kind.",
        default=None,
        tool_doc="Turns the message into a question: approval_request (may I do this?), "
        "permission_request (may I have access?), input_request (which, or what?).",
    )


@command
class AskOptions(QuestionDetails):
    """A question of a runner's agent."""

    text: str = required("The question.", kw_only=False, max_length=MAX_QUESTION, not_blank=True)
    kind: RequestKind = param("Its kind.", default="input_request")


@command
class ResolveOptions:
    """A decision about a request."""

    decision: Decision | None = positional(
        "The decision; may be omitted with an `option`. `answer` requires a text or an option, and so "
        "does `approve` for an `input_request`.",
        default=None,
        kw_only=False,
    )
    option: str | None = param(
        "The id or label of one of the request's options.", default=None, max_length=MAX_OPTION
    )
    scope: Literal["once", "session"] | None = param(
        "What an approval covers: this request (`once`), or similar ones of the session too. "
        "`session` means the option of the kind `allow_session`.",
        default=None,
    )
    text: str | None = param(
        "The answer or the reason, for the agent.", default=None, max_length=MAX_TEXT
    )


@command
class Reasoned:
    reason: str | None = optional_name("The reason, for the log.")
