"""What the real codex executes of the directories it works in."""

import json
import shlex
import subprocess
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from model_server import codex_env

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.runners.codex.trust import (
    check_home,
    untrusted_config,
    untrusted_directories,
    untrusted_environment,
)
from agent_orchestrator.testing.runners import RecordingContext

SANDBOXES = ("read-only", "workspace-write", "danger-full-access")


class World:
    """Directories with something to execute, and the codex home that may trust them."""

    def __init__(self, codex: str, home: Path, base: Path) -> None:
        self.codex, self.home, self.base = codex, home, base
        self.mark = base / "MARK"
        self.config = home / "config.toml"
        self._plain = self.config.read_text()

    def directory(self, path: str) -> Path:
        made = self.base / path
        made.mkdir(parents=True, exist_ok=True)
        return made

    def arm(self, directory: Path) -> None:
        """Give a directory an MCP server that leaves a mark."""
        script = f"echo ran > {shlex.quote(str(self.mark))}"
        (directory / ".codex").mkdir(exist_ok=True)
        servers = f'[mcp_servers.e]\ncommand = "/bin/sh"\nargs = {json.dumps(["-c", script])}\n'
        (directory / ".codex" / "config.toml").write_text(servers)

    def trust(self, *directories: Path, level: str = "trusted") -> None:
        tables = [
            f'[projects.{json.dumps(str(one), ensure_ascii=False)}]\ntrust_level = "{level}"\n'
            for one in directories
        ]
        self.config.write_text(self._plain + "\n".join(tables))

    def context(self, prompt: str, cwd: Path, sandbox: str | None = None, **more):
        context = RecordingContext(prompt, cwd=cwd, env=codex_env(self.home), **more)
        context.run = evolve(context.run, sandbox=sandbox)
        return context

    @property
    def has_run(self) -> bool:
        if not self.mark.exists():
            return False
        self.mark.unlink()
        return True


@pytest.fixture
def home(home_with_projects: Path) -> Path:
    return home_with_projects


@pytest.fixture
def world(codex, home, tmp_path):
    return World(codex, home, tmp_path / "world é")


@asynccontextmanager
async def runner_of(world, kind=CodexAppServerRunner, **settings):
    async with kind(command=world.codex, home=str(world.home), **settings) as runner:
        yield runner


async def turn(runner, world, cwd, sandbox=None, prompt="say hi", **more):
    """Run a turn and tell whether anything of the directory was executed; the user's file must not be
    touched.
    """
    before = world.config.read_bytes(), world.config.lstat().st_ino
    context = world.context(prompt, cwd, sandbox, **more)
    with anyio.fail_after(60):
        await runner.run(context)
    assert (world.config.read_bytes(), world.config.lstat().st_ino) == before
    return world.has_run, context


def git(directory: Path, *arguments: str) -> None:
    author = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    command = ["git", *author, *arguments]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=60)


def repository(directory: Path) -> Path:
    git(directory, "init", "-q")
    git(directory, "commit", "-q", "--allow-empty", "-m", "one")
    return directory


RUNNERS = pytest.mark.parametrize("kind", [CodexAppServerRunner, CodexExecRunner])


@pytest.mark.anyio
@pytest.mark.codex
@RUNNERS
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestWithCodex:
    async def test_a_run_does_not_make_its_directory_trusted(self, world, kind):
        """Nothing said, each sandbox, of the provider and of the message, and at a resume."""
        cwd = world.directory("ws")
        world.arm(cwd)
        sandboxes = (
            (None, *SANDBOXES) if kind is CodexAppServerRunner else (None, "danger-full-access")
        )
        async with runner_of(world, kind) as runner:
            for sandbox in sandboxes:
                has_run, context = await turn(runner, world, cwd, sandbox)
                assert not has_run, sandbox
            has_run, _ = await turn(runner, world, cwd, "workspace-write", thread=context.thread)
            assert not has_run
        async with runner_of(world, kind, sandbox="danger-full-access") as runner:
            has_run, _ = await turn(runner, world, cwd, thread=context.thread)  # loaded anew
            assert not has_run

    async def test_hooks_of_a_directory_that_the_user_trusts_are_executed(self, world, kind):
        """Also where its name is odd, and below, and in the other trees of a repository."""
        odd = world.directory('a "d.o.t" \\ é\tx')
        above = repository(world.directory("repo"))
        below = world.directory("repo/a/b")
        trees = world.directory("trees")
        git(above, "worktree", "add", "-q", str(trees / "one"))
        link = world.base / "link"
        link.symlink_to(above)
        for armed in (odd, below, trees / "one", above):
            world.arm(armed)
        world.trust(odd, above)
        async with runner_of(world, kind) as runner:
            for cwd in (odd, below, trees / "one", link):
                assert (await turn(runner, world, cwd))[0], cwd

    async def test_the_settings_of_a_provider_can_trust_a_directory(self, world, kind):
        cwd = world.directory("ws")
        world.arm(cwd)
        trust = {"projects": {str(cwd): {"trust_level": "trusted"}}}
        async with runner_of(world, kind, config=trust) as runner:
            assert (await turn(runner, world, cwd))[0]

    async def test_a_symlinked_configuration_file_stays_a_symlink(self, world, kind):
        cwd = world.directory("ws")
        world.arm(cwd)
        real = world.directory("dotfiles") / "config.toml"
        world.config.rename(real)
        world.config.symlink_to(real)
        async with runner_of(world, kind) as runner:
            assert not (await turn(runner, world, cwd))[0]
        assert world.config.is_symlink()

    async def test_a_child_executes_nothing_that_its_parent_could_write(self, world, kind):
        """In a repository that its user trusts, by the user's own file or a provider's setting."""
        above = repository(world.directory("repo"))
        below = world.directory("repo/a/b")
        world.arm(below)
        world.trust(above)
        trust = {str(above): {"trust_level": "trusted"}, str(below): {"trust_level": "trusted"}}
        for config in ({}, {"projects": trust}, {f"projects.{below}.trust_level": "trusted"}):
            async with runner_of(world, kind, config=config) as runner:
                has_run, context = await turn(runner, world, below, shared_cwd=above)
                assert not has_run, config
        link = world.base / "link"
        link.symlink_to(below)
        async with runner_of(world, kind) as runner:
            for cwd, shared in ((link, above), (below, world.base / "other")):
                assert not (await turn(runner, world, cwd, shared_cwd=shared))[0], (cwd, shared)
            has_run, _ = await turn(runner, world, below, shared_cwd=above, thread=context.thread)
            assert not has_run
            assert (await turn(runner, world, below))[0]  # the user's own session there

    async def test_a_child_uses_the_trusted_configuration_of_its_parents_directory(
        self, world, kind
    ):
        above = repository(world.directory("repo"))
        below = world.directory("repo/a")
        world.arm(above)
        world.trust(above)
        async with runner_of(world, kind) as runner:
            assert (await turn(runner, world, below, shared_cwd=above))[0]

    async def test_a_repository_of_an_agent_has_nothing_executed(self, world, kind):
        """Codex asks git for the state of the directory, outside the sandbox: filters are programs."""
        above = world.directory("ws")
        below = repository(world.directory("ws/sub"))
        (below / "a").write_text("x")
        git(below, "add", "a")
        git(below, "config", "filter.x.clean", f"touch {shlex.quote(str(world.mark))}; cat")
        (below / ".gitattributes").write_text("* filter=x\n")
        (below / "a").write_text("changed")
        prompt = "shell git rev-parse --show-toplevel\nsay hi"
        async with runner_of(world, kind) as runner:
            has_run, context = await turn(
                runner, world, below, "workspace-write", prompt, shared_cwd=above
            )
        assert not has_run
        (told,) = [data for event, data in context.events if event == "tool.completed"]
        assert str(below) in json.dumps(told, ensure_ascii=False)  # its commands have their git


@pytest.mark.anyio
@pytest.mark.codex
@RUNNERS
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_home_that_the_agent_could_write_is_refused(codex, home, kind):
    """Codex keeps only the ``.codex`` right in the directory from being written."""
    cwd = home.parent
    async with kind(command=codex, home=str(home), sandbox="workspace-write") as runner:
        context = RecordingContext("say hi", cwd=cwd, env=codex_env(home))
        with pytest.raises(AgentFailed, match="home") as refused:
            await runner.run(context)
        assert refused.value.code == "invalid_config"
        context.run = evolve(context.run, sandbox="read-only")
        assert (await runner.run(context)).text == "hi"


@pytest.mark.parametrize(
    ("home", "cwd", "is_refused"),
    [
        ("/w/.codex", "/w", False),
        ("/home", "/w", False),
        ("/w2", "/w", False),
        ("/.codex", "/", False),
        ("/w", "/w", True),
        ("/w/a/.codex", "/w", True),
        ("/w/.codex", "/", True),
    ],
)
def test_a_codex_home_that_the_sandbox_can_write_is_refused(home, cwd, is_refused):
    with pytest.raises(AgentFailed) if is_refused else nullcontext():
        check_home(home, cwd, "workspace-write")
    check_home(home, cwd, "read-only")


@pytest.mark.anyio
@pytest.mark.codex
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_thread_that_is_loaded_moves_with_its_session(world):
    """It is loaded anew where its directory, or what that shares with those above, is another."""
    above = repository(world.directory("repo"))
    below = world.directory("repo/a")
    world.arm(below)
    world.trust(above)
    async with runner_of(world, sandbox="danger-full-access") as runner:
        _, context = await turn(runner, world, above)
        for cwd, shared, expected in (
            (below, below, True),
            (below, above, False),
            (below, below, True),
            (above, above, False),
        ):
            has_run, context = await turn(
                runner,
                world,
                cwd,
                prompt="shell pwd\nrelay",
                shared_cwd=shared,
                thread=context.thread,
            )
            assert has_run is expected, (cwd, shared)
            answers = [data["text"] for event, data in context.events if event == "agent.message"]
            assert f"{cwd}\n" in answers[-1]


# --- which directories ------------------------------------------------------------------------


def test_directories_below_the_shared_directory_are_untrusted(tmp_path):
    repo = tmp_path / "repo"
    below = repo / "a" / "b"
    below.mkdir(parents=True)
    assert untrusted_directories(str(repo), str(repo)) == ()
    assert untrusted_directories(str(below), str(repo)) == (str(repo / "a"), str(below))
    assert str(tmp_path) not in untrusted_directories(str(below), str(tmp_path))
    assert set(untrusted_directories(str(below), "/")) == {str(below), *map(str, below.parents)} - {
        "/"
    }
    link = tmp_path / "link"
    link.symlink_to(below)
    assert set(untrusted_directories(str(link), str(repo))) >= {
        str(link),
        str(below),
        str(repo / "a"),
    }
    assert untrusted_directories(str(link), str(below)) == ()


def test_directories_above_the_untrusted_ones_stay_trusted():
    config = {"projects": {"/r": {"trust_level": "trusted"}, "/r/a": {"trust_level": "trusted"}}}
    found = untrusted_config(("/r/a",), config, ())
    levels = {path: one["trust_level"] for path, one in found["projects"].items()}
    assert levels == {"/r": "trusted", "/r/a": "untrusted"}


@pytest.mark.parametrize(
    ("config", "extra_args"),
    [
        ({"projects./r.trust_level": "untrusted"}, ()),
        ({}, ("-c", 'projects={"/r"={trust_level="untrusted"}}')),
    ],
)
def test_trust_settings_that_would_be_overwritten_make_all_directories_untrusted(
    config, extra_args
):
    found = untrusted_config(("/r/a", "/r/a/b"), config, extra_args)
    assert set(found["projects"]) == {"/r/a/b", "/r/a", "/r", "/"}
    assert {one["trust_level"] for one in found["projects"].values()} == {"untrusted"}


def test_trust_is_unchanged_if_all_work_in_the_same_directory():
    assert untrusted_config((), {"projects": {}}, ()) == {}
    assert untrusted_environment({"A": "b"}, ()) == {"A": "b"}
