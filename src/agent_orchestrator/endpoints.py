"""Where the daemons of one user are: each leaves a file that says so while it runs."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from agent_orchestrator.processes import is_running, process_start_id
from agent_orchestrator.user_state import (
    UserState,
    make_private_directory,
    read_private,
    write_private,
)


@frozen
class Endpoint:
    """A daemon that runs, as it says itself.

    :param process_start_id: what no other process of that pid has: see :func:`process_start_id`.
    :param directory: where it was started.
    :param database: the absolute path of its database.
    """

    url: str
    pid: int
    process_start_id: str | None
    directory: str
    database: str


def this_process(url: str, database: Path) -> Endpoint:
    """Return the endpoint of a daemon that is this process."""
    pid = os.getpid()
    return Endpoint(url, pid, process_start_id(pid), str(Path.cwd()), str(database))


def write_endpoint(state: UserState, endpoint: Endpoint) -> Path:
    """Write a daemon's endpoint file, and note its database as the last that was used.

    :return: the file.
    :raises OSError: if it cannot be written.
    """
    make_private_directory(state.daemons)
    path = state.daemons / f"{endpoint.pid}.json"
    write_private(path, _text(endpoint))
    write_private(state.last_daemon, _text(endpoint))
    return path


def remove_endpoint(state: UserState, endpoint: Endpoint) -> None:
    """Remove the endpoint file of a daemon that ends, unless it is another's by now."""
    path = state.daemons / f"{endpoint.pid}.json"
    if _read(path) == endpoint:
        with suppress(OSError):
            path.unlink()


def running_endpoints(state: UserState | None) -> list[Endpoint]:
    """Return the daemons of this user that run on this machine; remove what those that do not left.

    A process that is gone, or another of the same pid, is told by the moment it started in. What a
    machine wrote that shares the home, or this one before it was started anew, is left alone.
    """
    found = []
    for path in _files(state):
        endpoint = _read(path)
        if endpoint is None or endpoint.process_start_id is None:
            continue
        if is_running(endpoint.pid, endpoint.process_start_id):
            found.append(endpoint)
        elif _boot_id(endpoint.process_start_id) == _boot_id(process_start_id(os.getpid())):
            with suppress(OSError):
                path.unlink()
    return found


def last_endpoint(state: UserState | None) -> Endpoint | None:
    """Return the daemon that was started last, whether or not it runs."""
    return None if state is None else _read(state.last_daemon)


def endpoint_for(endpoints: list[Endpoint], directory: Path) -> Endpoint | None:
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


def _boot_id(start_id: str | None) -> str | None:
    return None if start_id is None else start_id.partition("/")[0]


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
