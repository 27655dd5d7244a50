"""Each benchmark runs and checks what it measures; the table marks missed bounds."""

import sys
from pathlib import Path

import pytest
from benchmarks.codex import NotMeasured
from benchmarks.figures import Effort, Figure, WrongResult, medians, table
from benchmarks.processes import agentd, server, timed

from benchmarks import __main__ as bench
from benchmarks import load

SMOKE = Effort("smoke")

REAL_AGENTS = {
    "codex": [pytest.mark.codex],
    "appserver": [pytest.mark.codex],
    "tools": [pytest.mark.codex],
    "agents": [pytest.mark.claude, pytest.mark.acp, pytest.mark.timeout(400)],
}
"""Benchmarks with real agents, and their marks."""

FIGURES = {
    "codex": 2,
    "appserver": 5,
    "agents": 8,
    "tools": 2,
    "turns": 1,
    "requests": 3,
    "accepts": 1,
    "searches": 2,
    "appends": 1,
    "postgres": 7,
    "supervisors": 1,
    "parked": 1,
    "queued": 1,
    "readers": 2,
    "idle": 2,
    "commands": 2,
    "scale.readers": 5,
    "scale.idle": 4,
    "scale.lists": 1,
    "scale.answer": 3,
    "scale.runs": 1,
    "scale.beyond": 4,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=REAL_AGENTS.get(name, [])) for name in bench.BENCHMARKS],
)
def test_benchmark_returns_its_figures(name, tmp_path):
    try:
        figures = bench.BENCHMARKS[name](SMOKE, tmp_path / name)
    except NotMeasured as reason:
        assert name in {*REAL_AGENTS, "postgres"}
        pytest.skip(str(reason))
    assert len(figures) == FIGURES[name]
    # A single session may take memory that was freed before.
    assert all(figure.value > 0 or figure.unit == "KiB" for figure in figures)
    assert all(figure.bound > 0 for figure in figures)


def figure(value, **more):
    return Figure(name="size", value=value, bound=2, **more)


@pytest.mark.parametrize(
    ("limit", "value", "met"),
    [
        ("at most", 2, True),
        ("at most", 2.001, False),
        ("at least", 2, True),
        ("at least", 1.999, False),
    ],
)
def test_figure_meets_its_bound(limit, value, met):
    assert figure(value, limit=limit).met is met


def test_table_shows_missed_bounds():
    assert table([figure(1), figure(3, unit="s", detail="3 of them")]).splitlines() == [
        "| figure | measured | bound       |        | from      |",
        "|--------|----------|-------------|--------|-----------|",
        "| size   | 1.00     | at most 2   | ok     |           |",
        "| size   | 3.00 s   | at most 2 s | MISSED | 3 of them |",
    ]


def test_medians_alternate_between_the_measurements():
    calls = []

    def measure(name, *results):
        left = list(results)

        def call():
            calls.append(name)
            return left.pop()

        return call

    assert medians(3, measure("a", 5, 1, 9), measure("b", 2, 2, 8)) == [5, 2]
    assert calls == ["a", "b"] * 3


@pytest.mark.parametrize(("value", "status"), [(1, 0), (3, 1)])
def test_missed_bound_is_exit_status_1(monkeypatch, capsys, value, status):
    monkeypatch.setattr(bench, "BENCHMARKS", {"size": lambda effort, directory: [figure(value)]})
    assert bench.main(["size"]) == status
    assert "| size " in capsys.readouterr().out


def test_page_shows_the_new_table():
    page = "before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n"
    new = bench.written(page, "| \\1 |", Effort("quick"))
    assert new.startswith("before\n<!-- figures -->\n\n`./bin/bench --quick` on ")
    assert new.endswith("\n\n| \\1 |\n\n<!-- end of figures -->\nafter\n")
    assert bench.written(new, "| \\1 |", Effort("quick")) == new


def test_page_has_the_markers_of_the_table():
    page = bench.PAGE.read_text()
    assert bench.written(page, "the table", Effort("full")) != page


def test_wrong_output_is_an_error():
    assert timed([sys.executable, "-c", "print('right')"], "right") > 0
    with pytest.raises(WrongResult, match="wrong"):
        timed([sys.executable, "-c", "print('wrong')"], "right")
    with pytest.raises(WrongResult, match="gave 3"):
        timed([sys.executable, "-c", "print('right'); raise SystemExit(3)"], "right")


def test_refused_load_is_an_error(tmp_path: Path):
    with agentd(tmp_path) as daemon:
        port = int(daemon.url.rpartition(":")[2])
        refused = load.request("/sessions", '{"title": 7}')
        with pytest.raises(WrongResult, match="400"):
            load.generate(load.Plan(port, [[[refused]]]))


def test_server_that_does_not_start_is_an_error_with_its_log(tmp_path: Path):
    argv = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    with pytest.raises(WrongResult, match="no such luck"), server(tmp_path, argv=argv):
        pass


def test_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        bench.main(["turns", "nope"])
    assert refused.value.code == 2
    assert "'nope'" in capsys.readouterr().err
