"""Reads codex's login from its files. Codex may have another one in a keyring.

Codex 0.169 reads them when it starts. A process that was started with another login keeps that one.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

_SETTINGS: Final = (
    "model_provider",
    "model_providers",
    "cli_auth_credentials_store",
    "chatgpt_base_url",
    "openai_base_url",
    "forced_login_method",
    "forced_chatgpt_workspace_id",
)
"""Settings that choose the model provider and the account."""

_VARIABLE: Final = re.compile(
    r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(\S)", re.MULTILINE
)

SYSTEM_FILES: Final = (Path("/etc/codex/config.toml"), Path("/etc/codex/managed_config.toml"))
"""Configuration files outside of codex's home."""


def identity(home: Path, profile: str | None) -> str:
    """Return a digest that changes if a new codex process would have another login or model provider.

    It does not change when codex itself renews a token, or writes other settings.
    """
    names = ("config.toml", "managed_config.toml", *([f"{profile}.config.toml"] if profile else ()))
    contents: list[Any] = [
        _account(_read(home / "auth.json")),
        _read(home / ".env").decode("latin-1"),
    ]
    contents += [
        _settings(_read(file)) for file in (*(home / name for name in names), *SYSTEM_FILES)
    ]
    return blake2b(
        json.dumps(contents, default=str, sort_keys=True).encode(), digest_size=16
    ).hexdigest()


def dotenv_names(home: Path) -> frozenset[str]:
    """Return the names of the variables that ``.env`` in codex's home sets."""
    text = _read(home / ".env").decode("utf-8", "replace").removeprefix("\ufeff")
    return frozenset(name for name, _ in _VARIABLE.findall(text))


def has_credentials(home: Path) -> bool:
    """Return whether ``auth.json`` has credentials for codex."""
    names = ("OPENAI_API_KEY", "tokens", "personal_access_token", "agent_identity")
    content = _parsed(_read(home / "auth.json"))
    return isinstance(content, dict) and any(content.get(name) for name in names)


def _account(data: bytes) -> Any:
    """Return the part of ``auth.json`` that identifies the account."""
    content = _parsed(data)
    if not isinstance(content, dict):
        return data.decode("latin-1")
    tokens = content.pop("tokens", None)
    content.pop("last_refresh", None)
    return [content, tokens.get("account_id") if isinstance(tokens, dict) else tokens]


def _settings(data: bytes) -> Any:
    try:
        settings: Mapping[str, Any] = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return data.decode("latin-1")
    return {name: settings[name] for name in _SETTINGS if name in settings}


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
