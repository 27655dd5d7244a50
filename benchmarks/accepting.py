"""agentd's server on a SQLite file, with an additional POST route that does nothing.

Run as ``python -m benchmarks.accepting --db PATH --ready-file PATH``.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import anyio
from quart import Response, request

from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.sqlite import SqliteStore
from agentd.app import create_app
from agentd.auth import Guard
from agentd.lifetime import Lifetime
from agentd.server import listen, serve, url_of
from benchmarks.function_agents import echo


async def run(db: str, ready_file: Path) -> None:
    """Serve until SIGTERM."""
    provider = ProviderConfig(FunctionRunner("echo", echo), "function")
    config = EngineConfig(
        providers={"echo": provider}, routing=Routing(default="echo"), host=this_host()
    )
    lifetime = Lifetime()
    with (
        listen("127.0.0.1", 0) as listener,
        anyio.open_signal_receiver(signal.SIGTERM) as signals,
    ):
        async with SqliteStore(db) as store, Orchestrator(store, config) as engine:
            app = create_app(engine, guard=Guard(), lifetime=lifetime)

            @app.post("/nothing")
            async def nothing() -> Response:
                await request.get_data()
                return Response(b"", 201)

            url = url_of(listener, "127.0.0.1")
            fresh = ready_file.with_suffix(".fresh")
            fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
            fresh.replace(ready_file)  # whole whenever it is there

            async def stopped() -> None:
                await anext(signals)
                lifetime.close()

            await serve(app, listener, stopped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", required=True)
    parser.add_argument("--ready-file", required=True, type=Path)
    options = parser.parse_args(sys.argv[1:])
    anyio.run(run, options.db, options.ready_file)
