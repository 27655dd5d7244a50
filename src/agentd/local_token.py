"""The token that agentd leaves in a file of its user, so that agentctl on this machine finds one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent_orchestrator.domain.tokens import LOCAL_TOKEN_PREFIX, new_token
from agent_orchestrator.user_state import (
    UserState,
    make_private_directory,
    read_private,
    write_private,
)

_log = logging.getLogger("agentd")


@contextmanager
def local_token(state: UserState | None, port: int, *, is_wanted: bool) -> Iterator[str | None]:
    """Make a token that lasts as long as the scope, and keep it in its file meanwhile.

    The token is new at each start: after a crash, whoever then listens on the port is sent one that
    is good for nothing.

    :param state: where the file is; None where this user has no place for one.
    :param port: the port that the daemon listens on.
    :param is_wanted: False leaves no file at all, not even an old one.
    :return: the token; None if there is none.
    """
    if state is None:
        yield None
        return
    path = state.token_file(port)
    token = new_token(LOCAL_TOKEN_PREFIX)
    try:
        if is_wanted:
            make_private_directory(path.parent)
            write_private(path, token.encode())
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be written: %s", path, error.strerror)
        is_wanted = False
    try:
        yield token if is_wanted else None
    finally:
        _remove(path, token)


def _remove(path: Path, token: str) -> None:
    if read_private(path) == token.encode():
        with suppress(OSError):
            path.unlink()
