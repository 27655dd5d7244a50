"""Every module can be imported with the installed Python and dependencies."""

import importlib
import pkgutil

import pytest


def _modules() -> list[str]:
    packages = [
        importlib.import_module(name) for name in ("agent_orchestrator", "agentctl", "agentd")
    ]
    return [
        found.name
        for package in packages
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.endswith(".__main__")
    ]


@pytest.mark.parametrize("name", _modules())
def test_module_can_be_imported(name: str) -> None:
    importlib.import_module(name)
