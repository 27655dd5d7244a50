"""What a message asks of its agent's model for one turn, and which runners take it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import asdict, frozen

from agent_orchestrator.domain.errors import Forbidden, InvalidRequest
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import MANUAL, Chosen, Run, Session
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations import AnswerOptions, ModelOptions
from agent_orchestrator.ports import Runner, capabilities_of
from agent_orchestrator.wire.strict_json import json_copy


@frozen
class TurnOptions:
    """Options of one message. None leaves an option to the session, then to the provider.

    :param model: the model to ask.
    :param effort: how much it should reason.
    :param output_schema: JSON Schema of its answer.
    :param images: what the agent is to see with the text.
    """

    model: str | None = None
    effort: str | None = None
    output_schema: Mapping[str, Any] | None = None
    images: Sequence[ImageContent] = ()

    @classmethod
    def of(cls, command: ModelOptions, images: Sequence[ImageContent] = ()) -> "TurnOptions":
        """Return the options that a command gives."""
        return cls(command.model, command.effort, _copy(command.output_schema), images)

    @classmethod
    def of_first_message(
        cls, command: AnswerOptions, images: Sequence[ImageContent]
    ) -> "TurnOptions":
        """Return the options of a new session's first message. Its model is the session's."""
        return cls(None, command.effort, _copy(command.output_schema), images)

    @classmethod
    def required_by(cls, run: Run, images: Sequence[ImageContent]) -> "TurnOptions":
        """Return the options that whichever provider runs it must take; a model is one provider's."""
        return cls(None, run.effort, run.output_schema, images)

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that are given."""
        return frozenset(
            name
            for name, value in asdict(self, recurse=False).items()
            if value is not None and value != ()
        )

    def or_else(self, other: "TurnOptions") -> "TurnOptions":
        """Return these options, and those of the other where these leave them out."""
        return TurnOptions(
            self.model or other.model,
            self.effort or other.effort,
            self.output_schema if self.output_schema is not None else other.output_schema,
            self.images or other.images,
        )

    def fits(self, run: Run) -> bool:
        """Return whether a run under way can take a message with these options.

        A schema is for the answer to that message alone, and the text that steers comes without
        images.
        """
        return (
            self.output_schema is None
            and not self.images
            and self.model in (None, run.model)
            and self.effort in (None, run.effort)
        )


NO_OPTIONS = TurnOptions()

NOTHING_CHOSEN: Final = Chosen()


def check_options(core: Core, provider: str, options: TurnOptions) -> None:
    """Raise `InvalidRequest`, naming each option that the provider does not take.

    Whoever drives a manual run reads its options from the run, which does not have the images.
    """
    config = core.config.providers.get(provider)
    if provider == MANUAL:
        accepted = frozenset({"model", "effort", "output_schema"})
    elif config is None:
        return
    else:
        accepted = accepted_options(config.runner)
    if refused := options.given - accepted:
        problem = f"is not taken by the provider {provider!r}"
        raise InvalidRequest.of(dict.fromkeys(sorted(refused), problem))


EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh")
"""Reasoning efforts that can be compared, the least first."""


def with_inherited(core: Core, provider: str, asked: TurnOptions, above: Chosen) -> TurnOptions:
    """Return a message's options, and where it names none, those that were chosen for its sender.

    :param provider: the provider of the message; a model is one provider's.
    :param above: what was chosen for the agent that sends it. The provider's own settings are no such
        choice: where nobody chose, an agent may.
    :raises Forbidden: if the message names another model, or more effort.
    """
    model, effort = above.models.get(provider), above.effort
    if model is not None and asked.model not in (None, model):
        raise Forbidden(
            f"the agent's own model was chosen for it ({model}): it may not choose another",
            {"model": model},
        )
    if effort is not None and asked.effort is not None and not _at_most(asked.effort, effort):
        raise Forbidden(
            f"the agent's own effort was chosen for it ({effort}): it may not ask for more",
            {"effort": effort},
        )
    config = core.config.providers.get(provider)
    accepted = accepted_options(config.runner) if config is not None else frozenset()
    return asked.or_else(
        TurnOptions(
            model=model if "model" in accepted else None,
            effort=effort if "effort" in accepted else None,
        )
    )


def chosen_options(
    session: Session, provider: str, options: TurnOptions, above: Chosen = NOTHING_CHOSEN
) -> Chosen:
    """Return what is chosen for the agent of a run.

    :param options: those of the run's message.
    :param above: what was chosen for the agent that sets it to work. It holds also where a runner in
        between takes no such option.
    """
    model = options.model or session.model
    models = above.models if model is None else {**above.models, provider: model}
    return Chosen(options.effort or above.effort, models)


def is_at_most(run: Run, above: Chosen) -> bool:
    """Return whether a run's agent may do no more than another agent for which this was chosen."""
    has_no_more = above.effort is None or (
        run.chosen.effort is not None and _at_most(run.chosen.effort, above.effort)
    )
    models = run.chosen.models
    return has_no_more and all(models.get(name) == one for name, one in above.models.items())


def combined(first: Chosen, second: Chosen) -> Chosen:
    """Return what holds where two choices do: less effort, and of two models the first."""
    efforts = [one for one in (first.effort, second.effort) if one is not None]
    if len(efforts) == 2 and _at_most(efforts[1], efforts[0]):
        efforts.reverse()
    return Chosen(efforts[0] if efforts else None, {**second.models, **first.models})


def _at_most(effort: str, limit: str) -> bool:
    if effort == limit:
        return True
    known = effort in EFFORTS and limit in EFFORTS
    return known and EFFORTS.index(effort) < EFFORTS.index(limit)


def _copy(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if schema is None else json_copy(schema)


def accepted_options(runner: Runner) -> frozenset[str]:
    """Return the names of the message options that a runner takes."""
    return capabilities_of(runner).message_options
