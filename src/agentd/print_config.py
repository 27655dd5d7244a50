"""The output of ``agentd --print-config``: every setting with its value and source.

It is TOML. If no secrets were hidden in it, it can be used as the configuration file.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from agent_orchestrator.fields import values_of
from agent_orchestrator.notice_settings import NotifyOptions, kind_of
from agent_orchestrator.stores.urls import without_secrets
from agentd.logs import HIDDEN, Redactor
from agentd.providers import ProviderSettings
from agentd.settings import Settings, declared

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SOURCE_COLUMN: Final = 44
"""Minimum column of the sources."""


def render_config(settings: Settings) -> str:
    """Return all settings as TOML, each with its source in a comment; secrets are hidden."""
    text = "\n".join(
        [
            *_tables(settings),
            *_providers(settings),
            "[routing]",
            _line("prefer", settings.routing.prefer)
            if settings.routing.prefer
            else _line("default", settings.routing.default),
            _line("fallback", settings.routing.fallback),
            "",
            *_notices(settings),
        ]
    )
    return Redactor(settings.secrets)(text)


def _tables(settings: Settings) -> Iterator[str]:
    secret = {attribute.name for attribute in attrs.fields(Settings) if not attribute.repr}
    known = declared()
    for table in dict.fromkeys(setting.table for setting in known.values()):
        yield f"[{table}]"
        for name, setting in known.items():
            if setting.table != table:
                continue
            key = setting.key
            value, source = getattr(settings, name), settings.sources.get(name, "default")
            if value is None:
                yield _with_source(f"# {key} is not set", source)
            elif name == "db" and settings.store is not None:
                yield _with_source(f"# {key} is not used: there is another store", source)
            elif name in ("store", "store_listen"):
                shown = without_secrets(value)
                yield _with_source(("" if shown == value else "# ") + _line(key, shown), source)
            elif name in secret and value:
                hidden = [HIDDEN] * len(value) if isinstance(value, tuple) else HIDDEN
                yield _with_source("# " + _line(key, hidden), source)
            else:
                yield _with_source(_line(key, value), source)
        yield ""


def _providers(settings: Settings) -> Iterator[str]:
    for name, provider in settings.providers.items():
        yield f"[providers.{_key(name)}]"
        for key, value in _provider_options(provider).items():
            if value is not None:
                yield _line(key, value)
        if provider.set:
            yield f"# env.set: the values of {', '.join(map(_text, provider.set))} are hidden"
        yield ""


def _notices(settings: Settings) -> Iterator[str]:
    yield "[notify]"
    for name, value in values_of(NotifyOptions, settings.notify.options).items():
        yield f"# {name} is not set" if value is None else _line(name, value)
    for name, target in settings.notify.targets.items():
        yield f"\n[notify.targets.{_key(name)}]"
        yield _line("channel", kind_of(target))
        for attribute in attrs.fields(type(target)):
            value = getattr(target, attribute.name)
            if value is None:
                yield f"# {attribute.name} is not set"
            elif attribute.repr:
                yield _line(attribute.name, value)
            else:
                yield "# " + _line(attribute.name, HIDDEN)


def _provider_options(provider: ProviderSettings) -> dict[str, Any]:
    fields = attrs.asdict(provider, recurse=False)
    options = fields.pop("options")
    inherit, env_set = fields.pop("inherit"), fields.pop("set")
    env: dict[str, Any] = {"inherit": inherit}
    if env_set:
        env["set"] = dict.fromkeys(env_set, HIDDEN)
    return {**fields, "env": env, **options}


def _with_source(line: str, source: str) -> str:
    return f"{line:<{_SOURCE_COLUMN}} # {_text(source)[1:-1]}"


def _line(key: str, value: Any) -> str:
    return f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    # JSON's escapes are valid in TOML, which also requires an escape for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _value(value: Any) -> str:
    match value:
        case str():
            return _text(value)
        case Mapping():
            inner = ", ".join(_line(key, entry) for key, entry in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case Sequence():
            return f"[{', '.join(map(_value, value))}]"
        case bool():
            return "true" if value else "false"
    return str(value)  # Python and TOML write numbers, dates and times alike
