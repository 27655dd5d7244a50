"""The daemon's files: those that agents are denied, the endpoint file, and the known databases."""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from agent_orchestrator import endpoints
from agent_orchestrator.known_databases import is_known, remember
from agent_orchestrator.protection import Protection
from agent_orchestrator.trusted_files import forget
from agent_orchestrator.user_state import user_state
from agentd.logs import rotated_path
from agentd.settings import DEFAULT_FILE, Settings

_log = logging.getLogger("agentd")


def protection(settings: Settings) -> Protection:
    """Return the files that agents are denied: configuration, database, log and keys."""
    # An agent may create a missing one of these. So none is trusted merely because it exists.
    read_only = [Path(DEFAULT_FILE), *_log_files()]
    optional = {path.absolute() for path in read_only}
    secret: list[Path] = []
    if settings.file is not None:
        (secret if _holds_secrets(settings) else read_only).append(Path(settings.file))
        if not settings.finds_file:
            optional.discard(Path(settings.file).absolute())
    if settings.tls_cert is not None:
        read_only.append(Path(settings.tls_cert))
    if settings.tls_key is not None:
        secret.append(Path(settings.tls_key))
    return Protection(
        settings.database,
        tuple(path.absolute() for path in read_only),
        tuple(path.absolute() for path in secret),
        frozenset(optional),
    )


_SECRET: Final = ("auth_tokens", "store", "store_listen")
"""The settings with secrets."""


def _holds_secrets(settings: Settings) -> bool:
    """Return whether the configuration file holds a token, a password, values for agents' environments, or
    secrets of notices.
    """
    holds = [settings.sources.get(name, "").startswith(f"{settings.file}:") for name in _SECRET]
    return (
        any(holds)
        or any(provider.set for provider in settings.providers.values())
        or bool(settings.notify.secrets())
    )


def _log_files() -> Iterator[Path]:
    """Yield the log file of stderr and its previous part; nothing if stderr is not a file."""
    try:
        if stat.S_ISREG(os.fstat(2).st_mode):
            path = Path("/proc/self/fd/2").readlink()
            yield from (path, rotated_path(path))
    except OSError:
        pass  # closed, or not on Linux


def forget_missing_configuration() -> None:
    """Forget that the user trusted the default configuration file, if it is missing.

    Otherwise a running agent could restore a version that the user trusted before and removed.
    """
    path, state = Path(DEFAULT_FILE), user_state()
    if state is None or os.path.lexists(path):
        return
    try:
        forget(state, path)
    except OSError as error:
        _log.warning("the trust in a removed %s cannot be ended: %s", path, error.strerror)


@contextmanager
def announced(url: str, settings: Settings) -> Iterator[None]:
    """Keep an endpoint file for agentctl of this user while the scope is open."""
    state = user_state()
    if state is None:
        _log.info(
            "no directory for an endpoint file: agentctl can find this daemon only by its address"
        )
        yield
        return
    endpoint = endpoints.this_process(url, settings.location)
    try:
        endpoints.write_endpoint(state, endpoint)
    except OSError as error:
        _log.warning("the endpoint file cannot be written: %s", error)
    try:
        yield
    finally:
        endpoints.remove_endpoint(state, endpoint)


def database_check(settings: Settings) -> Callable[[tuple[str, ...]], bool] | None:
    """Return a function that checks by a database's names whether the user has used it before.

    None if the settings name the database: that needs no check.
    """
    return partial(is_known, user_state()) if settings.finds_database else None


def remember_database(settings: Settings, name: str) -> None:
    """Record that the user has used the database with this name."""
    state, path = user_state(), Path(settings.db).absolute()
    if state is None and not settings.finds_database:
        return
    try:
        if state is None:
            raise FileNotFoundError(2, "there is no state directory")
        remember(state, name, path)
    except OSError as error:
        _log.warning(
            "your use of %s cannot be recorded (%s): start agentd with --db the next time",
            path,
            error.strerror,
        )
