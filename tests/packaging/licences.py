"""The licences of the dependencies, as the packages declare them.

``python tests/packaging/licences.py`` writes them into docs/licences.md.
"""

import json
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "licences.md"
VENDORED = ROOT / "src/agentd/web/static/vendor/vendor.json"

HEAD = """# Licences

agent-orchestrator has the MIT licence. The table lists the packages that are installed with it, directly or through others, with the licence that each
package declares. This project contains no copies of their code. The page that agentd serves has copies of the libraries in the second table.

| package | licence |
|---|---|
"""


def licence(name: str) -> str:
    """Return the licence that a package declares: an SPDX expression, its classifiers, or its text."""
    found = metadata(name)
    if expression := found.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in found.get_all("Classifier") or ()
        if line.startswith("License :: ") and not line.endswith(":: OSI Approved")
    ]
    words = (found.get("License") or "").strip().splitlines()
    return ", ".join(classifiers) or (words[0] if words else "")


def rows(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the packages that are installed here, with their licences."""
    found = []
    for name in sorted(names):
        try:
            found.append((name, licence(name)))
        except PackageNotFoundError:  # for another system or Python
            continue
    return found


def vendored() -> list[tuple[str, str, str]]:
    """Return the libraries of the page: package, version and licence."""
    entries = json.loads(VENDORED.read_text()).values()
    return sorted({(one["package"], one["version"], one["licence"]) for one in entries})


def vendored_table() -> str:
    """Return the section about the libraries of the page."""
    lines = "".join(f"| {name} | {version} | {text} |\n" for name, version, text in vendored())
    return f"""
## In the page

Their licence texts are in `agentd/web/static/vendor/LICENCES.txt` of the package.

| library | version | licence |
|---|---|---|
{lines}"""


if __name__ == "__main__":
    lines = (ROOT / "bin/locks/run.txt").read_text().splitlines()
    locked = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in lines
        if "==" in line and line[0] not in " #"
    }
    known = dict(rows(locked))
    missing = dict.fromkeys(locked - known.keys(), "not installed on Linux")
    table = "".join(f"| `{name}` | {text} |\n" for name, text in sorted((known | missing).items()))
    PAGE.write_text(HEAD + table + vendored_table())
