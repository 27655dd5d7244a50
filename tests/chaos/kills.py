"""The daemon is killed: at any moment, and at every write it makes to the disk."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from attrs import define, field
from tests.chaos.checker import check_killed, check_subscribers
from tests.chaos.daemon import CONFIG, Daemon, NotReady, daemon
from tests.chaos.outcome import Effort, Outcome, Skipped
from tests.chaos.real_agents import IDLE_S, check_conversations, installed
from tests.chaos.traffic import Traffic

from agent_orchestrator import connect
from agent_orchestrator.testing import invariants

EPOCH: Final = 10
"""Kills one database goes through: enough to recover from recoveries, few enough to check each."""

_SETTLES_S: Final = 240.0
"""Seconds in which all runs must end after the last kill. Those of real agents start again."""

CALLS: Final = "pwrite64,fdatasync"
"""The system calls SQLite makes a commit of."""


def strace(*injections: str, calls: str = CALLS, path: str | None = None) -> list[str]:
    """Return the words that start a program whose system calls fail, or kill it.

    :param path: only those on this file count.
    :raises Skipped: where there is no strace.
    """
    if shutil.which("strace") is None:
        raise Skipped("strace is not installed")
    # Not --seccomp-bpf, which is faster and injects nothing (strace 6.1).
    words = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null"]
    words += ["-e", f"trace={calls}", "-e", "signal=none"]
    words += ["-P", path] if path is not None else []
    return [*words, *(word for one in injections for word in ("-e", f"inject={one}"))]


@define
class Siege:
    """One database, one port, clients that go on whatever happens to the daemon."""

    one: Daemon
    traffic: Traffic
    outcome: Outcome
    kept_s: float = 0
    """Seconds after the last run in which processes of agents may be alive."""
    failed: bool = field(default=False)

    async def start(self, tracer: Sequence[str] = ()) -> bool:
        """Start the daemon; tell whether it became ready."""
        try:
            self.outcome.recoveries.append(await anyio.to_thread.run_sync(self.one.start, tracer))
        except NotReady as error:
            self.failed = True
            self.outcome.fault("broken", f"it is not ready again: {error}")
            return False
        return True

    async def check(self) -> None:
        """Check the daemon, which is dead."""
        await anyio.to_thread.run_sync(check_killed, self.one, self.traffic, self.outcome)

    async def finish(self) -> None:
        """Let it come to rest, stop it, and compare what everybody saw with what is kept."""
        if self.failed:
            return
        if internal := self.traffic.refusals["Internal"]:
            self.outcome.fault("broken", f"{internal} answers were an internal error")
        await self.traffic.settled()
        await self._judge()
        with anyio.move_on_after(self.kept_s):
            while self.one.family():
                await anyio.sleep(0.1)
        if left := self.one.family():
            self.outcome.fault("orphans", f"{left} are alive while no run is", len(left))
        status = await anyio.to_thread.run_sync(self.one.stop)
        if status != 0:
            self.outcome.fault("broken", f"it stopped with {status}: {self.one.said()}")
        await self.check()
        await anyio.to_thread.run_sync(
            check_subscribers, self.one.db, self.one, self.traffic, self.outcome
        )

    async def _judge(self) -> None:
        kinds = {"lost": "lost", "doubled": "doubled", "gap": "gaps"}
        async with connect(self.one.url) as client:
            told = await invariants.history(client)
        acks = [
            invariants.Acknowledged(ack.message_id, ack.session_id, ack.run_id, ack.text)
            for ack in self.traffic.acks.values()
        ]
        texts = [ack.text for ack in self.traffic.acks.values()]
        for one in invariants.violations(told, acknowledged=acks, unique=texts):
            self.outcome.fault(kinds.get(one.kind, "broken"), f"{one.kind}: {one.detail}")


async def at_random(effort: Effort, directory: Path) -> Outcome:
    """``kill -9`` at random moments, also while it starts, under 50 clients and five subscribers.

    Some of the clients talk to the real agents that are installed.
    """
    outcome = Outcome("kills", effort.seed)
    tries = effort.tries(200, 4)
    chance = effort.chance("kills")
    epoch = 0
    while outcome.tries < tries:
        epoch += 1
        place = directory / f"{epoch}"
        with (
            installed(place, outcome) as (config, real),
            daemon(place, config=CONFIG + config) as one,
        ):
            traffic = Traffic(one.url, effort, effort.chance("kills", epoch), outcome)
            traffic.agents = tuple(scripted.agent.name for scripted in real)
            under = Siege(one, traffic, outcome, kept_s=2 * IDLE_S)
            async with traffic.going():
                for _ in range(min(EPOCH, tries - outcome.tries)):
                    outcome.tries += 1
                    if chance.random() < 0.15:
                        # While it recovers from the kill before.
                        one.launch()
                        await anyio.sleep(chance.uniform(0.05, 0.5))
                    else:
                        if not await under.start():
                            break
                        # A real agent needs some seconds to get anywhere.
                        await anyio.sleep(chance.uniform(0, 0.8 if chance.random() < 0.8 else 6))
                    await anyio.to_thread.run_sync(one.kill)
                    await under.check()
                if not under.failed and await under.start():
                    await traffic.settled(_SETTLES_S)
                    async with connect(one.url) as client:
                        await check_conversations(client, real, traffic, outcome)
                    await under.finish()
        if under.failed:
            break
        shutil.rmtree(directory / f"{epoch}", ignore_errors=True)
    return outcome


async def at_every_write(effort: Effort, directory: Path) -> Outcome:
    """``kill -9`` at the k-th write or sync of each process, for every k up to 400, in any order."""
    outcome = Outcome("writes", effort.seed)
    full = 400
    tries = effort.tries(full, 3)
    chance = effort.chance("writes")
    # Every k of the whole; of less, as many spread over all of them.
    points = [1 + (number * full) // tries for number in range(tries)]
    chance.shuffle(points)
    moments = []
    for point in points:
        call = chance.choice(["pwrite64", "pwrite64", "fdatasync"])
        # One call in four is a sync.
        when = point if call == "pwrite64" else max(1, point // 4)
        moments.append(strace(f"{call}:signal=KILL:when={when}"))
    await _at(moments, effort, directory, outcome)
    return outcome


async def in_checkpoints(effort: Effort, directory: Path) -> Outcome:
    """``kill -9`` at the k-th write to the database itself, while its log is emptied into it."""
    outcome = Outcome("checkpoints", effort.seed)
    tries = effort.tries(60, 2)
    chance = effort.chance("checkpoints")
    # The first few are of the start; a checkpoint has some hundreds.
    moments = [
        strace(f"pwrite64:signal=KILL:when={chance.randint(4, 300)}", path="{db}")
        for _ in range(tries)
    ]
    await _at(moments, effort, directory, outcome, padding=60_000)
    return outcome


async def _at(
    moments: Sequence[list[str]],
    effort: Effort,
    directory: Path,
    outcome: Outcome,
    padding: int = 0,
) -> None:
    """Have a daemon killed at each of the moments in turn, some of them on one database."""
    missed = 0
    for epoch in range(0, len(moments), EPOCH):
        with daemon(directory / f"{epoch}") as one:
            chance = effort.chance(outcome.name, epoch)
            traffic = Traffic(one.url, effort, chance, outcome, clients=20, padding=padding)
            under = Siege(one, traffic, outcome)
            async with traffic.going():
                for words in moments[epoch : epoch + EPOCH]:
                    outcome.tries += 1
                    one.launch([word.replace("{db}", str(one.db)) for word in words])
                    with anyio.move_on_after(20) as waiting:
                        while one.alive:
                            await anyio.sleep(0.01)
                    missed += waiting.cancelled_caught
                    await anyio.to_thread.run_sync(one.kill)
                    await under.check()
                if await under.start():
                    await under.finish()
        if under.failed:
            break
        shutil.rmtree(directory / f"{epoch}", ignore_errors=True)
    if missed:
        outcome.notes.append(f"{missed} moments did not come within 20 s: killed then")


async def accepts_again(traffic: Traffic, outcome: Outcome, what: str, seconds: float = 10) -> None:
    """Expect that messages are accepted again, and note how long that took."""
    before, started = outcome.acknowledged, time.perf_counter()
    with anyio.move_on_after(seconds):
        while outcome.acknowledged == before:
            await anyio.sleep(0.01)
        outcome.recoveries.append(time.perf_counter() - started)
        return
    outcome.fault("broken", f"accepts nothing {seconds:g} s after {what}")
