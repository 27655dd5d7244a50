"""Measure and print the table; see ``bin/bench --help``."""

import argparse
import os
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import apsw

from benchmarks import (
    accepts,
    agents,
    appends,
    appserver,
    codex,
    commands,
    idle,
    parked,
    postgres,
    queued,
    readers,
    requests,
    scale,
    searches,
    supervisors,
    tools,
    turns,
)
from benchmarks.figures import Effort, Figure, table
from benchmarks.processes import ROOT

BENCHMARKS: Final = {
    "codex": codex.measure,
    "appserver": appserver.measure,
    "agents": agents.measure,
    "tools": tools.measure,
    "turns": turns.measure,
    "queued": queued.measure,
    "readers": readers.measure,
    "requests": requests.measure,
    "accepts": accepts.measure,
    "searches": searches.measure,
    "appends": appends.measure,
    "postgres": postgres.measure,
    "supervisors": supervisors.measure,
    "parked": parked.measure,
    "idle": idle.measure,
    "commands": commands.measure,
    **scale.PARTS,
}
SCALE: Final = ("readers", "queued", *scale.PARTS)
"""The parts of the group ``scale``."""

PAGE: Final = ROOT / "docs" / "benchmarks.md"
_PLACE: Final = re.compile(r"(?s)(<!-- figures -->\n).*(<!-- end of figures -->)")


def main(arguments: Sequence[str]) -> int:
    """Return 1 if a bound is missed, else 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = options.name or [name for name in BENCHMARKS if name not in scale.PARTS]
    names = [part for name in chosen for part in (SCALE if name == "scale" else (name,))]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(
            f"unknown benchmark {unknown[0]!r}; choose from: scale, {', '.join(BENCHMARKS)}"
        )
    effort = Effort("quick" if options.quick else "full")
    figures: list[Figure] = []
    missing: list[str] = []
    try:
        for name in names:
            _say(f"measuring {name} ...")
            with tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir) as directory:
                try:
                    figures += BENCHMARKS[name](effort, Path(directory).resolve() / name)
                except codex.NotMeasured as reason:
                    missing.append(f"{name} is not measured: {reason}")
    finally:
        # Also if one of them fails, as the others took long.
        found = table(figures)
        print(found)
    for line in missing:
        _say(line)
    if options.write:
        PAGE.write_text(written(PAGE.read_text(), found, effort))
    if missing and os.environ.get("REQUIRE_REAL_AGENTS") == "1":
        return 1
    return 0 if all(figure.met for figure in figures) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        description="Measure speed and memory, and print the figures with their bounds. "
        "Exits with 1 if a bound is missed.",
    )
    known = ", ".join(BENCHMARKS)
    parser.add_argument(
        "name",
        nargs="*",
        metavar="NAME",
        help=f"run only these: {known}; scale means {', '.join(SCALE)}. "
        "Without names, all but those that begin with scale",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument(
        "--write", action="store_true", help=f"write the table into docs/{PAGE.name}"
    )
    parser.add_argument("--dir", help="folder for databases (default: the temporary folder)")
    return parser


def written(page: str, figures: str, effort: Effort) -> str:
    """Return the page with these figures in it."""
    command = "./bin/bench --quick" if effort.name == "quick" else "./bin/bench"
    where = (
        f"`{command}` on {os.cpu_count()} cores of {platform.machine()} {platform.system()}, "
        f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}:"
    )
    text = f"{where}\n\n{figures}"
    return _PLACE.sub(lambda place: f"{place[1]}\n{text}\n\n{place[2]}", page)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
