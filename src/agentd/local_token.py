"""The token that agentd writes to a private file, for agentctl of the same user on this machine."""

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
    """Create a token and write it to its file; remove the file when the scope ends.

    Each start creates a new token. After a crash, another program may listen on the port, and
    agentctl sends it the old token, which is useless.

    :param state: the directory of the file; None if the user has none.
    :param port: the port that the daemon listens on.
    :param is_wanted: False creates no token, and removes an old file.
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
