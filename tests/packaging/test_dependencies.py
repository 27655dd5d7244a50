"""Dependencies are those that are used, and their licences are listed."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from checkout import ROOT

SOURCE = ROOT / "src"

INDIRECT = {
    "markdown-it-py": "textual",
    "mcp-types": "mcp",
    "pydantic": "mcp",
    "werkzeug": "quart",
    "opentelemetry-api": "opentelemetry-sdk",
}
"""Packages that we import and that another package requires as part of its interface."""

PROVIDED = {"pytest": "agent_orchestrator/testing"}
"""Packages that users of a part of ours have anyway, and where they are used."""

MODULES = packages_distributions()


def project() -> dict[str, list[str]]:
    """Return the declared dependencies: the main ones by ``""``, those of extras by name."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": found["dependencies"], **found["optional-dependencies"]}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def imports() -> Iterator[tuple[Path, str]]:
    """Yield each file and the names it imports from outside, whole."""
    ours = {"agent_orchestrator", "agentd", "agentctl"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                if name.split(".")[0] not in ours | sys.stdlib_module_names:
                    yield path.relative_to(SOURCE), name


def distribution(module: str) -> str:
    """Return which package a module comes from; OpenTelemetry's share one name."""
    if module.startswith("opentelemetry."):
        parts = {"exporter": "exporter-otlp-proto-http", "sdk": "sdk"}
        return f"opentelemetry-{parts.get(module.split('.')[1], 'api')}"
    [found] = MODULES[module.split(".", maxsplit=1)[0]]
    return name_of(found)


def test_declared_dependencies_are_those_that_are_imported() -> None:
    used: set[str] = set()
    for path, module in imports():
        name = distribution(module)
        if name in PROVIDED:
            assert path.is_relative_to(PROVIDED[name]), path
        else:
            used.add(INDIRECT.get(name, name))
    declared = {name_of(one) for extra in ("", "otel", "postgres") for one in project()[extra]}
    assert used == declared


def test_packages_used_indirectly_are_required_by_their_parent() -> None:
    for name, parent in INDIRECT.items():
        assert name in {name_of(one) for one in requires(parent) or ()}, name


def test_optional_packages_are_imported_only_in_the_tracing_modules() -> None:
    optional = {name_of(one) for one in project()["otel"]} | {"opentelemetry-api"}
    found = {str(path) for path, module in imports() if distribution(module) in optional}
    assert found == {"agent_orchestrator/tracing.py", "agentd/traces.py"}
    tree = ast.parse((SOURCE / "agentd/traces.py").read_text())
    at_top = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [node for node in at_top if (node.module or "").startswith("opentelemetry")]


def test_psycopg_is_imported_only_by_its_store_and_its_copies() -> None:
    rooms = "agent_orchestrator/stores/postgres", "agent_orchestrator/store_copy/postgres.py"
    for path, module in imports():
        if module.split(".")[0] == "psycopg":
            assert any(path.is_relative_to(room) for room in rooms), path


def test_every_dependency_has_a_lower_bound() -> None:
    for extra, requirements in project().items():
        for one in requirements:
            if extra != "check" and "[" not in one:
                assert ">=" in one, one


def test_supported_pythons_are_declared() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [
        line.rpartition(" ")[2] for line in found["classifiers"] if re.search(r":: 3\.\d+$", line)
    ]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert found["requires-python"] == ">=3.11"


def test_list_of_licences_is_complete() -> None:
    from licences import PAGE, rows

    listed = re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    locked = {name_of(line) for line in locked_names()}
    assert {name for name, _ in listed} == locked
    assert all(licence.strip() for _, licence in listed)
    here = dict(rows(locked))
    for name, licence in listed:
        assert here.get(name, licence) == licence, f"{name}: tests/packaging/licences.py writes it"


def locked_names() -> list[str]:
    lines = (ROOT / "bin/locks/run.txt").read_text().splitlines()
    return [line.split("==")[0] for line in lines if "==" in line and line[0] not in " #"]
