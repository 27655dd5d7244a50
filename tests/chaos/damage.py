"""The files of a database are damaged: whatever was lost must be said at the next start."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from tests.chaos.checker import check_store
from tests.chaos.daemon import NotReady, daemon
from tests.chaos.kills import Siege
from tests.chaos.outcome import Effort, Outcome
from tests.chaos.traffic import Traffic

PAGE: Final = 4096

Harm = Callable[[bytearray, random.Random], None]


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _cut_off(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _zero(data: bytearray, chance: random.Random) -> None:
    start = PAGE * chance.randrange(max(1, len(data) // PAGE))
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))


def _garbage(data: bytearray, chance: random.Random) -> None:
    start = PAGE * chance.randrange(max(1, len(data) // PAGE))
    data[start : start + PAGE] = chance.randbytes(len(data[start : start + PAGE]))


def _gone(data: bytearray, chance: random.Random) -> None:
    del data[:]


def _nothing(data: bytearray, chance: random.Random) -> None:
    """Leave it as it is: what is sound must not be refused."""


HARMS: Final[tuple[tuple[str, str, Harm], ...]] = (
    ("-wal", "a bit flipped", _flip),
    ("-wal", "cut off", _cut_off),
    ("-wal", "a page of zeros", _zero),
    ("-wal", "gone", _gone),
    ("", "cut off", _cut_off),
    ("", "a page of zeros", _zero),
    ("", "a page of garbage", _garbage),
    ("", "not harmed", _nothing),
)


async def damaged_files(effort: Effort, directory: Path) -> Outcome:
    """Damage the log or the database of a killed daemon, and start it again."""
    outcome = Outcome("damage", effort.seed)
    tries = effort.tries(160, len(HARMS))
    refused = 0
    for number in range(tries):
        suffix, what, harm = HARMS[number % len(HARMS)]
        chance = effort.chance("damage", number)
        if number % (4 * len(HARMS)) == 0:
            made = directory / f"made-{number}"
            traffic = await _made(effort, made, outcome)
        outcome.tries += 1
        place = directory / f"{number}"
        shutil.copytree(made / "daemon", place / "daemon")
        with daemon(place) as one:
            file = one.db.with_name(one.db.name + suffix)
            data = bytearray(file.read_bytes())
            harm(data, chance)
            file.write_bytes(data)
            try:
                await anyio.to_thread.run_sync(one.start)
            except NotReady as error:
                said = str(error)
                if harm is _nothing:
                    outcome.fault("broken", f"sound, and refused: {said[-600:]}")
                    continue
                refused += 1
                if "Traceback" in said or "ended with 1:" not in said:
                    outcome.fault("broken", f"{what}{suffix}: refused, but not well: {said[-600:]}")
                continue
            await anyio.to_thread.run_sync(one.stop)
            traffic.outcome = outcome
            before = len(outcome.problems)
            await anyio.to_thread.run_sync(check_store, one.db, one, traffic, outcome)
            if len(outcome.problems) > before:
                outcome.problems.append(f"  (that was {what} in {file.name}, not noticed)")
        shutil.rmtree(place, ignore_errors=True)
    outcome.notes.append(f"{refused} were refused at the start, the others had lost nothing")
    return outcome


async def _made(effort: Effort, place: Path, outcome: Outcome) -> Traffic:
    """Make a database that holds something both in its log and in itself, and kill its daemon."""
    with daemon(place) as one:
        traffic = Traffic(
            one.url, effort, effort.chance("damage", place.name), outcome, padding=200
        )
        under = Siege(one, traffic, outcome)
        await under.start()
        async with traffic.going(subscribed=False):
            await anyio.sleep(1.5)
            await traffic.settled()
        # Stopped and started: the log has gone into the database, and a new one begins.
        await anyio.to_thread.run_sync(one.stop)
        await under.start()
        async with traffic.going(subscribed=False):
            await anyio.sleep(0.7)
            await traffic.settled()
        # The count of commits that tells of a loss is on the disk a second later.
        await anyio.sleep(1.5)
        await anyio.to_thread.run_sync(one.kill)
        one.orphans(0)
    return traffic
