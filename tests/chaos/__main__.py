"""Run the experiments and print a table of the results; see ``bin/chaos --help``."""

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import apsw
from tests.chaos import agents, daemons, damage, disks, engines, kills, sizes, times
from tests.chaos.daemon import ROOT
from tests.chaos.outcome import Effort, Outcome, Skipped, table

Experiment = Callable[[Effort, Path], Awaitable[Outcome]]

EXPERIMENTS: Final[Mapping[str, Experiment]] = {
    "kills": kills.at_random,
    "writes": kills.at_every_write,
    "checkpoints": kills.in_checkpoints,
    "power": disks.power_cuts,
    "power-control": disks.power_cuts_control,
    "errors": disks.write_errors,
    "full": disks.disk_full,
    "damage": damage.damaged_files,
    "pause": times.standstill,
    "clock": times.clock_jumps,
    "daemons": daemons.take_overs,
    "ready": times.ready_again,
    "sizes": sizes.sweep,
    "codex": agents.codex_restart,
    "claude": agents.claude,
    "opencode": agents.opencode,
    "model": engines.model,
    "simulation": engines.simulation,
    "mutants": engines.mutants,
}

WHOLE_MINUTES: Final = 60.0
QUICK_MINUTES: Final = 1.0

PAGE: Final = ROOT / "docs" / "reliability.md"
_TABLE: Final = re.compile(r"(?s)(<!-- experiments -->\n).*(<!-- end of experiments -->)")


def main(arguments: Sequence[str]) -> int:
    """Return 0 if all experiments passed, otherwise 1."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = options.name or list(EXPERIMENTS)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        parser.error(f"there is no {unknown[0]!r}; there are: {', '.join(EXPERIMENTS)}")
    minutes = QUICK_MINUTES if options.quick else options.minutes
    effort = Effort(options.seed, min(1.0, minutes / WHOLE_MINUTES))
    outcomes: list[Outcome] = []
    try:
        for name in names:
            outcomes.append(make(name, effort, options.dir))
    finally:
        # Also if an experiment raises, so that the results of the others are not lost.
        results = table(outcomes)
        print(results)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        for problem in outcome.problems:
            print(problem)
    if options.write:
        PAGE.write_text(with_table(PAGE.read_text(), results, effort, minutes))
    return 1 if failed else 0


def make(name: str, effort: Effort, parent: str | None = None) -> Outcome:
    """Run one experiment in a new folder."""
    _say(f"{name} ...")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=parent) as directory:
        try:
            outcome = anyio.run(EXPERIMENTS[name], effort, Path(directory).resolve())
        except Skipped as reason:
            outcome = Outcome(name, effort.seed, skipped=str(reason))
    _say(f"{name}: {outcome.verdict} after {time.monotonic() - started:.0f} s")
    for problem in outcome.problems[:20]:
        _say(f"  {problem}")
    return outcome


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/chaos",
        description="Break things around a real agentd, and check that nothing is lost, doubled or "
        "left running. Print a table of the results. Exit with 1 if an experiment failed.",
    )
    names = ", ".join(EXPERIMENTS)
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help=f"the experiments to run (default: all): {names}"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=WHOLE_MINUTES,
        help="approximate duration of all experiments; fewer minutes mean fewer tries (default: 60)",
    )
    parser.add_argument("--quick", action="store_true", help="make the fewest tries")
    parser.add_argument(
        "--seed",
        type=int,
        default=int.from_bytes(os.urandom(3)),
        help="seed of the random choices (default: random)",
    )
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.name}")
    parser.add_argument("--dir", help="the folder for databases (default: the temporary folder)")
    return parser


def with_table(page: str, results: str, effort: Effort, minutes: float) -> str:
    """Return the page with a new table of results."""
    origin = (
        f"`./bin/chaos --minutes {minutes:g} --seed {effort.seed}` on {os.cpu_count()} cores of "
        f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, "
        f"SQLite {apsw.sqlite_lib_version()}:"
    )
    text = f"{origin}\n\n{results}"
    return _TABLE.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
