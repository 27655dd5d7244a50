"""A program that connects its standard input and output to the orchestration tools of a run.

An agent starts it as an MCP server (:mod:`.tool_server`). It is run by its path, and imports nothing but the
standard library, so it starts in some milliseconds.
"""

import os
import socket
import sys
import threading
from contextlib import suppress
from typing import Final

KEY: Final = "AGENT_ORCHESTRATOR_TOOLS_KEY"
"""The environment variable with what the tools ask for before anything else."""

_PIECE: Final = 65_536


def main(port: int) -> None:
    """Pass on what comes from either side, until one of them is closed."""
    with socket.create_connection(("127.0.0.1", port)) as tools:
        tools.sendall(os.environ[KEY].encode() + b"\n")
        threading.Thread(target=_send, args=(tools,), daemon=True).start()
        with suppress(OSError):
            while piece := tools.recv(_PIECE):
                while piece:
                    piece = piece[os.write(1, piece) :]


def _send(tools: socket.socket) -> None:
    with suppress(OSError):
        while piece := os.read(0, _PIECE):
            tools.sendall(piece)
        tools.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main(int(sys.argv[1]))
