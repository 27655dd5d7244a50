"""The libraries of the page: copies of npm packages.

``python tests/web/vendor.py`` makes them from tests/web/node_modules, with ``vendor.json``: version, licence and
SHA-256 of each. The browser finds modules by their addresses, so the names of packages in imports become
addresses. Nothing else is changed.
"""

import hashlib
import json
import re
from pathlib import Path

from agentd.web.files import STATIC

HERE = Path(__file__).parent
PACKAGES = HERE / "node_modules"
VENDOR = STATIC / "vendor"
INDEX = VENDOR / "vendor.json"

FILES = {
    "preact.mjs": ("preact", "dist/preact.mjs"),
    "hooks.mjs": ("preact", "hooks/dist/hooks.mjs"),
    "signals-core.mjs": ("@preact/signals-core", "dist/signals-core.mjs"),
    "signals.mjs": ("@preact/signals", "dist/signals.mjs"),
    "htm.mjs": ("htm", "dist/htm.mjs"),
    "lean-qr.mjs": ("lean-qr", "nano.mjs"),
    "marked.mjs": ("marked", "lib/marked.esm.js"),
}
"""The package of each copy, and the file in it."""

ADDRESSES = {
    "preact": "./preact.mjs",
    "preact/hooks": "./hooks.mjs",
    "@preact/signals-core": "./signals-core.mjs",
}

MODULES = {
    "preact.mjs": "preact",
    "hooks.mjs": "preact/hooks",
    "signals-core.mjs": "@preact/signals-core",
    "signals.mjs": "@preact/signals",
    "htm.mjs": "htm",
    "lean-qr.mjs": "lean-qr/nano",
    "marked.mjs": "marked",
}
"""The module with the types of each copy. The type checker finds them beside it."""

TYPES = {"htm.mjs": "export { default } from"}

_IMPORT = re.compile(r"""(\bfrom\s*)(["'])([^"']+)\2""")
_SOURCE_MAP = re.compile(r"\n?//# sourceMappingURL=\S+\s*\Z")


def copy_of(package: str, file: str) -> str:
    """Return a file of an npm package as the page has it."""
    text = (PACKAGES / package / file).read_text()
    text = _SOURCE_MAP.sub("\n", text)
    return _IMPORT.sub(lambda found: f'{found[1]}"{ADDRESSES.get(found[3], found[3])}"', text)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def licence_text(package: str) -> str:
    [file] = list((PACKAGES / package).glob("LICENSE*"))
    return file.read_text().strip()


def made() -> dict[str, str]:
    """Return the contents of the folder by file name."""
    contents = {name: copy_of(*place) for name, place in FILES.items()}
    index = {}
    for name, (package, file) in FILES.items():
        described = json.loads((PACKAGES / package / "package.json").read_text())
        index[name] = {
            "package": package,
            "version": described["version"],
            "licence": described["license"],
            "file": file,
            "sha256": digest(contents[name]),
        }
    types = {
        f"{name.removesuffix('.mjs')}.d.mts": f"{TYPES.get(name, 'export * from')} {json.dumps(module)};\n"
        for name, module in MODULES.items()
    }
    packages = sorted({package for package, _ in FILES.values()})
    licences = "\n\n".join(f"# {package}\n\n{licence_text(package)}" for package in packages)
    return {
        **contents,
        **types,
        "vendor.json": json.dumps(index, indent=2) + "\n",
        "LICENCES.txt": licences + "\n",
    }


if __name__ == "__main__":
    VENDOR.mkdir(exist_ok=True)
    for name, content in made().items():
        (VENDOR / name).write_text(content)
