"""The settings of notices: the table ``[notify]`` of ``agentd.toml``, and ``notify`` of ``open_embedded``."""

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from difflib import get_close_matches
from typing import Any, Final, cast
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import attrs

from agent_orchestrator.configuration import check_setting
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.notices import OCCASIONS
from agent_orchestrator.fields import MAX_NAME, QUIET_HOURS, Limits, encoding_problem, param, specs

_MAX_URL: Final = 2_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_ORIGIN: Final = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?")

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - a prefix, not a secret
"""Prefix of a webhook's secret, by the Standard Webhooks specification."""


def _required(doc: str, *, secret: bool = False, **limits: Any) -> Any:
    """Declare a setting without a default.

    :param secret: whether to leave it out of the ``repr`` and of all output.
    """
    return attrs.field(metadata={"limits": Limits(doc=doc, **limits)}, repr=not secret)


def _secret(doc: str, **limits: Any) -> Any:
    return attrs.field(default=None, metadata={"limits": Limits(doc=doc, **limits)}, repr=False)


def after_quiet_hours(hours: str | None, time_zone: str | None, moment: datetime) -> datetime:
    """Return the moment, or the end of the quiet hours that it is in.

    :param hours: such as ``22:00-07:00``. None means that there are none.
    :param time_zone: the name of their time zone. None means the machine's.
    """
    if hours is None:
        return moment
    begin, end = (time.fromisoformat(part) for part in hours.split("-"))
    local = moment.astimezone(None if time_zone is None else ZoneInfo(time_zone))
    of_day = local.time()
    if begin <= end:
        is_quiet, is_next_day = begin <= of_day < end, False
    else:
        is_quiet, is_next_day = of_day >= begin or of_day < end, of_day >= begin
    if not is_quiet:
        return moment
    day = local.date() + timedelta(days=is_next_day)
    zone = local.tzinfo
    return datetime.combine(day, end, zone).astimezone(moment.tzinfo)


@attrs.frozen(kw_only=True, slots=False)
class NotifyOptions:
    """Settings of all notices."""

    link_base: str | None = param(
        "The address at which people open this daemon's page, such as `https://desk.example`. Links in "
        "notices begin with it. Default: links are paths.",
        default=None,
        max_length=_MAX_URL,
        pattern=r"https?://[^\s?#]+",
    )
    dwell_s: float = param(
        "Seconds from an event to its notice. A request that is answered meanwhile has no notice.",
        default=5.0,
        minimum=0,
        maximum=3600,
    )
    unseen_s: float = param(
        "Seconds until the next device, and then the targets, are notified if none has shown the notice.",
        default=30.0,
        minimum=1,
        maximum=3600,
    )
    include_text: bool = param(
        "Whether notices contain the text of requests, results and errors. It may contain code.",
        default=False,
    )
    quiet_hours: str | None = param(
        "Times of the day between which nothing is sent, such as `22:00-07:00`. Notices wait for the end.",
        default=None,
        pattern=QUIET_HOURS,
    )
    time_zone: str | None = param(
        "The time zone of `quiet_hours`, such as `Europe/Berlin`. Default: the machine's.",
        default=None,
        max_length=MAX_NAME,
    )

    push_contact: str | None = param(
        "A `mailto:` or `https:` address at which push services can reach the operator. Apple requires one. "
        "Default: `link_base`, if it is `https:`.",
        default=None,
        max_length=MAX_NAME,
        pattern=r"(mailto:[^\s<>@]+@[^\s<>@]+|https://[^\s?#]+)",
    )
    push_services: tuple[str, ...] = param(
        "Further push services to which browsers may subscribe, such as `https://push.example`. Those of "
        "Apple, Google, Microsoft and Mozilla are known.",
        default=(),
        max_length=16,
    )

    def after_quiet_hours(self, moment: datetime) -> datetime:
        """Return the moment, or the end of the quiet hours that it is in."""
        return after_quiet_hours(self.quiet_hours, self.time_zone, moment)


@attrs.frozen(kw_only=True, slots=False)
class TargetOptions:
    """Settings of every target."""

    events: tuple[str, ...] = param(
        "What it is notified of: `request` (an agent asks a person), `finished` and `failed` (a run of a "
        "session without a parent has ended).",
        default=("request",),
        max_length=len(OCCASIONS),
    )
    fallback: bool = param(
        "Whether to notify it only if no device with Web Push shows the notice. Without such devices it is "
        "notified immediately.",
        default=True,
    )
    quiet: bool = param("Whether `quiet_hours` apply to it.", default=True)
    timeout_s: float = param(
        "Maximum seconds of one attempt.", default=10.0, minimum=0.1, maximum=60
    )


@attrs.frozen(kw_only=True, slots=False)
class WebhookOptions(TargetOptions):
    """A URL that gets each notice as signed JSON."""

    url: str = _required(
        "The URL that gets a POST for each notice.", secret=True, max_length=_MAX_URL
    )
    secret: str = _required(
        "The key of the signature: `whsec_` and 24 to 64 bytes in base64.",
        secret=True,
        max_length=MAX_NAME,
    )


@attrs.frozen(kw_only=True, slots=False)
class NtfyOptions(TargetOptions):
    """A topic of an ntfy server."""

    url: str = _required(
        "The URL of the topic, such as `https://ntfy.sh/my-topic`. Anyone who knows it can read the notices.",
        secret=True,
        max_length=_MAX_URL,
    )
    token: str | None = _secret(
        "An access token of the ntfy server.", max_length=MAX_NAME, pattern=r"[!-~]+"
    )


@attrs.frozen(kw_only=True, slots=False)
class CommandOptions(TargetOptions):
    """A program that gets each notice as JSON on its standard input."""

    argv: tuple[str, ...] = _required(
        "The program and its arguments. A relative path starts at the daemon's directory."
    )


TARGET_KINDS: Final[Mapping[str, type[TargetOptions]]] = {
    "webhook": WebhookOptions,
    "ntfy": NtfyOptions,
    "command": CommandOptions,
}
"""The settings of a target, by its ``channel``."""

MAX_TARGETS: Final = 32


@attrs.frozen
class NotifySettings:
    """The table ``[notify]``."""

    options: NotifyOptions = attrs.field(factory=NotifyOptions)
    targets: Mapping[str, TargetOptions] = attrs.field(factory=dict)

    def secrets(self) -> tuple[str, ...]:
        """Return the values that no output may contain."""
        return tuple(
            value
            for target in self.targets.values()
            for attribute in attrs.fields(type(target))
            if not attribute.repr and (value := getattr(target, attribute.name)) is not None
        )


def kind_of(target: TargetOptions) -> str:
    """Return the ``channel`` of a target."""
    return next(name for name, kind in TARGET_KINDS.items() if type(target) is kind)


def read_notify(table: Any, *, location: str) -> NotifySettings:
    """Return the settings in a table.

    :param location: the table's name in errors.
    :raises ConfigError: listing the invalid settings, without their values.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{location}: must be a table")
    values = dict(table)
    named = values.pop("targets", {})
    if not isinstance(named, Mapping):
        raise ConfigError(f"{location}.targets: must be a table")
    options = NotifyOptions(**_checked(NotifyOptions, location, values))
    for service in options.push_services:
        if not _ORIGIN.fullmatch(service):
            raise ConfigError(
                f"{location}.push_services: must be origins, such as https://push.example"
            )
    if options.time_zone is not None:
        _check_zone(options.time_zone, f"{location}.time_zone")
    if len(named) > MAX_TARGETS:
        raise ConfigError(f"{location}.targets: must be at most {MAX_TARGETS}")
    targets: dict[str, TargetOptions] = {}
    problems: list[str] = []
    for name, target in named.items():
        try:
            targets[name] = _target(name, target, f"{location}.targets.{name}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return NotifySettings(options, targets)


def _target(name: str, table: Any, location: str) -> TargetOptions:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{location}: a target's name may have only letters, digits, '_', '.' and '-'"
        )
    if not isinstance(table, Mapping):
        raise ConfigError(f"{location}: must be a table")
    values = dict(table)
    channel = values.pop("channel", None)
    if not isinstance(channel, str) or channel not in TARGET_KINDS:
        raise ConfigError(f"{location}.channel: must be one of {', '.join(TARGET_KINDS)}")
    kind = TARGET_KINDS[channel]
    argv = values.pop("argv", None) if kind is CommandOptions else None
    checked = _checked(kind, location, values)
    if argv is not None:
        checked["argv"] = _program(argv, f"{location}.argv")
    for missing in (spec for spec in specs(cast("Any", kind)).values() if spec.required):
        if missing.name not in checked:
            raise ConfigError(f"{location}.{missing.name}: is required")
    for event in checked.get("events", ()):
        if event not in OCCASIONS:
            raise ConfigError(f"{location}.events: must be some of {', '.join(OCCASIONS)}")
    if "url" in checked:
        _check_url(checked["url"], f"{location}.url", needs_path=channel == "ntfy")
    if channel == "webhook":
        _check_key(checked["secret"], f"{location}.secret")
    return kind(**checked)


def _program(argv: Any, location: str) -> tuple[str, ...]:
    """Return a program and its arguments. They may be longer than the entries of other lists."""
    if not isinstance(argv, list | tuple) or not all(isinstance(part, str) for part in argv):
        raise ConfigError(f"{location}: must be a list of strings")
    if not argv or not argv[0]:
        raise ConfigError(f"{location}: must name a program")
    for part in argv:
        if "\0" in part:
            raise ConfigError(f"{location}: must not contain a NUL character")
        if problem := encoding_problem(part):
            raise ConfigError(f"{location}: {problem}")
    return tuple(argv)


def _checked(kind: type, location: str, values: Mapping[str, Any]) -> dict[str, Any]:
    known = specs(kind)
    for name in values:
        if name not in known:
            guesses = get_close_matches(str(name), known, n=1)
            hint = (
                f"did you mean {guesses[0]!r}?"
                if guesses
                else f"there are {', '.join(sorted(known))}"
            )
            raise ConfigError(f"{location}.{name}: is not a setting; {hint}")
    secret = {attribute.name for attribute in attrs.fields(kind) if not attribute.repr}
    checked = {
        name: check_setting(known[name], f"{location}.{name}", value, is_secret=name in secret)
        for name, value in values.items()
    }
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in checked.items()
    }


def _check_zone(name: str, location: str) -> None:
    if not is_time_zone(name):
        raise ConfigError(f"{location}: is not a time zone that this machine knows")


def is_time_zone(name: str) -> bool:
    """Return whether a name is that of a time zone that this machine knows."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _check_url(url: str, location: str, *, needs_path: bool) -> None:
    path = _path_of(url)
    if path is None:
        raise ConfigError(f"{location}: must be an http or https URL without a user name")
    if needs_path and not path.strip("/"):
        raise ConfigError(f"{location}: must name a topic, such as https://ntfy.sh/my-topic")


def _path_of(url: str) -> str | None:
    """Return the path of a valid URL; None if it is not one."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        return None
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            return None
    except ValueError:
        return None
    is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.username is None
    return parts.path if is_valid else None


def signing_key(secret: str) -> bytes:
    """Return the key in a webhook's secret.

    :raises ValueError: if it is not ``whsec_`` and 24 to 64 bytes in base64.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError("has another prefix")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("is not base64") from None
    if not 24 <= len(key) <= 64:
        raise ValueError("has another length")
    return key


def _check_key(secret: str, location: str) -> None:
    try:
        signing_key(secret)
    except ValueError:
        raise ConfigError(
            f"{location}: must be {SECRET_PREFIX} and 24 to 64 bytes in base64"
        ) from None
