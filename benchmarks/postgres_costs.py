"""Measure what the store on PostgreSQL costs: at a distance from its server, while idle, and with a long queue."""

import contextlib
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import psutil

from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.testing.stores.samples import a_run, a_session
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import PROGRAMS, server

ROUND_TRIP_S: Final = 0.0005
PER_SESSION: Final = 100
CLAIMED: Final = 4
HOST: Final = "here"
IDLE_S: Final = 20.0

Accept = Callable[[str, int], Awaitable[float]]
"""Queues runs of some callers in a database, so many of each, and returns the seconds."""


def measure(
    effort: Effort, directory: Path, postgres: Any, accept: Accept, callers: int
) -> list[Figure]:
    """Return the figures.

    :param postgres: the running server.
    """
    return [
        _distance(effort, postgres, accept, callers),
        _claim(effort, postgres),
        *_idle(effort, directory, postgres),
    ]


def _distance(effort: Effort, postgres: Any, accept: Accept, callers: int) -> Figure:
    each = effort.of(full=40, quick=20, smoke=2)
    times = effort.of(full=3, quick=3, smoke=1)
    with _delaying(postgres.port, ROUND_TRIP_S) as port:
        round_trip = _round_trip(postgres.url("postgres", port=port))

        def rate() -> float:
            url = postgres.new_database()
            far = url.replace(f":{postgres.port}/", f":{port}/")
            return each * callers / anyio.run(partial(accept, far, each))

        rates = [rate() for _ in range(times + 1)][1:]
    return Figure(
        name="PostgreSQL at 0.5 ms a round trip: accepts by the embedded client",
        value=statistics.median(rates),
        bound=600,
        limit="at least",
        unit="/s",
        places=0,
        detail=f"{callers} callers, {1000 * round_trip:.2f} ms measured",
    )


def _round_trip(url: str) -> float:
    import psycopg

    taken = []
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(100):
            started = time.perf_counter()
            connection.execute("SELECT 1")
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


@contextlib.contextmanager
def _delaying(port: int, round_trip_s: float) -> Iterator[int]:
    """Yield the port of a proxy before a server that delays what passes by half of the time each way."""
    context = multiprocessing.get_context("spawn")
    listener = socket.create_server(("127.0.0.1", 0))
    process = context.Process(target=_run_proxy, args=(listener, port, round_trip_s / 2))
    process.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        process.terminate()
        process.join()


def _run_proxy(listener: socket.socket, port: int, delay_s: float) -> None:
    """Serve until terminated. In threads: an event loop's timers are too coarse for half a millisecond."""
    while True:
        near = listener.accept()[0]
        far = socket.create_connection(("127.0.0.1", port))
        for ends in ((near, far), (far, near)):
            for end in ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pipe, args=(*ends, delay_s), daemon=True).start()


def _pipe(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**18):
            time.sleep(delay_s)
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _claim(effort: Effort, postgres: Any) -> Figure:
    queued = effort.of(full=100_000, quick=100_000, smoke=500)
    times = effort.of(full=200, quick=60, smoke=3)
    taken = anyio.run(partial(_claims, postgres.new_database(), queued, times))
    return Figure(
        name=f"PostgreSQL: finding the next runs of {queued:,} queued ones, in a commit",
        value=1000 * statistics.median(taken),
        bound=2,
        unit="ms",
        detail=f"median, {CLAIMED} runs",
    )


async def _claims(url: str, queued: int, times: int) -> list[float]:
    from agent_orchestrator.stores.postgres import PostgresStore

    async with PostgresStore(url) as store:
        for _ in range(queued // PER_SESSION):
            session = a_session(host=HOST)

            def fill(tx: Transaction, session: Any = session) -> None:
                tx.add_session(session)
                for _ in range(PER_SESSION):
                    tx.add_run(a_run(session.id))

            await store.transact(fill)

        def claim(tx: Transaction) -> tuple[float, int]:
            started = time.perf_counter()
            # As a worker pool asks, see WorkerPool._next_runs.
            found = tx.next_runs(
                CLAIMED,
                providers=("demo", "echo"),
                daemon_id=store.lease.daemon_id,
                host=HOST,
            )
            return time.perf_counter() - started, len(found)

        taken = [await store.transact(claim) for _ in range(times + 1)][1:]
    check({count for _, count in taken} == {CLAIMED}, "not as many runs were found")
    return [seconds for seconds, _ in taken]


def _idle(effort: Effort, directory: Path, postgres: Any) -> list[Figure]:
    window_s = effort.of(full=IDLE_S, quick=IDLE_S, smoke=5.0)  # its lease is extended every 2.5 s
    settle_s = effort.of(full=6.0, quick=6.0, smoke=0.0)
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    postgres.run(f"ALTER DATABASE {name} SET log_statement = 'all'")
    directory.mkdir(parents=True, exist_ok=True)
    argv = [str(PROGRAMS / "agentd"), "--port", "0", "--store", url]
    log = postgres.folder / "log"
    with server(directory, argv=argv) as daemon:
        process = psutil.Process(daemon.pid)
        time.sleep(settle_s)  # what it does at its start is no part of the figure
        size, before = log.stat().st_size, _cpu(process)
        time.sleep(window_s)
        used = sum(seconds - before.get(task, 0.0) for task, seconds in _cpu(process).items())
        with log.open("rb") as file:
            file.seek(size)
            lines = file.read().splitlines()
    statements = sum(b"LOG:  statement: " in line or b"LOG:  execute " in line for line in lines)
    return [
        Figure(
            name="PostgreSQL: statements of an idle agentd",
            value=statements / window_s,
            bound=2,
            unit="/s",
            detail=f"in {window_s:g} s",
        ),
        Figure(
            name="PostgreSQL: processor time of an idle agentd",
            value=100 * used / window_s,
            bound=0.5,
            unit="%",
            detail=f"of one core, in {window_s:g} s",
        ),
    ]


def _cpu(process: psutil.Process) -> dict[Path, float]:
    """Return the seconds of processor time of each thread of a process and its children, in nanoseconds' resolution."""
    found: dict[Path, float] = {}
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(OSError):  # it has ended
            for task in [*Path(f"/proc/{one.pid}/task").iterdir()]:
                with contextlib.suppress(OSError):
                    found[task] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found
