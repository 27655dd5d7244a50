"""The daemon's settings. Flags override the environment, which overrides the file, which overrides
the defaults.

Each field of :class:`Settings` is one setting. The command line's options and the documentation
derive from it.
"""

import functools
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from attrs import field, frozen

from agent_orchestrator.configuration import (
    EngineOptions,
    TreeLimits,
    check_setting,
    daemon_setting,
)
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.encoding import decode_for_display
from agent_orchestrator.fields import FieldSpec, encoding_problem, specs
from agent_orchestrator.known_runners import DEFAULT_PROVIDER, AgentDefaults
from agent_orchestrator.notice_settings import NotifySettings, read_notify
from agent_orchestrator.stores.urls import check_userinfo, secrets_of, without_secrets
from agent_orchestrator.trusted_files import found_file, is_blank, is_trusted
from agent_orchestrator.user_state import user_state
from agentd.providers import ProviderSettings, RoutingSettings, read_providers

BASE_PATH: Final = r"(?:/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])+"
"""A path that proxies and browsers leave as it is, without a slash at its end."""

DEFAULT_FILE: Final = "agentd.toml"
"""Read from the working directory if it exists, is trusted, and no other file is named."""


class FlagError(ConfigError):
    """A value on the command line cannot be used."""


@frozen
class Setting:
    """A setting and its sources.

    :param spec: the type and bounds of its value, or of each of its values.
    :param many: it has a list of values, and its flag may be repeated.
    :param env: its environment variables; the values of several are joined.
    :param flag: its command-line option.
    :param table: its table in the file.
    :param key: its key in that table.
    :param secret: errors do not show its value.
    """

    spec: FieldSpec
    many: bool
    env: tuple[str, ...]
    flag: str
    table: Literal["daemon", "limits"]
    key: str
    secret: bool

    @property
    def doc(self) -> str:
        return self.spec.limits.doc

    @property
    def kind(self) -> type:
        """The type of its value, or of each of its values."""
        return self.spec.kinds[0]


def _limit(name: str) -> Any:
    """Declare the setting for a field of :class:`TreeLimits`."""
    spec = specs(TreeLimits)[name]
    metadata = {"limits": spec.limits, "source": {"table": "limits", "key": name}}
    return field(default=spec.default, metadata=metadata)


@frozen(kw_only=True)
class Settings(EngineOptions, AgentDefaults):
    """All of the daemon's settings."""

    host: str = daemon_setting("127.0.0.1", "The address to listen on.")
    port: int = daemon_setting(
        8765,
        "The port to listen on. 0 chooses a free port.",
        minimum=0,
        maximum=65_535,
    )
    db: str = daemon_setting(
        ".data/agent-orchestrator.db",
        "The SQLite database file. Created if it does not exist.",
    )
    store: str | None = daemon_setting(
        None,
        "The URL of a PostgreSQL database to use instead of a SQLite file, in the format of libpq: "
        "postgresql://USER@HOST:PORT/DATABASE. Needs the extra agent-orchestrator[postgres]. Other "
        "users of the machine can see the flag in the process list, so give a password elsewhere.",
        pattern=r"[a-z][a-z0-9+.-]*://[^\0]+",
        secret=True,
    )
    store_listen: str | None = daemon_setting(
        None,
        "The URL of the same PostgreSQL server without the connection pooler that `store` leads through. "
        "Only notifications of other daemons use it: a pooler in transaction mode loses them.",
        pattern=r"postgres(ql)?://[^\0]+",
        secret=True,
    )
    auth_tokens: tuple[str, ...] = daemon_setting(
        (),
        "A bearer token that allows everything; repeatable. Other users of the "
        "machine can see the flag in the process list, so prefer the environment "
        "or the file.",
        env=("AGENTD_AUTH_TOKEN", "AGENTD_AUTH_TOKENS"),
        flag="--auth-token",
        secret=True,
    )
    max_depth: int = _limit("depth")
    max_children: int = _limit("children")
    max_descendants: int = _limit("descendants")
    grace_s: float = daemon_setting(
        30.0,
        "Seconds that running agents have to finish after the first signal.",
        minimum=0,
        maximum=86_400,
    )
    max_body: int = daemon_setting(
        8 * 1024 * 1024,
        "Maximum size of a request body, in bytes.",
        minimum=1024,
        maximum=1024**3,
    )
    allowed_hosts: tuple[str, ...] = daemon_setting(
        (),
        "A further host name by which clients address the daemon (Host header); repeatable.",
        flag="--allowed-host",
    )
    allowed_origins: tuple[str, ...] = daemon_setting(
        (),
        "An origin of web pages that may call the daemon (Origin header); repeatable.",
        flag="--allowed-origin",
    )
    base_path: str | None = daemon_setting(
        None,
        "A path before all others, such as `/agents`, for a reverse proxy that serves the page and the API "
        "below it.",
        pattern=BASE_PATH,
        max_length=256,
    )
    tls_cert: str | None = daemon_setting(
        None,
        "A certificate with its chain (PEM). With it, the daemon uses TLS.",
    )
    tls_key: str | None = daemon_setting(
        None,
        "The certificate's private key (PEM, no passphrase).",
    )
    workspace_roots: tuple[str, ...] = daemon_setting(
        (),
        "A directory in which agents may work, including its subdirectories; "
        "repeatable. Default: anywhere.",
        flag="--workspace-root",
    )
    log_format: Literal["auto", "text", "json"] = daemon_setting(
        "auto",
        "The log format. `auto` is text on a terminal and json otherwise.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = daemon_setting(
        "info",
        "The lowest level to log.",
    )
    traces: Literal["off", "otlp"] = daemon_setting(
        "off",
        "Where to send OpenTelemetry traces of runs. `otlp` uses the OTEL_* "
        "variables and needs the extra agent-orchestrator[otel].",
    )
    providers: Mapping[str, ProviderSettings] = field(factory=dict)
    routing: RoutingSettings = RoutingSettings(DEFAULT_PROVIDER)
    notify: NotifySettings = field(factory=NotifySettings)
    file: str | None = field(default=None, eq=False)
    """The configuration file that was read."""
    finds_file: bool = field(default=False, eq=False)
    """Whether that file was found at the default path, not named."""
    sources: Mapping[str, str] = field(factory=dict, eq=False)
    """The source of each setting that is not a default: its flag, variables, or key in the file."""

    @property
    def limits(self) -> TreeLimits:
        """The limits on the descendants of sessions."""
        return TreeLimits(
            depth=self.max_depth, children=self.max_children, descendants=self.max_descendants
        )

    @property
    def finds_database(self) -> bool:
        """Whether the database is a file at the default path, not named."""
        return self.store is None and "db" not in self.sources

    @property
    def database(self) -> Path | None:
        """The absolute path of the SQLite file; None for another store."""
        return Path(self.db).absolute() if self.store is None else None

    @property
    def location(self) -> str:
        """The path of the SQLite file, or the store's URL without its secrets."""
        return str(self.database) if self.store is None else without_secrets(self.store)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that no output may contain."""
        of_store = [
            one for url in (self.store, self.store_listen) if url for one in secrets_of(url)
        ]
        return (*self.auth_tokens, *of_store, *self.notify.secrets())


@functools.cache
def declared() -> dict[str, Setting]:
    """Return the settings by name, without those in separate tables."""
    attributes = attrs.fields_dict(Settings)
    return {
        name: _declared(spec, attributes[name])
        for name, spec in specs(Settings).items()
        if "limits" in attributes[name].metadata
    }


def _declared(spec: FieldSpec, attribute: "attrs.Attribute[Any]") -> Setting:
    location = attribute.metadata.get("source", {})
    return Setting(
        spec=spec if spec.item is None else attrs.evolve(spec, kinds=(spec.item,)),
        many=spec.item is not None,
        secret=not attribute.repr,
        env=location.get("env", (f"AGENTD_{spec.name.upper()}",)),
        flag=spec.limits.flag or "--" + spec.name.replace("_", "-"),
        table=location.get("table", "daemon"),
        key=location.get("key", spec.name),
    )


UNKNOWN_DATABASE: Final = (
    "It may have come with the other files there, and agentd would run what is queued in it and "
    f"accept its tokens. If it is yours, start agentd once with `--db {Settings().db}`"
)
"""Advice for the user if a found database is not known."""


class UntrustedConfig(ConfigError):
    """The user has not trusted this content of the configuration file."""


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], config: str | None = None
) -> Settings:
    """Return the settings from command line, environment and file.

    A file found in the working directory is used only if the user has trusted its current content:
    see :mod:`agent_orchestrator.trusted_files`. A file that is named is trusted.

    :param flags: the options by setting, as texts or lists of texts.
    :param config: the file; None means ``AGENTD_CONFIG``, or the default file if it exists.
    :raises FlagError: listing all invalid options.
    :raises UntrustedConfig: if the file in the working directory is not trusted.
    :raises ConfigError: listing all invalid values, each in a line.
    """
    config_path = config or environ.get("AGENTD_CONFIG") or None
    name = config_path or DEFAULT_FILE
    if encoding_problem(name):
        raise ConfigError(f"the name of {decode_for_display(name)} is not UTF-8: rename it")
    document = _parse_toml(
        name, _named_file(Path(name)) if config_path is not None else _found_file()
    )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    levels: dict[str, int] = {}
    problems = _Problems()
    flag_problems = _Problems()
    known = declared()
    file_values = _file_values(document, name, problems)
    for key, setting in known.items():
        if flags.get(key) not in (None, ()):
            with flag_problems.collect():
                values[key] = _parse_texts(setting, flags[key], setting.flag)
                sources[key], levels[key] = setting.flag, 0
        elif variables := [variable for variable in setting.env if environ.get(variable)]:
            with problems.collect():
                values[key] = _from_environment(setting, environ, variables)
                sources[key], levels[key] = " and ".join(variables), 1
        elif key in file_values:
            with problems.collect():
                location, value = file_values[key]
                values[key], sources[key] = _from_file(setting, value, location), location
                levels[key] = 2
    if {"db", "store"} <= values.keys():
        if levels["db"] == levels["store"]:
            problems.add(f"{sources['db']} and {sources['store']}: give only one of them")
        overridden = "store" if levels["db"] < levels["store"] else "db"
        del values[overridden], sources[overridden]
    for url in ("store", "store_listen"):
        if url in values:
            with problems.collect():
                check_userinfo(values[url])
    is_named = config_path is not None
    file = name if document or is_named else None
    settings = Settings(**values, sources=sources, file=file, finds_file=not is_named)
    with problems.collect():
        providers, routing = read_providers(
            _table(document, "providers", name),
            _table(document, "routing", name),
            location=name,
            defaults=settings,
        )
        settings = attrs.evolve(settings, providers=providers, routing=routing)
    with problems.collect():
        notify = read_notify(document.get("notify", {}), location=f"{name}: notify")
        settings = attrs.evolve(settings, notify=notify)
    if flag_problems.found:
        raise FlagError("; ".join(flag_problems.found))
    if problems.found:
        raise ConfigError("\n".join(problems.found))
    return settings


def _file_values(
    document: Mapping[str, Any], name: str, problems: "_Problems"
) -> Mapping[str, tuple[str, Any]]:
    """Return the file's value of each setting with its location; add unknown keys to the problems."""
    known = declared()
    in_file: dict[str, tuple[str, Any]] = {}
    for key in document:
        if key not in _TABLES:
            problems.add(f"{name}: {key}: is not a table of this file{_suggestion(key, _TABLES)}")
    for table in ("daemon", "limits"):
        keys = {setting.key: key for key, setting in known.items() if setting.table == table}
        with problems.collect():
            for key, value in _table(document, table, name).items():
                if key in keys:
                    in_file[keys[key]] = f"{name}: {table}.{key}", value
                else:
                    problems.add(f"{name}: {table}.{key}: is not a setting{_suggestion(key, keys)}")
    return in_file


_TABLES: Final = ("daemon", "limits", "providers", "routing", "notify")


@frozen
class _Problems:
    """Problems of the settings, collected to report all at once."""

    found: list[str] = field(factory=list)

    def add(self, problem: str) -> None:
        self.found.append(problem)

    @contextmanager
    def collect(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.add(str(error))


def _suggestion(key: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the most similar name, or all known names."""
    names = sorted(known)
    guesses = get_close_matches(key, names, n=1)
    return f"; did you mean {guesses[0]!r}?" if guesses else f"; there are {', '.join(names)}"


def _named_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _found_file() -> bytes:
    """Return the content of the file in the working directory; empty if there is none."""
    try:
        file = found_file(Path(DEFAULT_FILE))
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"{DEFAULT_FILE}: cannot be read: {error.strerror}") from None
    if is_blank(file) or is_trusted(user_state(), file):
        return file.content
    raise UntrustedConfig(
        f"{file.path} is not trusted, or has changed since: check and trust it with `agentctl config trust`, "
        f"or name it with --config {DEFAULT_FILE}"
    )


def _parse_toml(name: str, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise ConfigError(f"{name}: is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not TOML, or an integer of thousands of digits
        raise ConfigError(f"{name}: is not TOML: {error}") from None


def _table(document: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    table = document.get(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{name}: {key}: must be a table")
    return table


def _from_environment(setting: Setting, environ: Mapping[str, str], variables: list[str]) -> Any:
    location = " and ".join(variables)
    if not setting.many:
        return _parse_texts(setting, environ[variables[0]], location)
    texts: list[str] = []
    for variable in variables:
        # The plural is a list; the singular is one value, even with a comma.
        plural = variable.endswith("S")
        parts = environ[variable].split(",") if plural else [environ[variable]]
        texts += [part.strip() for part in parts if part.strip()]
    return _parse_texts(setting, texts, location)


def _checked(setting: Setting, location: str, value: Any) -> Any:
    return check_setting(setting.spec, location, value, is_secret=setting.secret)


def _parse_texts(setting: Setting, texts: Any, location: str) -> Any:
    if setting.many:
        return tuple(_checked(setting, location, text) for text in texts)
    if setting.kind is str:
        return _checked(setting, location, texts)
    try:
        number = setting.kind(texts)
    except ValueError:
        expected = "an integer" if setting.kind is int else "a number"
        raise ConfigError(f"{location}: must be {expected}, is {texts!r}") from None
    return _checked(setting, location, number)


def _from_file(setting: Setting, value: Any, location: str) -> Any:
    if not setting.many:
        return _checked(setting, location, value)
    if not isinstance(value, list):
        raise ConfigError(f"{location}: must be a list")
    return tuple(_checked(setting, location, entry) for entry in value)


def environment() -> Mapping[str, str]:
    """Return the environment the daemon was started with."""
    return dict(os.environ)
