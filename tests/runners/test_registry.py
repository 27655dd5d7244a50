import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.known_runners import BUILT_IN
from agent_orchestrator.ports.runner import Runner
from agent_orchestrator.runners.command import CommandRunner, FailRule, Rule
from agent_orchestrator.runners.demo import DemoRunner
from agent_orchestrator.runners.registry import GROUP, build_runner, kinds

README = Path(__file__).parents[2] / "README.md"
README_BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_built_in_runners_match_the_entry_points_of_the_package():
    offered = {
        point.name: point.value
        for point in entry_points(group=GROUP)
        if point.dist is not None and point.dist.name == "agent-orchestrator"
    }
    assert offered == BUILT_IN


def test_options_become_constructor_arguments():
    runner = build_runner(
        "review",
        "command",
        {
            "argv": ["agent", "--json"],
            "output": "jsonl",
            "stop_grace_s": 5,
            "map": [{"when": {"type": ["e"]}, "fail": {"code": "denied", "message": "$.m"}}],
        },
    )
    assert isinstance(runner, CommandRunner)
    assert isinstance(runner, Runner)
    assert (runner.name, runner.argv, runner.stop_grace_s) == ("review", ("agent", "--json"), 5.0)
    assert runner.map == (Rule({"type": ["e"]}, fail=FailRule("denied", "$.m")),)
    assert build_runner("demo", "demo", {}) == DemoRunner("demo")


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("nope", {}, r"providers\.p\.runner: unknown runner 'nope'; choose from: .*command.*demo"),
        ("command", {}, r"providers\.p\.argv: is required"),
        ("command", {"argv": "agent"}, r"providers\.p\.argv: must be a list"),
        ("command", {"argv": ["agent", 7]}, r"providers\.p\.argv\[1\]: must be a string"),
        ("command", {"argv": ["a", "b\0"]}, r"providers\.p\.argv\[1\]: contains a NUL"),
        ("command", {"argv": []}, r"providers\.p\.argv: must name a program"),
        ("command", {"argv": ["a"], "out": 1}, r"providers\.p\.out: is not one of argv, map, "),
        ("command", {"argv": ["a"], "output": "xml"}, r"providers\.p\.output: must be one of lin"),
        ("command", {"argv": ["a"], "stop_grace_s": True}, r"providers\.p\.stop_grace_s: must be"),
        ("command", {"argv": ["a"], "stop_grace_s": 601}, r"providers\.p\.stop_grace_s: must be"),
        ("codex-app-server", {"idle_s": -1}, r"providers\.p\.idle_s: must be between 0"),
        ("codex", {"approval_timeout_s": 0}, r"providers\.p\.approval_timeout_s: must be"),
        ("command", {"argv": ["a"], "resume_argv": 1}, r"providers\.p\.resume_argv: must be a li"),
        ("command", {"argv": ["a"], "map": [1]}, r"providers\.p\.map\[0\]: must be a table"),
        (
            "command",
            {"argv": ["a"], "map": [{"thread": 1}, {"x": 1}]},
            r"providers\.p\.map\[0\]\.thread: must be a string; providers\.p\.map\[1\]\.x: is not one",
        ),
        (
            "command",
            {"argv": ["a"], "output": "jsonl", "map": [{"emit": "run.failed"}]},
            r"providers\.p\.map\[0\]\.emit: must be one of",
        ),
        ("command", {"argv": ["a"], "map": [{"fail": {"why": 1}}]}, r"\.map\[0\]\.fail\.why: is"),
        ("function", {}, r"providers\.p\.target: is required"),
        ("function", {"target": 5}, r"providers\.p\.target: must be a string"),
        ("function", {"target": "no_such:f"}, r"providers\.p\.target.*No module named"),
        ("demo", {"pause_s": "1"}, r"providers\.p\.pause_s: must be a number"),
        ("demo", {"name": "x"}, r"providers\.p\.name: is not"),
    ],
)
def test_an_invalid_option_is_named_with_its_path(kind, options, words):
    with pytest.raises(ConfigError, match=words):
        build_runner("p", kind, options)


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Install a package that offers runners: its metadata and its module, on the path."""

    def install(source, **points):
        info = tmp_path / "their_runners-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-runners\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
        (tmp_path / "their_runners.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "their_runners", raising=False)

    return install


THEIRS = """
class Theirs:
    def __init__(self, *, name, colour="red"):
        if colour == "blue":
            raise ValueError("not blue")
        self.name, self.colour = name, colour

    async def run(self, context):
        raise NotImplementedError

class NoRunner:
    def __init__(self, *, name):
        pass
"""


def test_a_runner_of_another_package_is_built_with_its_options(plug_in):
    plug_in(THEIRS, theirs="their_runners:Theirs", none="their_runners:NoRunner")
    runner = build_runner("p", "theirs", {"colour": "green"})
    assert (runner.name, runner.colour) == ("p", "green")
    assert "theirs" in kinds()
    with pytest.raises(ConfigError, match=r"providers\.p: not blue"):
        build_runner("p", "theirs", {"colour": "blue"})
    with pytest.raises(ConfigError, match=r"providers\.p\.size: is not one of colour"):
        build_runner("p", "theirs", {"size": 1})
    with pytest.raises(ConfigError, match=r"has no `name` or no `run`"):
        build_runner("p", "none", {})


def test_the_example_of_the_readme_works_as_a_plug_in(plug_in):
    [source] = [block for block in README_BLOCKS if "class Shout" in block]
    plug_in(source, shout="their_runners:Shout")
    assert build_runner("loud", "shout", {}).name == "shout"
    with pytest.raises(ConfigError, match=r"providers\.loud\.volume: is not one of any"):
        build_runner("loud", "shout", {"volume": 11})


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_a_function_that_cannot_be_imported_is_an_error_with_a_hint(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    if place == "beside":
        (tmp_path / "no_such_agent.py").write_text("async def f(context): pass\n")
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with pytest.raises(ConfigError, match=r"add its directory to PYTHONPATH") as caught:
        build_runner("p", "function", {"target": "no_such_agent:f"})
    assert (str(tmp_path) in str(caught.value)) is (place == "beside")


def test_a_plug_in_that_cannot_be_imported_is_a_configuration_error(plug_in):
    plug_in("raise RuntimeError('out of order')", theirs="their_runners:Theirs")
    with pytest.raises(ConfigError, match=r"providers\.p\.runner.*RuntimeError: out of order"):
        build_runner("p", "theirs", {})


@pytest.mark.parametrize("source", ["import sys; sys.exit(4)", "raise SystemExit(4)"])
def test_a_plug_in_that_exits_while_imported_is_a_configuration_error(plug_in, source):
    plug_in(source, theirs="their_runners:Theirs")
    with pytest.raises(ConfigError, match=r"providers\.p\.runner: 'theirs'.*SystemExit: 4"):
        build_runner("p", "theirs", {})


def test_a_constructor_that_exits_is_a_configuration_error(plug_in):
    plug_in("def Theirs(*, name): raise SystemExit(4)", theirs="their_runners:Theirs")
    with pytest.raises(ConfigError, match=r"providers\.p: SystemExit\(4\)"):
        build_runner("p", "theirs", {})


def test_a_built_in_runner_cannot_be_replaced(plug_in):
    plug_in(THEIRS, demo="their_runners:Theirs")
    assert isinstance(build_runner("p", "demo", {}), DemoRunner)


def test_the_registry_imports_no_runner_until_it_is_built():
    code = (
        "import sys, agent_orchestrator.runners.registry\n"
        "names = [m for m in sys.modules if m.startswith('agent_orchestrator.runners.')]\n"
        "print(*sorted(name.rpartition('.')[2] for name in names))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.split() == ["options", "registry"]
