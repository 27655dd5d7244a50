"""What a message asks of its agent's model for one turn, and which runners take it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import asdict, frozen

from agent_orchestrator.domain.errors import Forbidden, InvalidRequest
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.model import MANUAL, Run, Session
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations import (
    CreateRun,
    CreateSession,
    SendMessage,
    SendToSession,
    SpawnFromRun,
    SpawnFromSession,
)
from agent_orchestrator.ports import Runner, TurnConfigurable
from agent_orchestrator.wire.strict_json import json_copy

Command = SendMessage | CreateRun | SendToSession | SpawnFromRun | SpawnFromSession


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
    def of(cls, command: Command, images: Sequence[ImageContent] = ()) -> "TurnOptions":
        """Return the options that a command gives."""
        return cls(command.model, command.effort, _copy(command.output_schema), images)

    @classmethod
    def of_first_message(
        cls, command: CreateSession, images: Sequence[ImageContent]
    ) -> "TurnOptions":
        """Return the options of a new session's first message. Its model is the session's."""
        return cls(None, command.effort, _copy(command.output_schema), images)

    @classmethod
    def kept_by(cls, run: Run, images: Sequence[ImageContent]) -> "TurnOptions":
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

    def over(self, other: "TurnOptions") -> "TurnOptions":
        """Return these options, and those of the other where these leave them out."""
        return TurnOptions(
            self.model or other.model,
            self.effort or other.effort,
            self.output_schema if self.output_schema is not None else other.output_schema,
            self.images or other.images,
        )

    def fit(self, run: Run) -> bool:
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


def inherited_options(
    core: Core, run: Run, session: Session, provider: str, asked: TurnOptions
) -> TurnOptions:
    """Return the options for an agent's message that names none: the options of the agent's own run.

    What a person chose for an agent, it cannot exceed by a child. The provider's own settings are no
    such choice: where nobody chose, an agent may.

    :param run: the agent's.
    :param session: the run's.
    :param provider: the provider of the message; a model is one provider's.
    :param asked: the options that the message names.
    :raises Forbidden: if it names another model, or more effort.
    """
    config = core.config.providers.get(provider)
    model = None
    if provider == run.provider:
        usual = config.model if config is not None else None
        model = session.model or (run.model if run.model != usual else None)
    if model is not None and asked.model not in (None, model):
        raise Forbidden(
            f"the agent's own model was chosen for it ({model}): it may not choose another",
            {"model": model},
        )
    if (
        run.effort is not None
        and asked.effort is not None
        and not _at_most(asked.effort, run.effort)
    ):
        raise Forbidden(
            f"the agent's own effort was chosen for it ({run.effort}): it may not ask for more",
            {"effort": run.effort},
        )
    accepted = accepted_options(config.runner) if config is not None else frozenset()
    return TurnOptions(
        model=model if "model" in accepted else None,
        effort=run.effort if "effort" in accepted else None,
    )


def _at_most(effort: str, limit: str) -> bool:
    if effort == limit:
        return True
    known = effort in EFFORTS and limit in EFFORTS
    return known and EFFORTS.index(effort) < EFFORTS.index(limit)


def _copy(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if schema is None else json_copy(schema)


def accepted_options(runner: Runner) -> frozenset[str]:
    """Return the names of the message options that a runner takes."""
    return runner.message_options if isinstance(runner, TurnConfigurable) else frozenset()
