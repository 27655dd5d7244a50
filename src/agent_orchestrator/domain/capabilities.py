"""The capabilities of a runner, for decisions of the engine and the daemon's status."""

from attrs import frozen

from agent_orchestrator.domain.model import ApprovalPolicy, Sandbox


@frozen
class InputLimit:
    """The maximum length of an agent's input; None means no limit.

    :param characters: Unicode characters.
    :param size: bytes in UTF-8.
    """

    characters: int | None = None
    size: int | None = None

    def excess(self, text: str) -> str | None:
        """Return what is wrong with the length of a text; None if nothing is."""
        if self.characters is not None and len(text) > self.characters:
            return f"it has {len(text):,} characters, at most {self.characters:,} are allowed"
        if self.size is not None and (size := len(text.encode("utf-8", "replace"))) > self.size:
            return f"it has {size:,} bytes, at most {self.size:,} are allowed"
        return None


@frozen(kw_only=True)
class Capabilities:
    """What a runner supports. The defaults hold for a runner that declares nothing.

    :param resume: whether it continues :attr:`RunContext.thread`, even if the process ended in the
        middle of a turn. It then gets only the messages that the conversation lacks.
    :param steer: whether its agents take a message while they work. Otherwise the message gets its own run.
    :param ask: whether approvals and questions of its agents become requests.
    :param tools: whether it gives its agents the orchestration tools.
    :param confine: whether it enforces the ``sandbox`` and ``approval_policy`` of
        :attr:`RunContext.run`, or stricter ones. Other runners get no run that sets one.
    :param sandbox: the sandbox of a run that sets none; None if unknown. It counts only with
        ``confine``: other agents are taken to be unconfined.
    :param approval_policy: the approval policy of a run that sets none; None if unknown.
    :param protect: whether it denies its agents the paths of :attr:`RunContext.protected`, unless a
        run asks for a weaker sandbox.
    :param models: whether a message may choose the model. A message with an option that is not supported
        is refused.
    :param effort: whether a message may choose the reasoning effort.
    :param output_schema: whether a message may have a JSON Schema of its answer.
    :param images: whether a message may have images.
    :param max_input: the limit of :attr:`RunContext.prompt`, and of one message during the run. Queued
        messages beyond it come in the next turn. A single longer message is refused.
    :param vendor: the provider of its models in OpenTelemetry's words (``gen_ai.provider.name``); None if
        unknown.
    """

    resume: bool = False
    steer: bool = False
    ask: bool = False
    tools: bool = False
    confine: bool = False
    sandbox: Sandbox | None = None
    approval_policy: ApprovalPolicy | None = None
    protect: bool = False
    models: bool = False
    effort: bool = False
    output_schema: bool = False
    images: bool = False
    max_input: InputLimit = InputLimit()
    vendor: str | None = None

    @property
    def message_options(self) -> frozenset[str]:
        """Names of the message options that the runner applies to one turn."""
        options = {
            "model": self.models,
            "effort": self.effort,
            "output_schema": self.output_schema,
            "images": self.images,
        }
        return frozenset(name for name, is_supported in options.items() if is_supported)
