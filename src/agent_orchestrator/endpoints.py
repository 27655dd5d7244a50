"""Where the daemons of one user are: each leaves a file that says so while it runs."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from agent_orchestrator.processes import birth_of, is_running
from agent_orchestrator.user_state import (
    UserState,
    make_private_directory,
    read_private,
    write_private,
)


@frozen
class Endpoint:
    """A daemon that runs, as it says itself.

    :param pid_birth: what no other process of that pid has: see :func:`birth_of`.
    :param directory: where it was started.
    :param database: the absolute path of its database.
    """

    url: str
    pid: int
    pid_birth: str | None
    directory: str
    database: str


def this_process(url: str, database: Path) -> Endpoint:
    """Return the endpoint of a daemon that is this process."""
    pid = os.getpid()
    return Endpoint(url, pid, birth_of(pid), str(Path.cwd()), str(database))


def write(state: UserState, endpoint: Endpoint) -> Path:
    """Write a daemon's endpoint file, and note its database as the last that was used.

    :return: the file.
    :raises OSError: if it cannot be written.
    """
    make_private_directory(state.daemons)
    path = state.daemons / f"{endpoint.pid}.json"
    write_private(path, _text(endpoint))
    write_private(state.last_daemon, _text(endpoint))
    return path


def remove(state: UserState, endpoint: Endpoint) -> None:
    """Remove the endpoint file of a daemon that ends, unless it is another's by now."""
    path = state.daemons / f"{endpoint.pid}.json"
    if _read(path) == endpoint:
        with suppress(OSError):
            path.unlink()


def running(state: UserState | None) -> list[Endpoint]:
    """Return the daemons of this user that run on this machine; remove what those that do not left.

    A process that is gone, or another of the same pid, is told by the moment it started in. What a
    machine wrote that shares the home, or this one before it was started anew, is left alone.
    """
    found = []
    for path in _files(state):
        endpoint = _read(path)
        if endpoint is None or endpoint.pid_birth is None:
            continue
        if is_running(endpoint.pid, endpoint.pid_birth):
            found.append(endpoint)
        elif _boot(endpoint.pid_birth) == _boot(birth_of(os.getpid())):
            with suppress(OSError):
                path.unlink()
    return found


def last(state: UserState | None) -> Endpoint | None:
    """Return the daemon that was started last, whether or not it runs."""
    return None if state is None else _read(state.last_daemon)


def nearest(endpoints: list[Endpoint], directory: Path) -> Endpoint | None:
    """Return the daemon that somebody in a directory means: the only one, or that of the directory.

    Of several it is the one whose directory holds this one most closely; None where none does, or
    several do as closely.
    """
    if len(endpoints) == 1:
        return endpoints[0]
    around = [one for one in endpoints if directory.is_relative_to(one.directory)]
    if not around:
        return None
    closest = max(len(Path(one.directory).parts) for one in around)
    [first, *others] = [one for one in around if len(Path(one.directory).parts) == closest]
    return None if others else first


def _files(state: UserState | None) -> Iterator[Path]:
    if state is not None:
        with suppress(OSError):
            yield from sorted(state.daemons.glob("*.json"))


def _boot(birth: str | None) -> str | None:
    return None if birth is None else birth.partition("/")[0]


def _text(endpoint: Endpoint) -> bytes:
    return json.dumps(asdict(endpoint)).encode() + b"\n"


def _read(path: Path) -> Endpoint | None:
    content = read_private(path)
    if content is None:
        return None
    try:
        told: Any = json.loads(content)
        found = Endpoint(**{name: told[name] for name in Endpoint.__annotations__})
    except (ValueError, LookupError, TypeError):
        return None
    texts = (found.url, found.directory, found.database)
    if type(found.pid) is not int or not all(isinstance(text, str) for text in texts):
        return None
    return found
