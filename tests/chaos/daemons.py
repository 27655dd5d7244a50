"""Daemons of two hosts on one PostgreSQL database, of which one is lost again and again.

It is killed, stopped, or cut off; another one is drained at the same time; the database's server crashes; one
daemon is slow, and the clocks of all differ. Where that is possible, each has a network namespace.
"""

import importlib.util
import json
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from attrs import define, field
from tests.chaos.changed import change, changed
from tests.chaos.daemon import ORPHAN_S, Daemon, NotReady, daemon
from tests.chaos.network import CENTRE, Place, missing, places
from tests.chaos.outcome import SMALL, Effort, Outcome, Skipped
from tests.chaos.traffic import Traffic
from tests.support.cutting import Proxy, proxied
from tests.support.postgres import Server, programs, served

from agent_orchestrator import connect
from agent_orchestrator.testing import invariants

LEASE_S: Final = 2.0
"""Seconds of a lease here, instead of ten: more of them expire."""

HEARTBEAT_S: Final = LEASE_S / 4

_LATE_S: Final = 6.0
"""Seconds after which the row of a lost daemon must have an end: a transaction in which it stands still may
hold the row for five."""

_ROWS: Final = "agent_orchestrator/stores/postgres/daemons.py"

_CLOCK: Final = (
    "agent_orchestrator/engine/config.py",
    "field(default=lambda: datetime.now(UTC))",
    'field(default=lambda: datetime.now(UTC) + __import__("datetime").timedelta(seconds={}))',
)
_IDS: Final = (
    "agent_orchestrator/domain/ids.py",
    "clock_ns: Callable[[], int] = time.time_ns",
    "clock_ns: Callable[[], int] = lambda: time.time_ns() + {} * 10**9",
)
"""Where a daemon takes the time of day from, and a clock that is so many seconds off."""

_SETTLES_S: Final = 120.0

_KINDS: Final = {"lost": "lost", "doubled": "doubled", "gap": "gaps"}
"""The counts of violations. All others are counted as broken."""

_GONE_S: Final = 0.5
"""Seconds in which processes must be gone that were to be gone before: a look takes some of them."""


@define(eq=False)
class Member:
    """A daemon, and the host that it serves."""

    daemon: Daemon
    host: str
    proxy: Proxy | None = None
    """Its way to the database, if that is no direct one."""


@define
class Siege:
    """Daemons of one database, with clients that go on whatever happens to the daemons."""

    server: Server
    database: str
    members: Sequence[Member]
    traffics: Sequence[Traffic]
    outcome: Outcome
    chance: random.Random
    token: str
    """What the daemons ask clients for."""
    waits: list[float] = field(factory=list)
    """Seconds from the loss of each daemon to the end of its row."""
    losses: Counter[str] = field(factory=Counter)
    """How often a daemon was lost, by how."""

    async def run(self, tries: int) -> None:
        """Lose daemons under traffic, and check what is left."""
        for member in self.members:
            self.outcome.recoveries.append(await anyio.to_thread.run_sync(member.daemon.start))
        ways = [self._kill, self._kill, self._stop, self._cut_off, self._drain, self._crash]
        async with AsyncExitStack() as stack:
            for traffic in self.traffics:
                await stack.enter_async_context(traffic.going())
            for number in range(tries):
                self.outcome.tries += 1
                self._slow_down()
                await anyio.sleep(self.chance.uniform(0, 2))
                # Each way once, also where there are few tries.
                way = ways[number + 1] if number + 1 < len(ways) else self.chance.choice(ways)
                await way(self.chance.choice(self.members))
            for proxy in self._proxies:
                proxy.delay_s = 0.0
            for traffic in self.traffics:
                traffic.stopping = True
            for traffic in self.traffics:
                await traffic.settled(_SETTLES_S)
            await self._judge()
        for member in self.members:
            await self._end(member)

    def _slow_down(self) -> None:
        """Let one daemon be far from its database, or none."""
        for proxy in self._proxies:
            proxy.delay_s = 0.0
        if self.chance.random() < 0.5:
            self.chance.choice(self._proxies).delay_s = self.chance.uniform(0.001, 0.02)

    @property
    def _proxies(self) -> list[Proxy]:
        return [member.proxy for member in self.members if member.proxy is not None]

    async def _kill(self, member: Member) -> None:
        """Kill a daemon, wait until another one has seen that, and start it again."""
        self.losses["killed"] += 1
        one = member.daemon
        row = await self._row_of(one)
        await anyio.to_thread.run_sync(one.kill)
        await self._ended(row, HEARTBEAT_S + _LATE_S)
        await self._find_orphans(one, "a kill")
        await self._start(one)

    async def _stop(self, member: Member) -> None:
        """Stop a daemon until another one has taken over, and let it go on."""
        self.losses["stopped"] += 1
        one = member.daemon
        row = await self._row_of(one)
        await anyio.to_thread.run_sync(one.stand_still)
        lease_ends_at = time.monotonic() + LEASE_S
        try:
            await self._ended(row, LEASE_S + HEARTBEAT_S + _LATE_S)
            await self._find_orphans(one, "the lease of a stopped daemon", lease_ends_at)
            await anyio.sleep(self.chance.uniform(0, 2))
        finally:
            one.signal(signal.SIGCONT)
        await self._await_next_life(one, row)

    async def _cut_off(self, member: Member) -> None:
        """Cut a daemon off from the database until another one has taken over. It is not told."""
        place, proxy = member.daemon.place, member.proxy
        if proxy is None or (place.cable and self.chance.random() < 0.5):
            # It is cut off from its clients too.
            way, lose, restore = "unplugged", place.unplug, place.plug
        else:
            way, lose, restore = "cut off", proxy.hold, proxy.release
        self.losses[way] += 1
        row = await self._row_of(member.daemon)
        lose()
        lease_ends_at = time.monotonic() + LEASE_S
        try:
            await self._ended(row, LEASE_S + HEARTBEAT_S + _LATE_S)
            await self._find_orphans(member.daemon, "the lease of one cut off", lease_ends_at)
            await anyio.sleep(self.chance.uniform(0, 2))
            if proxy is not None and self.chance.random() < 0.5:
                proxy.cut_all()  # else what it said meanwhile arrives late
        finally:
            restore()
        await self._await_next_life(member.daemon, row)

    async def _drain(self, member: Member) -> None:
        """Drain a daemon and start it again, while another one is lost."""
        self.losses["drained"] += 1
        other = self.chance.choice([one for one in self.members if one is not member])
        lose = self.chance.choice((self._kill, self._stop))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._replace, member)
            await anyio.sleep(self.chance.uniform(0, 0.5))
            await lose(other)

    async def _crash(self, _: Member) -> None:
        """Let the database's server crash, for less or more than a lease, until all daemons go on."""
        self.losses["crashes of the server"] += 1
        await anyio.to_thread.run_sync(self.server.stop, signal.SIGQUIT)
        await anyio.sleep(self.chance.uniform(0, 2 * LEASE_S))
        await anyio.to_thread.run_sync(self.server.start)
        for member in self.members:
            await self._await_next_life(member.daemon, None)

    async def _replace(self, member: Member) -> None:
        await self._end(member)
        await self._start(member.daemon)

    async def _end(self, member: Member) -> None:
        """End a daemon in good order."""
        if (status := await anyio.to_thread.run_sync(member.daemon.stop)) != 0:
            self.outcome.fault("broken", f"it ended with {status}: {_said(member.daemon)}")

    async def _start(self, one: Daemon) -> None:
        try:
            self.outcome.recoveries.append(await anyio.to_thread.run_sync(one.start))
        except NotReady as error:
            self.outcome.fault("broken", f"it is not ready again: {error}")
            raise

    async def _find_orphans(self, one: Daemon, what: str, ended_at: float | None = None) -> None:
        """Look for what is alive of a daemon two seconds after something.

        :param ended_at: when that was at the latest, by :func:`time.monotonic`. Default: now.
        """
        seconds = ORPHAN_S
        if ended_at is not None:
            seconds = max(_GONE_S, ended_at + ORPHAN_S - time.monotonic())
        if left := await anyio.to_thread.run_sync(one.orphans, seconds):
            self.outcome.fault("orphans", f"{left} after {what}", len(left))

    async def _await_next_life(self, one: Daemon, row: str | None) -> None:
        """Wait until a daemon has begun anew, with another row."""
        with anyio.move_on_after(_LATE_S * 5) as limit:
            while await self._row_of(one) in (None, row):
                await anyio.sleep(0.05)
        if limit.cancelled_caught:
            self.outcome.fault("broken", f"it does not begin anew: {_said(one)}")

    async def _row_of(self, one: Daemon) -> str | None:
        """Return the id of a daemon's present row."""
        rows = await self._query(
            "SELECT id FROM agent_orchestrator.daemons WHERE ended_at IS NULL"
            f" AND pid = {one.pid} ORDER BY started_at DESC"
        )
        return str(rows[0][0]) if rows else None

    async def _ended(self, row: str | None, seconds: float) -> None:
        """Wait until a daemon's row has an end."""
        began = time.monotonic()
        query = f"SELECT 1 FROM agent_orchestrator.daemons WHERE id = '{row}' AND ended_at IS NULL"
        while await self._query(query):
            if time.monotonic() - began > seconds:
                self.outcome.fault("broken", f"nobody has taken over from {row} in {seconds:g} s")
                return
            await anyio.sleep(0.02)
        self.waits.append(time.monotonic() - began)

    async def _query(self, sql: str) -> list[tuple[object, ...]]:
        return await anyio.to_thread.run_sync(self.server.run, sql, self.database)

    async def _judge(self) -> None:
        """Compare what everybody was told with what is kept."""
        async with connect(self.members[0].daemon.url, token=self.token) as client:
            records = await invariants.history(client)
            report = await client.check_store()
        acks = [ack for traffic in self.traffics for ack in traffic.acks.values()]
        acknowledged = [
            invariants.Acknowledged(ack.message_id, ack.session_id, ack.run_id, ack.text)
            for ack in acks
        ]
        for one in invariants.violations(
            records, acknowledged=acknowledged, unique=[ack.text for ack in acks]
        ):
            self.outcome.fault(_KINDS.get(one.kind, "broken"), f"{one.kind}: {one.detail}")
        for finding in report.findings:
            self.outcome.fault("broken", finding)
        judge_hosts(self.members, records, self.outcome)
        for traffic in self.traffics:
            if internal := traffic.refusals["Internal"]:
                errors = "".join(_errors(member.daemon) for member in self.members)
                self.outcome.fault("broken", f"{internal} answers were an internal error: {errors}")
            for reader in traffic.subscribers:
                for session, seen in reader.seen.items():
                    numbers = [seq for seq, _ in seen]
                    if numbers != list(range(1, len(numbers) + 1)):
                        self.outcome.fault("gaps", f"{reader.name} saw of {session} {numbers[:20]}")
        for member in self.members:
            if left := member.daemon.family():
                self.outcome.fault("orphans", f"{left} are alive while no run is", len(left))


def judge_hosts(members: Collection[Member], records: invariants.History, outcome: Outcome) -> None:
    """Compare where agents have worked, as they themselves have noted, with the hosts of their sessions."""
    session_of = {run.id: run.session_id for run in records.runs}
    host_of = {session.id: session.host for session in records.sessions}
    worked: dict[str, set[str]] = {member.host: set() for member in members}
    for member in members:
        worked[member.host] |= _runs_of(member.daemon)
    for host, run_ids in worked.items():
        wrong = {run_id for run_id in run_ids if host_of.get(session_of.get(run_id, "")) != host}
        if wrong:
            outcome.fault(
                "broken", f"{host} has executed runs of another host: {wrong}", len(wrong)
            )
        if not run_ids:
            outcome.fault("broken", f"no agent has worked on {host}")
    outcome.notes.append(", ".join(f"{len(worked[host])} runs on {host}" for host in worked))


def _runs_of(one: Daemon) -> set[str]:
    """Return the ids of the runs whose agents a daemon has started, which note it themselves."""
    if not one.trace.exists():
        return set()
    lines = one.trace.read_text().splitlines()
    return {json.loads(line)["mark"].rpartition(".")[0] for line in lines}


def _errors(one: Daemon) -> str:
    """Return the last lines of a daemon's log that hold an exception."""
    lines = one.log.read_text("utf-8", "replace").splitlines()
    return "\n".join([line for line in lines if "Traceback" in line][-5:])


def _said(one: Daemon) -> str:
    """Return the end of a daemon's log, without the calls."""
    lines = one.log.read_text("utf-8", "replace").splitlines()
    return "\n".join([line for line in lines if '"agentd.access"' not in line][-20:])


async def take_overs(effort: Effort, directory: Path) -> Outcome:
    """Daemons of two hosts on one PostgreSQL database are killed, stopped, cut off and drained."""
    outcome = Outcome("daemons", effort.seed)
    if programs() is None or importlib.util.find_spec("psycopg") is None:
        raise Skipped("PostgreSQL is not installed")
    hosts = {"a": "x", "b": "x", "c": "y"}
    if effort.share >= SMALL:
        hosts["d"] = "y"
    chance = effort.chance("daemons")
    with ExitStack() as stack:
        if (reason := missing()) is None:
            where, centre = stack.enter_context(places(len(hosts))), CENTRE
        else:
            where, centre = [Place()] * len(hosts), Place().address
            outcome.notes.append(reason)
        token = secrets.token_hex(16)
        server = stack.enter_context(served(centre))
        url = server.new_database()
        members = []
        for number, ((name, host), place) in enumerate(zip(hosts.items(), where, strict=True)):
            off_s = (0, 1, -1, 0)[number] * chance.randrange(5, 7200)
            proxy = None
            # With cables, the daemons of one host reach the database directly.
            if not place.cable or host == "x":
                proxy = stack.enter_context(proxied(server.port, centre))
            one = daemon(
                directory / name,
                source=_source(directory / f"source-{name}", off_s),
                store=url.replace(f":{server.port}/", f":{proxy.port}/") if proxy else url,
                arguments=("--host-name", host),
                env={"AGENTD_AUTH_TOKEN": token},
                place=place,
            )
            members.append(Member(stack.enter_context(one), host, proxy))
        traffics = [
            Traffic(
                member.daemon.url,
                effort,
                effort.chance("daemons", number),
                outcome,
                clients=20,
                first_client=1_000 * number,
                further_urls=tuple(other.daemon.url for other in members if other is not member),
                token=token,
            )
            for number, member in enumerate(members)
        ]
        database = url.rpartition("/")[2]
        siege = Siege(server, database, members, traffics, outcome, chance, token)
        await siege.run(effort.tries(500, 6))
    outcome.notes.append(", ".join(f"{how} {count}" for how, count in siege.losses.items()))
    if siege.waits:
        outcome.notes.append(f"taken over after at most {max(siege.waits):.1f} s")
    return outcome


def _source(place: Path, off_s: int) -> Path:
    """Copy the source, with a short lease, and a clock that is so many seconds off."""
    old, new = "LEASE_S: Final = 10.0", f"LEASE_S: Final = {LEASE_S}"
    changed(place, _ROWS, old, new)
    for path, now, then in (_CLOCK, _IDS):
        change(place, path, now, then.format(off_s))
    return place
