"""Time goes wrong: the daemon stands still, the clock jumps; and how soon it is ready again."""

import shutil
import signal
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import psutil
from tests.chaos.daemon import NotReady, daemon
from tests.chaos.kills import Siege, accepts_again
from tests.chaos.outcome import READY_S, SMALL, Effort, Outcome, Skipped, percentile
from tests.chaos.traffic import Traffic

from agent_orchestrator.ports.changes import Draft
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_session, put

EVENTS: Final = 100_000
"""In the store of a daemon that starts."""

LEAST_EVENTS: Final = 20_000

_LIBRARY: Final = "*/faketime/libfaketimeMT.so.1"


async def standstill(effort: Effort, directory: Path) -> Outcome:
    """``SIGSTOP`` for a minute, then ``SIGCONT``; meanwhile another daemon wants the database."""
    outcome = Outcome("pause", effort.seed, tries=1)
    seconds = effort.seconds(60, 2)
    with daemon(directory / "first") as one, daemon(directory / "second", db=one.db) as other:
        traffic = Traffic(one.url, effort, effort.chance("pause"), outcome)
        under = Siege(one, traffic, outcome)
        async with traffic.going():
            await under.start()
            await anyio.sleep(1)
            one.signal(signal.SIGSTOP)
            try:
                try:
                    await anyio.to_thread.run_sync(other.start)
                    outcome.fault("broken", "two daemons on one database")
                except NotReady as error:
                    if "in use by process" not in str(error):
                        outcome.fault("broken", f"a second daemon said: {error}")
                await anyio.sleep(seconds)
            finally:
                one.signal(signal.SIGCONT)
            await anyio.sleep(1)
            await under.finish()
    outcome.notes.append(f"stopped for {seconds:g} s")
    return outcome


def _library() -> Path | None:
    return next(Path("/usr/lib").glob(_LIBRARY), None)


async def clock_jumps(effort: Effort, directory: Path) -> Outcome:
    """The time of day jumps by an hour and a day, there and back, and the daemon is killed on the way."""
    outcome = Outcome("clock", effort.seed)
    library = _library()
    if library is None:
        raise Skipped("faketime is not installed")
    file = directory / "offset"
    file.write_text("+0")
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        # Seconds after which it looks again. Without it every look at the clock reads the file.
        "FAKETIME_CACHE_DURATION": "1",
        # A jump of the time of day leaves the monotonic clock alone.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    chance = effort.chance("clock")
    with daemon(directory, env=env) as one:
        traffic = Traffic(one.url, effort, chance, outcome)
        under = Siege(one, traffic, outcome)
        async with traffic.going():
            await under.start()
            await anyio.sleep(0.5)
            offsets = ("+1h", "-1h", "+1d", "-1d", "+0") * effort.tries(8, 1)
            for offset in offsets if effort.share else offsets[2:]:
                outcome.tries += 1
                file.write_text(offset)
                await anyio.sleep(1.5)
                if chance.random() < 0.3:
                    await anyio.to_thread.run_sync(one.kill)
                    await under.check()
                    if not await under.start():
                        break
                else:
                    await accepts_again(traffic, outcome, f"the clock was set to {offset}")
            await under.finish()
    return outcome


async def ready_again(effort: Effort, directory: Path) -> Outcome:
    """Killed under clients with 100,000 events in the store: how long until it answers."""
    outcome = Outcome("ready", effort.seed)
    with daemon(directory) as one:
        events = EVENTS if effort.share >= SMALL else LEAST_EVENTS
        await _fill(one.db, events)
        traffic = Traffic(one.url, effort, effort.chance("ready"), outcome, clients=10)
        under = Siege(one, traffic, outcome)
        spent = []
        async with traffic.going(subscribed=False):
            for _ in range(effort.tries(40, 3)):
                outcome.tries += 1
                if not await under.start():
                    break
                spent.append(_processor_s(one.pid))
                await anyio.sleep(0.3)
                await anyio.to_thread.run_sync(one.kill)
                await anyio.to_thread.run_sync(one.orphans)
            if await under.start():
                await traffic.settled()
                await anyio.to_thread.run_sync(one.stop)
                await under.check()
        shutil.rmtree(one.directory, ignore_errors=True)
    worst = percentile(outcome.recoveries, 0.95)
    outcome.notes.append(f"{events:,} events, 95th percentile {worst:.2f} s")
    if outcome.tries >= 20 and worst > READY_S:
        outcome.fault("broken", f"ready after {worst:.2f} s at the 95th percentile")
    # The seconds of a few starts tell more of what else the machine does; what they have it do is compared.
    with daemon(directory / "empty") as other:
        other.start()
        least = _processor_s(other.pid)
    if min(spent, default=0.0) > 2 * least:
        told = f"{min(spent):.2f} s of processor time, and {least:.2f} s without an event"
        outcome.fault("broken", f"ready after {told}")
    return outcome


def _processor_s(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:2])


async def _fill(db: Path, events: int) -> None:
    """Put so many events into a database."""
    text = "a line of what an agent said, of about the length that agents' lines have " * 3
    batch = [Draft("agent.message", {"text": f"{n} {text}"}) for n in range(1000)]
    async with SqliteStore(db) as store:
        sessions = [a_session() for _ in range(20)]
        await put(store, *sessions)
        for number in range(events // len(batch)):
            session_id = sessions[number % len(sessions)].id
            await store.transact(lambda tx, i=session_id: tx.append(i, batch, NOW))
