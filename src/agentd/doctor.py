"""The findings about agentd's settings and files, for ``agentctl doctor``. No daemon is needed."""

import fcntl
import getpass
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from agent_orchestrator.domain.errors import ConfigError, StoreOpenError
from agent_orchestrator.engine import EngineConfig
from agent_orchestrator.engine.doctor import doctor_report, provider_findings
from agent_orchestrator.engine.environment import unusual_variables
from agent_orchestrator.operations.daemon import DoctorReport, Finding
from agent_orchestrator.ports.store import Reachable
from agent_orchestrator.stores.registry import open_store
from agent_orchestrator.stores.sqlite.connection import names_of
from agent_orchestrator.stores.sqlite.schema import APPLICATION_ID, schema_version
from agent_orchestrator.stores.urls import secrets_of
from agentd.auth import MIN_SAFE_LENGTH, is_loopback
from agentd.logs import SHORT_SECRET
from agentd.own_files import database_check
from agentd.providers import ProviderSettings
from agentd.settings import UNKNOWN_DATABASE, Settings
from agentd.tls import days_left, server_context

MIN_FREE_BYTES: Final = 1 << 30
"""Free bytes of a disk below which doctor warns."""

EXPIRY_WARNING_DAYS: Final = 21
"""Days before a certificate's end from which doctor warns."""


async def findings_offline(settings: Settings, config: EngineConfig) -> DoctorReport:
    """Return the findings for a daemon that is not running."""
    return doctor_report(
        [
            *await provider_findings(config),
            *(await _closed_store(settings)),
            *config.host.findings(),
            *daemon_findings(settings, config.environ),
        ]
    )


def daemon_findings(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Return the findings about the daemon's settings and files, without those of the store."""
    database = settings.database
    checks: Sequence[Callable[[], Iterator[Finding]]] = (
        lambda: iter(()) if database is None else _disk(database),
        lambda: iter(()) if database is None else _database_modes(database),
        lambda: _password(settings),
        lambda: _listening(settings),
        lambda: _tls(settings),
        lambda: _tokens(settings),
        lambda: _configuration(settings),
        lambda: _origin_findings(settings),
        lambda: _phones(settings),
        lambda: _environment(settings, environ),
        lambda: _agents(settings),
    )
    return [finding for check in checks for finding in check()]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd; OSError since Python 3.13
        return f"user {os.getuid()}"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


# --- database and disk ----------------------------------------------------------------------


async def _closed_store(settings: Settings) -> list[Finding]:
    if settings.store is None:
        return list(_closed_database(settings))
    try:
        store = open_store(settings.store)
        if not isinstance(store, Reachable):
            return []
        return [Finding("ok", "database", f"{settings.location}, {await store.reach()}")]
    except (ConfigError, StoreOpenError) as error:
        return [Finding("error", "database", str(error), "see docs/postgresql.md")]


def _password(settings: Settings) -> Iterator[Finding]:
    urls = {
        "--store": ("store", settings.store),
        "--store-listen": ("store_listen", settings.store_listen),
    }
    if any(
        settings.sources.get(name) == flag and secrets_of(url or "")
        for flag, (name, url) in urls.items()
    ):
        yield Finding(
            "warning",
            "database",
            "the database's password was given on the command line, where every user of this machine can see it",
            "put it into ~/.pgpass, or set the URL as AGENTD_STORE or in the configuration file",
            security=True,
        )


def _closed_database(settings: Settings) -> Iterator[Finding]:
    path = Path(settings.db).absolute()
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        yield from _database_directory(path)
        return
    except OSError as error:
        yield Finding("error", "database", f"{path} cannot be read: {error.strerror}")
        return
    if holder := _lock_holder(path):
        yield Finding(
            "warning",
            "database",
            f"{path} is in use by {holder}, which does not answer at this address",
            "use --url with its address, or stop it",
        )
    version = int.from_bytes(header[60:64], "big")  # sqlite.org/fileformat.html, 1.3
    if not header.startswith(b"SQLite format 3\0") or (
        int.from_bytes(header[68:72], "big") != APPLICATION_ID
    ):
        yield Finding(
            "error", "database", f"{path} is not a database of agentd", "name another with --db"
        )
    elif version > schema_version():
        yield Finding(
            "error",
            "database",
            f"{path} was written by a newer agentd: schema {version}, this one knows "
            f"{schema_version()}",
            "run that one",
        )
    elif (may_use := database_check(settings)) is not None and not may_use(names_of(path)):
        yield Finding(
            "error",
            "database",
            f"there is no record that you made or used the database {path}: agentd does not open it",
            UNKNOWN_DATABASE,
        )
    else:
        yield Finding("ok", "database", f"{path}, schema {version}")


def _database_directory(path: Path) -> Iterator[Finding]:
    folder = path.absolute().parent
    while not os.path.exists(folder):
        folder = folder.parent
    if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
        yield Finding("ok", "database", f"{path} will be created at the first start")
    else:
        yield Finding(
            "error",
            "database",
            f"{path} cannot be created: {_user()} has no write access to {folder}",
            "name another with --db",
        )


def _lock_holder(path: Path) -> str | None:
    """Return the process that has the database open, in words; None if there is none."""
    try:
        with path.with_name(f"{path.name}.lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"process {file.read(32).decode('ascii', 'replace').strip() or '?'}"
    except OSError:
        pass  # no lock file, or not readable: opening the database reports that
    return None


def _disk(path: Path) -> Iterator[Finding]:
    folder = path.absolute().parent
    while not os.path.exists(folder):
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    room = f"{free / (1 << 30):,.1f} GiB free on the disk of {folder}"
    if free < MIN_FREE_BYTES:
        yield Finding(
            "warning", "disk", room, "free some space: on a full disk no work is accepted"
        )
    else:
        yield Finding("ok", "disk", room)


def _database_modes(path: Path) -> Iterator[Finding]:
    files = [path, *(path.with_name(f"{path.name}{end}") for end in ("-wal", "-shm"))]
    loose = [str(file) for file in files if _mode(file) & 0o077]
    if loose:
        yield Finding(
            "error",
            "database",
            f"other users may open {', '.join(loose)}: it contains every conversation",
            f"chmod 600 {' '.join(loose)}",
            security=True,
        )
    elif os.path.exists(path):
        yield Finding("ok", "database", "only its owner may open it", security=True)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


# --- who may call ---------------------------------------------------------------------------


def _listening(settings: Settings) -> Iterator[Finding]:
    if is_loopback(settings.host):
        if settings.auth_tokens:
            yield Finding("ok", "address", "loopback only, with tokens", security=True)
        else:
            yield Finding(
                "note",
                "address",
                f"no token is configured: until a named token is created, every user and program of this "
                f"machine, except agents, has full access at {settings.host}",
                "on a shared machine, set AGENTD_AUTH_TOKEN",
                security=True,
            )
    elif not settings.auth_tokens:
        yield Finding(
            "error",
            "address",
            f"other machines can reach {settings.host}, and there is no token: agentd will "
            "not start",
            "set AGENTD_AUTH_TOKEN, or listen on 127.0.0.1",
            security=True,
        )
    elif settings.tls_cert is None:
        yield Finding(
            "warning",
            "address",
            f"other machines reach {settings.host} without TLS: anyone on the network path "
            "can read tokens and everything else",
            "set --tls-cert and --tls-key, or listen on 127.0.0.1 behind a TLS proxy",
            security=True,
        )
    else:
        yield Finding("ok", "address", f"{settings.host} with tokens and TLS", security=True)


def _tls(settings: Settings) -> Iterator[Finding]:
    try:
        context = server_context(settings.tls_cert, settings.tls_key)
    except ConfigError as error:
        yield Finding("error", "TLS", str(error), security=True)
        return
    if context is None or settings.tls_cert is None or settings.tls_key is None:
        return
    if _mode(Path(settings.tls_key)) & 0o077:
        yield Finding(
            "error",
            "TLS",
            f"other users may open the private key {settings.tls_key}",
            f"chmod 600 {settings.tls_key}",
            security=True,
        )
    days = days_left(context, settings.tls_cert)
    if days is None:
        yield Finding(
            "error",
            "TLS",
            f"the certificate {settings.tls_cert} is not valid today: clients refuse it",
            "renew it, and restart agentd",
            security=True,
        )
    else:
        soon = days < EXPIRY_WARNING_DAYS
        yield Finding(
            "warning" if soon else "ok",
            "TLS",
            f"the certificate is valid for another {days} days",
            "renew it, and restart agentd" if soon else None,
            security=True,
        )


def _tokens(settings: Settings) -> Iterator[Finding]:
    shortest = min((len(token) for token in settings.auth_tokens), default=None)
    source = settings.sources.get("auth_tokens", "")
    if shortest is not None and shortest < MIN_SAFE_LENGTH:
        yield Finding(
            "error" if shortest < SHORT_SECRET else "warning",
            "tokens",
            f"a configured token has {shortest} characters",
            "use 32 or more, from `openssl rand -hex 32`: such a token cannot be guessed, and is not "
            "subject to the lock-out of addresses",
            security=True,
        )
    if source.startswith("--"):
        yield Finding(
            "warning",
            "tokens",
            "a token was given on the command line, where every user of this machine can see it",
            "set it as AGENTD_AUTH_TOKEN, or in the configuration file",
            security=True,
        )


def _configuration(settings: Settings) -> Iterator[Finding]:
    if settings.file is None:
        return
    mode = _mode(Path(settings.file))
    holds_token = any(
        settings.sources.get(name, "").startswith(f"{settings.file}:")
        for name, secrets in (
            ("auth_tokens", True),
            ("store", secrets_of(settings.store or "")),
            ("store_listen", secrets_of(settings.store_listen or "")),
        )
        if secrets
    )
    holds_secret = holds_token or bool(settings.notify.secrets())
    if mode & 0o022:
        yield Finding(
            "error",
            "configuration",
            f"other users may change {settings.file}, which names the programs agentd runs",
            f"chmod go-w {settings.file}",
            security=True,
        )
    elif mode & 0o044 and holds_secret:
        yield Finding(
            "error",
            "configuration",
            f"other users may read {settings.file}, which holds a {'token or password' if holds_token else 'secret of notices'}",
            f"chmod 600 {settings.file}",
            security=True,
        )


def _origin_findings(settings: Settings) -> Iterator[Finding]:
    for origin in settings.allowed_origins:
        plain, host = origin.startswith("http:"), origin.partition("://")[2].rpartition(":")
        if plain and not is_loopback((host[0] or host[2]).strip("[]")):
            yield Finding(
                "warning",
                "origins",
                f"pages of {origin} may call, and anyone on the network path can change them",
                "allow the https:// origin instead",
                security=True,
            )


def _phones(settings: Settings) -> Iterator[Finding]:
    """Yield what keeps a daemon that others can reach from notifying phones."""
    has_https = settings.tls_cert is not None or any(
        origin.startswith("https:") for origin in settings.allowed_origins
    )
    if not (has_https or settings.allowed_hosts) and is_loopback(settings.host):
        return
    if not has_https:
        yield Finding(
            "note",
            "notices",
            "the page can be opened from elsewhere, but browsers are notified only over HTTPS. An iPhone also needs "
            "the page on its Home Screen, at an address that stays",
            f"tailscale serve --bg {settings.port}; agentd --allowed-host NAME --allowed-origin https://NAME; "
            "agentctl --url https://NAME device add; or a reverse proxy with a certificate, see docs/web.md",
        )
        return
    options = settings.notify.options
    if options.push_contact is None and not (options.link_base or "").startswith("https:"):
        yield Finding(
            "note",
            "notices",
            "iPhones cannot be notified: Apple's push service requires an address of the operator",
            "set link_base of [notify] to the https address of the page, or push_contact",
        )


# --- what agents may do ---------------------------------------------------------------------


def _environment(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    variables = unusual_variables(environ)
    if variables and any(provider.inherit == "all" for provider in settings.providers.values()):
        yield Finding(
            "note",
            "environment",
            f"agents do not get {', '.join(variables)}, which tie a program to one directory or process",
            "start agentd without them, or pass them with `env.set` or `env.inherit` of a provider",
        )


def _agents(settings: Settings) -> Iterator[Finding]:
    is_remote = not is_loopback(settings.host)
    if not settings.workspace_roots:
        yield Finding(
            "warning" if is_remote else "note",
            "workspaces",
            "agents may be started in any directory",
            "restrict them with workspace_roots",
            security=True,
        )
    for root in settings.workspace_roots:
        if _resolved(root) in (Path("/"), _home()):
            yield Finding(
                "warning",
                "workspaces",
                f"{root} hardly restricts agents",
                "list the directories of projects",
                security=True,
            )
    yield from _spawn_directory(settings)
    for name, provider in settings.providers.items():
        yield from _provider(f"provider {name}", provider, is_remote=is_remote)


def _resolved(directory: str) -> Path:
    """Return a directory without links. There may be a loop of links, or no such user."""
    return Path(os.path.realpath(os.path.expanduser(directory)))  # noqa: PTH111


def _spawn_directory(settings: Settings) -> Iterator[Finding]:
    if settings.spawn_directory is None:
        return
    directory = Path(os.path.realpath(settings.spawn_directory))  # also of a loop of links
    roots = [_resolved(root) for root in settings.workspace_roots]
    if not os.path.isdir(directory):
        problem, hint = "is not a directory", f"mkdir -p {shlex.quote(str(directory))}"
    elif roots and not any(directory.is_relative_to(root) for root in roots):
        problem, hint = "is not in one of the workspace_roots", "name one in them"
    else:
        return
    yield Finding(
        "error",
        "workspaces",
        f"children that agents of other hosts spawn here cannot start: spawn_directory {directory} {problem}",
        hint,
    )


def _provider(about: str, provider: ProviderSettings, *, is_remote: bool) -> Iterator[Finding]:
    if is_remote and provider.inherit == "all" and provider.runner != "demo":
        yield Finding(
            "note",
            about,
            "its agents get agentd's whole environment, except agentd's own variables",
            'if other people send messages, list the variables that agents need: env = { inherit = ["PATH", "HOME"] }',
            security=True,
        )
    if provider.approvals == "allow":
        yield Finding(
            "warning",
            about,
            "every request of its agents is approved",
            'set approvals = "ask-human" or "ask-parent"',
            security=True,
        )
