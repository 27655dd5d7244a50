"""The disk fails: the power is cut, a write is refused, there is no room."""

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from tests.chaos.changed import changed
from tests.chaos.checker import check_store
from tests.chaos.daemon import SOURCE, NotReady, daemon
from tests.chaos.kills import Siege, accepts_again, strace
from tests.chaos.outcome import Effort, Outcome, Skipped
from tests.chaos.traffic import Traffic

from agent_orchestrator import connect
from agent_orchestrator.domain.errors import OrchestratorError

CUTS: Final = 5
"""Power cuts one file system goes through."""

_EXT4_IOC_SHUTDOWN: Final = 0x8004587D
"""_IOR('X', 125, __u32), in the kernel's fs/ext4/ext4.h."""
_NO_LOG_FLUSH: Final = 2
"""What is not on the disk by now never gets there: the power is gone."""


class Mount:
    """A file system of our own at a folder."""

    def __init__(self, place: Path, words: Sequence[str]) -> None:
        self.place = place
        self._words = words

    def mount(self) -> None:
        """Mount it.

        :raises Skipped: where that is not allowed.
        """
        self.place.mkdir(parents=True, exist_ok=True)
        _root("mount", *self._words, str(self.place))

    def unmount(self) -> None:
        """Unmount it, if it is mounted; who uses it still is given a moment to let go."""
        for _ in range(500):
            if self.place.is_mount():
                with suppress(Skipped):
                    _root("umount", str(self.place))
            elif not self._is_attached():
                return
            time.sleep(0.02)
        raise OSError(f"{self.place} cannot be unmounted")

    def _is_attached(self) -> bool:
        """Tell whether the kernel still has it: a sandbox that began meanwhile has a copy of every mount,
        and a file system that is mounted anew while one of them lasts is the old one.
        """
        if "loop" not in self._words:
            return False
        found = subprocess.run(["losetup", "-j", self._words[-1]], capture_output=True, check=False)
        return bool(found.stdout.strip())

    def cut(self) -> None:
        """Cut the power of an ext4: nothing is written any more."""
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


def _root(*argv: str) -> None:
    if os.geteuid() != 0:
        raise Skipped("only root can mount file systems")
    if shutil.which(argv[0]) is None:
        raise Skipped(f"{argv[0]} is not installed")
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Skipped(f"{argv[0]}: {ended.stderr.strip().splitlines()[-1]}")


@asynccontextmanager
async def mounted(mount: Mount) -> AsyncIterator[Mount]:
    """Have it mounted inside the scope."""
    await anyio.to_thread.run_sync(mount.mount)
    try:
        yield mount
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(mount.unmount)


def _ext4(directory: Path) -> Mount:
    directory.mkdir(parents=True, exist_ok=True)
    image = directory / "disk.img"
    with image.open("wb") as file:
        file.truncate(96 * 1024 * 1024)
    _root("mkfs.ext4", "-q", "-F", str(image))
    return Mount(directory / "disk", ["-o", "loop", str(image)])


async def power_cuts(effort: Effort, directory: Path) -> Outcome:
    """The power goes while clients send: an ext4 is shut down under the daemon, which is killed."""
    outcome = Outcome("power", effort.seed)
    tries = effort.tries(100, 3)
    epoch = 0
    while outcome.tries < tries:
        epoch += 1
        if not await _cut(effort, directory / f"{epoch}", outcome, SOURCE, min(CUTS, tries)):
            break
        shutil.rmtree(directory / f"{epoch}")
    return outcome


async def power_cuts_control(effort: Effort, directory: Path) -> Outcome:
    """The same with ``synchronous=NORMAL``, which does not sync at a commit."""
    outcome = Outcome("power-control", effort.seed, expects_loss=True)
    source = changed(
        directory / "source",
        "agent_orchestrator/stores/sqlite/connection.py",
        '("synchronous", 2)',
        '("synchronous", 1)',
    )
    # What the kernel has written by itself is not lost: a single try may be too few.
    while outcome.tries < effort.tries(10, 1) or (outcome.tries < 10 and not outcome.lost):
        place = directory / f"{outcome.tries}"
        if not await _cut(effort, place, outcome, source, 1):
            break
        shutil.rmtree(place)
    outcome.notes.append("synchronous=NORMAL")
    return outcome


async def _cut(effort: Effort, directory: Path, outcome: Outcome, source: Path, times: int) -> bool:
    """Cut the power of one file system so often; return whether the daemon always came back."""
    chance = effort.chance(outcome.name, directory.name)
    disk = await anyio.to_thread.run_sync(_ext4, directory)
    async with mounted(disk):
        with daemon(directory, db=disk.place / "data.db", source=source) as one:
            traffic = Traffic(one.url, effort, chance, outcome)
            under = Siege(one, traffic, outcome)
            async with traffic.going():
                for _ in range(times):
                    outcome.tries += 1
                    if not await under.start():
                        return False
                    if outcome.expects_loss:
                        await _accepts(traffic, outcome)  # or there is nothing to lose
                    await anyio.sleep(chance.uniform(0.1, 1))
                    # It could acknowledge more while the machine is busy: an fdatasync that the cut
                    # meets half-way may return success (Linux's jbd2 does not wait for a
                    # transaction that has just been given up). Without power nobody hears it.
                    await anyio.to_thread.run_sync(one.stand_still)
                    disk.cut()
                    await anyio.to_thread.run_sync(one.kill)
                    # Its agents go before the disk does.
                    left = await anyio.to_thread.run_sync(one.orphans)
                    if left and not outcome.expects_loss:
                        outcome.fault("orphans", f"alive: {', '.join(left[:5])}", len(left))
                    await anyio.to_thread.run_sync(disk.unmount)
                    await anyio.to_thread.run_sync(disk.mount)
                    await anyio.to_thread.run_sync(check_store, one.db, one, traffic, outcome)
                if outcome.expects_loss:
                    return True
                if await under.start():
                    # What was said while the power went, nobody heard.
                    del traffic.refusals["Internal"]
                    await under.finish()
                return not under.failed
    raise AssertionError


async def _accepts(traffic: Traffic, outcome: Outcome) -> None:
    """Wait until some messages more are acknowledged."""
    enough = outcome.acknowledged + traffic.clients
    with anyio.fail_after(60):
        while outcome.acknowledged < enough:
            await anyio.sleep(0.01)


async def write_errors(effort: Effort, directory: Path) -> Outcome:
    """Writes and syncs fail with EIO and ENOSPC: once, a few times, or from then on."""
    outcome = Outcome("errors", effort.seed)
    strace()
    tries = effort.tries(60, 2)
    for number in range(tries):
        outcome.tries += 1
        chance = effort.chance("errors", number)
        code = chance.choice(["EIO", "ENOSPC"])
        call = chance.choice(["pwrite64", "fdatasync"])
        first = chance.randint(40, 400) if call == "pwrite64" else chance.randint(10, 60)
        last = chance.choice(["", f"..{first + 3}", "+"])
        with daemon(directory / f"{number}") as one:
            traffic = Traffic(one.url, effort, chance, outcome, clients=20)
            under = Siege(one, traffic, outcome)
            async with traffic.going():
                words = strace(f"{call}:error={code}:when={first}{last}")
                try:
                    await anyio.to_thread.run_sync(one.start, words)
                    await anyio.sleep(1.5)
                    if last != "+":
                        await accepts_again(traffic, outcome, f"{code} at {call} {first}{last}")
                except NotReady as error:
                    # It may refuse to start, if it says why.
                    if "ended with 1:" not in str(error) or "Traceback" in str(error):
                        outcome.fault("broken", f"{code} at {call} {first}{last}: {error}")
                await anyio.to_thread.run_sync(one.kill)
                await under.check()
                if await under.start():
                    await under.finish()
        if under.failed:
            break
        shutil.rmtree(directory / f"{number}", ignore_errors=True)
    return outcome


async def disk_full(effort: Effort, directory: Path) -> Outcome:
    """The disk is full: new work is refused, what is there can be read; then there is room again."""
    outcome = Outcome("full", effort.seed)
    for number in range(effort.tries(10, 1)):
        outcome.tries += 1
        chance = effort.chance("full", number)
        size = chance.randint(20, 40)
        disk = Mount(
            directory / f"{number}" / "disk", ["-t", "tmpfs", "-o", f"size={size}m", "tmpfs"]
        )
        async with mounted(disk):
            with daemon(directory / f"{number}", db=disk.place / "data.db") as one:
                # Big messages, so that it does not take long.
                traffic = Traffic(one.url, effort, chance, outcome, padding=60_000)
                under = Siege(one, traffic, outcome)
                async with traffic.going():
                    if not await under.start():
                        break
                    await _fills(traffic, outcome)
                    await _readable(one.url, outcome)
                    if chance.random() < 0.5:
                        await anyio.to_thread.run_sync(one.kill)
                        await under.check()
                        # It may refuse to start without room.
                        with suppress(NotReady):
                            await anyio.to_thread.run_sync(one.start)
                    _root("mount", "-o", "remount,size=400m", str(disk.place))
                    traffic.padding = 0
                    if not one.alive and not await under.start():
                        break
                    await accepts_again(traffic, outcome, "there was room again")
                    await under.finish()
        shutil.rmtree(directory / f"{number}", ignore_errors=True)
    return outcome


async def _fills(traffic: Traffic, outcome: Outcome, seconds: float = 60) -> None:
    """Wait until nothing is accepted for a second."""
    with anyio.move_on_after(seconds) as waiting:
        while True:
            before, refused = outcome.acknowledged, traffic.refusals["Unavailable"]
            await anyio.sleep(1)
            if outcome.acknowledged == before and traffic.refusals["Unavailable"] > refused:
                return
    if waiting.cancelled_caught:
        outcome.fault("broken", f"the disk is not full after {seconds:g} s")


async def _readable(url: str, outcome: Outcome) -> None:
    async with connect(url) as client:
        try:
            with anyio.fail_after(45):
                page = await client.list_sessions(limit=1)
                await client.list_events(page.sessions[0].id)
                await client.status()
        except (OrchestratorError, NotReady, TimeoutError) as error:
            outcome.fault("broken", f"it cannot be read while full: {error!r}")
