"""The documents are correct: links lead to pages, commands can be run, settings can be loaded."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from driving import FORKS, finished
from pages import PAGES, ROOT, Block, blocks, inline_code, name_of, prose
from ports import free_port

from agent_orchestrator.known_runners import BUILT_IN
from agent_orchestrator.runners.registry import build_runner
from agentctl.main import cli
from agentd import settings
from agentd.cli import main as agentd_command

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)

LANGUAGES = {
    "console",
    "diff",
    "python",
    "toml",
    "json",
    "html",
    "mermaid",
    "text",
    "yaml",
    "nginx",
}

CONFIG = """
[providers.demo]
runner = "demo"
[providers.codex]  # by this name, without a model
runner = "command"
argv = ["cat"]
"""

TIMEOUT_S = 240


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as the site and the code host make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pages
def test_links_have_an_existing_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target
        if page.is_relative_to(ROOT / "docs"):
            # The site has only docs/: files outside are named there, not linked.
            assert there.is_relative_to(ROOT / "docs"), target


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    for code in inline_code(page):
        if re.fullmatch(
            r"(\./)?(bin|docs|src|tests|examples|deploy|skills|benchmarks)/[\w./-]+", code
        ):
            assert (ROOT / code).exists(), code


@pages
def test_blocks_have_a_known_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, block.place


@pages
def test_json_and_toml_blocks_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block.text)
    for block in blocks(page, "toml"):
        if "project" in tomllib.loads(block.text):
            continue
        path = tmp_path / "agentd.toml"
        path.write_text(block.text)
        found = settings.load({}, {}, str(path))
        for name, provider in found.providers.items():
            if provider.runner in BUILT_IN and provider.runner != "function":
                build_runner(name, provider.runner, provider.options)


# --- commands -----------------------------------------------------------------------------


def parsed(words: list[str], *, whole: bool) -> None:
    """Parse a command line as agentctl and agentd do, without running it.

    :param whole: whether it must be complete; a mention may lack arguments.
    """
    name, arguments = Path(words[0]).name, words[1:]
    command: click.Command = cli if name == "agentctl" else agentd_command
    context = None
    try:
        while True:
            context = command.make_context(name, list(arguments), parent=context)
            if not isinstance(command, click.Group):
                return
            rest = [*context._protected_args, *context.args]
            found, inner, arguments = command.resolve_command(context, rest)
            assert inner is not None
            assert found is not None
            name, command = found, inner
    except click.exceptions.Exit:  # --version, --help
        return
    except (click.exceptions.NoArgsIsHelpError, click.MissingParameter):
        assert not whole, words


def is_ours(word: str) -> bool:
    return word in ("agentctl", "agentd", "./bin/agentctl", "./bin/agentd")


def calls(line: str) -> list[list[str]]:
    """Return the calls of our commands in a line of the shell."""
    found: list[list[str]] = []
    # The call in $(…) is checked by itself; its value is one word.
    while inner := re.search(r"\$\(([^()]*)\)", line):
        found += calls(inner[1])
        line = line[: inner.start()] + "VALUE" + line[inner.end() :]
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] = []
    for word in [*lexer, ";"]:
        if word[0] in ";&|<>()":
            if call and is_ours(call[0]):
                found.append(call)
            call = []
        elif call or not re.match(r"\w+=", word):
            call.append(word)
    return found


@pages
def test_commands_can_be_parsed(page: Path) -> None:
    for block in blocks(page, "console"):
        for line in block.commands:
            for call in calls(line):
                try:
                    parsed(call, whole=True)
                except click.UsageError as error:
                    raise AssertionError(
                        f"{block.place}: {line}: {error.format_message()}"
                    ) from None
    for code in inline_code(page):
        if is_ours(code.split(" ")[0]) and not re.search(r"[…|]", code):
            for call in calls(code):
                try:
                    parsed(call, whole=False)
                except click.UsageError as error:
                    raise AssertionError(f"{code}: {error.format_message()}") from None


ENDLESS = re.compile(r"--follow|curl -sN|request watch")
"""Commands that run until they are stopped; each must print a line first."""

FIRST_LINE = """exec 7< <(exec timeout 60 {command})
endless=$!
read -r _ <&7
kill $endless 2>/dev/null || true  # it may have ended by itself
exec 7<&-"""
"""Run an endless command until it has printed a line, however long that takes."""


def script(found: list[Block], port: str) -> str:
    """Return what runs the commands of a page's blocks, one after the other."""
    lines = [
        "set -euo pipefail",
        "trap 'agentctl daemon stop --now --wait >/dev/null 2>&1 || true' EXIT",
    ]
    for block in found:
        for line in block.commands:
            lines.append(f"echo {shlex.quote(f'{block.place}: {line}')} >&2")
            here = re.sub(r"\b(localhost|127\.0\.0\.1):8765\b", rf"\1:{port}", line)
            # A limit of the page's is for people, on a machine with time for them.
            here = re.sub(r"--max-time \d+", "--max-time 60", here)
            if ENDLESS.search(line):
                here = FIRST_LINE.format(command=here)
            lines.append(here)
            if line.endswith("&"):
                lines.append("until agentctl daemon status >/dev/null 2>&1; do sleep 0.05; done")
    return "\n".join(lines)


SHELL = [page for page in PAGES if any(not b.reason for b in blocks(page, "console"))]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", SHELL, ids=name_of)
def test_commands_can_be_run(page: Path, tmp_path: Path) -> None:
    found = [block for block in blocks(page, "console") if not block.reason]
    (tmp_path / "agentd.toml").write_text(CONFIG)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "agentd").symlink_to(Path(sys.executable).with_name("agentd"))
    FORKS.put(tmp_path / "bin" / "agentctl")
    port = str(free_port())
    env = {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "AGENTD_PORT": port,
        "AGENTD_GRACE_S": "0",
        "AGENTD_CONFIG": "agentd.toml",
        "AGENTCTL_URL": f"http://127.0.0.1:{port}",
    }

    def run(*argv: str) -> "subprocess.CompletedProcess[str]":
        return finished(argv, TIMEOUT_S, cwd=tmp_path, env=env, text=True)

    typed = "\n".join(line for block in found for line in block.commands)
    starts = re.search(r"daemon start|agentd.*&$", typed, re.MULTILINE)
    try:
        if "agentctl" in typed and not starts:
            assert run("agentctl", "daemon", "start").returncode == 0
        done = run("bash", "-c", script(found, port))
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        if "agentctl" in typed:
            run("agentctl", "daemon", "stop", "--now", "--wait")


def test_site_navigation_has_every_page() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES if "docs" in page.parts}
    listed = set(re.findall(r"'([\w./-]+\.md)'", str(site["nav"])))
    decisions = (ROOT / "docs" / "decisions" / "README.md").read_text()
    listed |= {f"decisions/{name}" for name in re.findall(r"\]\(([\w-]+\.md)\)", decisions)}
    assert there == listed


def test_skills_have_a_name_and_a_description() -> None:
    """An agent reads the header of every skill, and the rest only of one that fits."""
    for page in (ROOT / "skills").rglob("SKILL.md"):
        head = re.match(r"---\nname: (.+)\ndescription: (.+)\n---\n\n# ", page.read_text())
        assert head is not None, name_of(page)
        assert head[1] == page.parent.name
        assert len(head[2]) < 1024
