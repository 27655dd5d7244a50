"""The options of a message for one turn of its agent's model, and the runners that accept them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import asdict, frozen

from agent_orchestrator.domain.errors import Forbidden, InvalidRequest
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import MANUAL, ChoiceLimits, Run, Session
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations.options import AnswerOptions, ModelOptions
from agent_orchestrator.ports.runner import Runner, capabilities_of
from agent_orchestrator.wire.strict_json import json_copy


@frozen
class TurnOptions:
    """Options of one message. None means the session's value, else the provider's.

    :param model: the model.
    :param effort: its reasoning effort.
    :param output_schema: JSON Schema of its answer.
    :param images: images that the agent sees with the text.
    """

    model: str | None = None
    effort: str | None = None
    output_schema: Mapping[str, Any] | None = None
    images: Sequence[ImageContent] = ()

    @classmethod
    def of(cls, command: ModelOptions, images: Sequence[ImageContent] = ()) -> "TurnOptions":
        """Return the options of a command."""
        return cls(command.model, command.effort, _copy(command.output_schema), images)

    @classmethod
    def of_first_message(
        cls, command: AnswerOptions, images: Sequence[ImageContent]
    ) -> "TurnOptions":
        """Return the options of a new session's first message, without ``model``, which the session has."""
        return cls(None, command.effort, _copy(command.output_schema), images)

    @classmethod
    def required_by(cls, run: Run, images: Sequence[ImageContent]) -> "TurnOptions":
        """Return the options that every provider of a run must accept: all but the provider's model."""
        return cls(None, run.effort, run.output_schema, images)

    @property
    def names(self) -> frozenset[str]:
        """Names of the options that are set."""
        return frozenset(
            name
            for name, value in asdict(self, recurse=False).items()
            if value is not None and value != ()
        )

    def or_else(self, other: "TurnOptions") -> "TurnOptions":
        """Return these options, with the other's for those that are not set."""
        return TurnOptions(
            self.model or other.model,
            self.effort or other.effort,
            self.output_schema if self.output_schema is not None else other.output_schema,
            self.images or other.images,
        )

    def fits(self, run: Run) -> bool:
        """Return True if an active run can take a steering message with these options.

        A schema is for the answer to one message only, and steering messages have no images.
        """
        return (
            self.output_schema is None
            and not self.images
            and self.model in (None, run.model)
            and self.effort in (None, run.effort)
        )


NO_OPTIONS = TurnOptions()

NOTHING_CHOSEN: Final = ChoiceLimits()


def check_options(core: Core, provider: str, options: TurnOptions) -> None:
    """Raise ``InvalidRequest`` for each option that the provider does not accept.

    A manual run accepts no images: its client reads the options from the run, which has none.
    """
    config = core.config.providers.get(provider)
    if provider == MANUAL:
        accepted = frozenset({"model", "effort", "output_schema"})
    elif config is None:
        return
    else:
        accepted = accepted_options(config.runner)
    if refused := options.names - accepted:
        problem = f"is not supported by the provider {provider!r}"
        raise InvalidRequest.of(dict.fromkeys(sorted(refused), problem))


EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh")
"""Comparable reasoning efforts, the lowest first."""


def with_inherited(
    core: Core, provider: str, options: TurnOptions, sender_limits: ChoiceLimits
) -> TurnOptions:
    """Return a message's options, with model and effort of its sender for those that are not set.

    :param provider: the provider of the message.
    :param sender_limits: the limits on what the sending agent may choose. Settings of the provider are not limits.
    :raises Forbidden: if the message has another model, or more effort.
    """
    model, effort = sender_limits.models.get(provider), sender_limits.effort
    if model is not None and options.model not in (None, model):
        raise Forbidden(
            f"this agent's model was chosen for it ({model}), so it cannot choose another",
            {"model": model},
        )
    if effort is not None and options.effort is not None and not _at_most(options.effort, effort):
        raise Forbidden(
            f"this agent's effort was chosen for it ({effort}), so it cannot choose a higher one",
            {"effort": effort},
        )
    config = core.config.providers.get(provider)
    # A provider that only other daemons have refuses what it does not accept when the run starts.
    accepted = {"model", "effort"} if config is None else accepted_options(config.runner)
    return options.or_else(
        TurnOptions(
            model=model if "model" in accepted else None,
            effort=effort if "effort" in accepted else None,
        )
    )


def with_default_model(
    core: Core, session: Session, provider: str, options: TurnOptions
) -> TurnOptions:
    """Return a message's options, with the session's model if they name none."""
    return options.or_else(TurnOptions(core.model_of(session, provider)))


def chosen_options(
    session: Session,
    provider: str,
    options: TurnOptions,
    sender_limits: ChoiceLimits = NOTHING_CHOSEN,
) -> ChoiceLimits:
    """Return the limits on what a run's agent may choose for children.

    :param options: the options of the run's message.
    :param sender_limits: the sender's limits. They are passed on even if the run's own runner lacks the option.
    """
    model = options.model or session.model
    models = sender_limits.models if model is None else {**sender_limits.models, provider: model}
    return ChoiceLimits(options.effort or sender_limits.effort, models)


def is_at_most(run: Run, sender_limits: ChoiceLimits) -> bool:
    """Return True if a run's limits are at least as strict as ``sender_limits``."""
    has_no_more = sender_limits.effort is None or (
        run.chosen.effort is not None and _at_most(run.chosen.effort, sender_limits.effort)
    )
    models = run.chosen.models
    return has_no_more and all(
        models.get(name) == model for name, model in sender_limits.models.items()
    )


def combined(first: ChoiceLimits, second: ChoiceLimits) -> ChoiceLimits:
    """Return the combination of two limits: the lower effort, and the first's model for each provider."""
    efforts = [effort for effort in (first.effort, second.effort) if effort is not None]
    if len(efforts) == 2 and _at_most(efforts[1], efforts[0]):
        efforts.reverse()
    return ChoiceLimits(efforts[0] if efforts else None, {**second.models, **first.models})


def _at_most(effort: str, limit: str) -> bool:
    if effort == limit:
        return True
    known = effort in EFFORTS and limit in EFFORTS
    return known and EFFORTS.index(effort) < EFFORTS.index(limit)


def _copy(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if schema is None else json_copy(schema)


def accepted_options(runner: Runner) -> frozenset[str]:
    """Return the names of the message options that a runner accepts."""
    return capabilities_of(runner).message_options
