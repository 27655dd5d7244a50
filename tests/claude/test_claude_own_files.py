"""Claude Code is kept from the files of the daemon without a question, also in the daemon's own directory."""

import shlex

import pytest
from claude_runs import of, run
from deciding import Deciding
from loops import ON_ONE_LOOP

from agent_orchestrator.ports.runner import ProtectedPaths
from agent_orchestrator.runners.claude.own_files import ask_rules, deny_rules

pytestmark = [pytest.mark.anyio, pytest.mark.claude, ON_ONE_LOOP]

CHANGES = (
    "add {configuration} mine",
    "update {configuration} theirs -> mine",
    "shell echo mine > agentd.toml",
    "shell sed -i s/theirs/mine/ agentd.toml",
    "shell mv agentd.toml other.toml",
    "shell cp other {configuration}",
    "shell touch .data/new",
    "shell rm -r .data",
    "shell mv .data moved",
    "shell rm *.toml",
    "shell rm -rf .d*",
    "shell rm -rf .",
    "shell cp other .data/new",
)

READS = (
    "read {database}",
    "shell cat .data/a.db",
    "shell cd .data && cat a.db",
    "shell cat < .data/a.db",
    "shell x=.data; cat $x/a.db",
    "shell cp .data/a.db copy; cat copy",
    "shell cat .d*/*",
    "shell cat .dat?/a.db",
    "shell cat .dat[a]/a.db",
    "shell cat .{{data,x}}/a.db",
    "shell grep -r heliotrope .",
    "shell git grep --no-index heliotrope",
    "shell diff -r . /var/empty",
    "shell git diff --no-index /var/empty .",
    "shell find . -name a.db -exec cat {{}} +",
)


@pytest.mark.parametrize("name", ["plain", "odd (1) [a] {b,c} *!", "linked"])
async def test_the_files_of_the_daemon_are_neither_changed_nor_read(
    make_runner, record, tmp_path, name
):
    directory = tmp_path / name
    directory.mkdir()
    (directory / ".data").mkdir()
    configuration, database = directory / "agentd.toml", directory / ".data" / "a.db"
    configuration.write_text("theirs")
    database.write_text("heliotrope")
    (directory / "other").write_text("mine")
    cwd = directory
    if name == "linked":
        cwd = tmp_path / "link"
        cwd.symlink_to(directory)
    protected = ProtectedPaths((str(configuration), str(directory / ".data")), (str(database),))
    steps = CHANGES + READS if name == "plain" else CHANGES[:4] + READS[:2]
    named = {"configuration": cwd / "agentd.toml", "database": cwd / ".data" / "a.db"}
    script = "\n".join(step.format(**named) for step in steps)
    async with make_runner(sandbox="workspace-write") as runner:
        context = record(
            f"{script}\nadd {shlex.quote(str(cwd))}/x y" if name == "plain" else script,
            kind=Deciding,
            cwd=cwd,
            protected=protected,
        )
        context.decide = {"decision": "deny"}
        await run(runner, context)
    outputs = of(context, "tool.completed")
    assert len(outputs) == sum(step.startswith(("shell", "read")) for step in steps)
    assert not any("heliotrope" in one["output"] for one in outputs)
    assert configuration.read_text() == "theirs"
    assert database.read_text() == "heliotrope"
    assert sorted(one.name for one in directory.iterdir()) == [
        ".data",
        "agentd.toml",
        "other",
        *(["x"] if name == "plain" else []),  # what is not the daemon's is changed
    ]
    assert [*(directory / ".data").iterdir()] == [database]


async def test_harmless_commands_are_asked_about_only_if_a_secret_is_near(
    make_runner, record, workspace, tmp_path
):
    (workspace / "a.txt").write_text("found\n")
    far = ProtectedPaths(secret=(str(tmp_path / "secret"),))
    near = ProtectedPaths(secret=(str(workspace / "secret"),))
    for protected, asked in ((far, 0), (near, 2)):
        async with make_runner(sandbox="workspace-write") as runner:
            script = "shell grep -r found .\nshell cat *.txt\nshell cat a.txt"
            context = record(script, kind=Deciding, protected=protected)
            context.decide = {"decision": "approve"}
            await run(runner, context)
        assert len(context.questions) == asked
        outputs = [one["output"] for one in of(context, "tool.completed")]
        assert all("found" in one for one in outputs)


def test_rules_name_the_paths_and_what_is_below_them():
    protected = ProtectedPaths(("/a/c.toml",), ("/a/b (1)/x",))
    assert deny_rules(protected) == (
        "Read(//a/b ?1?/x)",
        "Read(//a/b ?1?/x/**)",
        "Edit(//a/b ?1?/x)",
        "Edit(//a/b ?1?/x/**)",
        "Edit(//a/c.toml)",
        "Edit(//a/c.toml/**)",
    )
    assert ask_rules(protected, "/a/b (1)")
    assert not ask_rules(protected, "/a/b")
    assert not ask_rules(ProtectedPaths(), "/")
