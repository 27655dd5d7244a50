"""Ports for servers that are told theirs, and that may be started again on it."""

import os
import socket
from itertools import count
from typing import Final

_FIRST: Final = 12_000
_EACH: Final = 2_500
"""How many ports are for each process of a run. All are below those that Linux gives to connections, and to
servers that ask for any: such a one may get the port of another that is just being started, or started again."""

_numbers = count(os.getpid() * 7)


def free_port() -> int:
    """Return a port of the loopback that nobody has, and that this process has not returned lately."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = _FIRST + process % 7 * _EACH + next(_numbers) % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
