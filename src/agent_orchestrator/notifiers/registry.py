"""The targets of the settings, with their channels."""

from collections.abc import Mapping
from typing import cast

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.notices import Occasion
from agent_orchestrator.notice_settings import (
    CommandOptions,
    NotifySettings,
    NtfyOptions,
    TargetOptions,
    WebhookOptions,
    kind_of,
)
from agent_orchestrator.notifiers.command import CommandChannel
from agent_orchestrator.notifiers.ntfy import NtfyChannel
from agent_orchestrator.notifiers.webhook import WebhookChannel
from agent_orchestrator.ports.channel import Channel, Target


def build_targets(settings: NotifySettings, env: Mapping[str, str]) -> dict[str, Target]:
    """Return the targets by name.

    :param env: the environment of programs.
    """
    return {
        name: Target(
            channel=_channel(options, env),
            kind=kind_of(options),
            timeout_s=options.timeout_s,
            events=frozenset(cast("tuple[Occasion, ...]", options.events)),
            fallback=options.fallback,
            quiet=options.quiet,
        )
        for name, options in settings.targets.items()
    }


def _channel(options: TargetOptions, env: Mapping[str, str]) -> Channel:
    if isinstance(options, WebhookOptions):
        return WebhookChannel(options=options)
    if isinstance(options, NtfyOptions):
        return NtfyChannel(options=options)
    if isinstance(options, CommandOptions):
        return CommandChannel(options, env)
    raise ConfigError(f"no channel has settings of type {type(options).__name__}")
