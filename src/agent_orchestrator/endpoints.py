"""Endpoint files: each running daemon of a user writes its address to one."""

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
    """The endpoint file of a daemon.

    :param process_start_id: see :func:`agent_orchestrator.processes.process_start_id`.
    :param directory: the directory in which it was started.
    :param database: the absolute path of its database, or its URL without secrets.
    """

    url: str
    pid: int
    process_start_id: str | None
    directory: str
    database: str


def this_process(url: str, database: str | Path) -> Endpoint:
    """Return the endpoint of this process."""
    pid = os.getpid()
    return Endpoint(url, pid, process_start_id(pid), str(Path.cwd()), str(database))


def write_endpoint(state: UserState, endpoint: Endpoint) -> Path:
    """Write a daemon's endpoint file, and record it as the daemon that was started last.

    :return: the path of the file.
    :raises OSError: if it cannot be written.
    """
    make_private_directory(state.daemons)
    path = state.daemons / f"{endpoint.pid}.json"
    write_private(path, _text(endpoint))
    write_private(state.last_daemon, _text(endpoint))
    return path


def remove_endpoint(state: UserState, endpoint: Endpoint) -> None:
    """Remove a daemon's endpoint file, unless it now belongs to another daemon with the same pid."""
    path = state.daemons / f"{endpoint.pid}.json"
    if _read(path) == endpoint:
        with suppress(OSError):
            path.unlink()


def running_endpoints(state: UserState | None) -> list[Endpoint]:
    """Return the running daemons of this user on this machine, and remove files of those that ended.

    The process start id shows whether a pid still belongs to the daemon. Files of another boot stay:
    they may be of another machine with the same home directory.
    """
    endpoints = []
    for path in _files(state):
        endpoint = _read(path)
        if endpoint is None or endpoint.process_start_id is None:
            continue
        if is_running(endpoint.pid, endpoint.process_start_id):
            endpoints.append(endpoint)
        elif _boot_id(endpoint.process_start_id) == _boot_id(process_start_id(os.getpid())):
            with suppress(OSError):
                path.unlink()
    return endpoints


def last_endpoint(state: UserState | None) -> Endpoint | None:
    """Return the daemon that was started last, whether it still runs or not."""
    return None if state is None else _read(state.last_daemon)


def endpoint_for(endpoints: list[Endpoint], directory: Path) -> Endpoint | None:
    """Return the daemon for a working directory: the only daemon, or the one of this directory.

    Of several daemons, choose the one whose directory is the closest ancestor. Return None if there is
    none, or more than one.
    """
    if len(endpoints) == 1:
        return endpoints[0]
    enclosing = [endpoint for endpoint in endpoints if directory.is_relative_to(endpoint.directory)]
    if not enclosing:
        return None
    closest = max(len(Path(endpoint.directory).parts) for endpoint in enclosing)
    [first, *others] = [
        endpoint for endpoint in enclosing if len(Path(endpoint.directory).parts) == closest
    ]
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
        values: Any = json.loads(content)
        endpoint = Endpoint(**{name: values[name] for name in Endpoint.__annotations__})
    except (ValueError, LookupError, TypeError):
        return None
    texts = (endpoint.url, endpoint.directory, endpoint.database)
    if type(endpoint.pid) is not int or not all(isinstance(text, str) for text in texts):
        return None
    return endpoint
