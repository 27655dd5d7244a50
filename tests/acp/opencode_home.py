"""A home for opencode in which it uses the scripted model."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path


def opencode_env(home: Path, port: int) -> dict[str, str]:
    """Return the variables with which opencode uses this home directory and the scripted model, and no network."""
    home.mkdir(parents=True, exist_ok=True)
    # Without the list of all models of all providers: reading it takes a fifth of the time of a start.
    models = home / "models.json"
    models.write_text("{}")
    model = {
        "name": "scripted",
        "limit": {"context": 100_000_000, "output": 100_000},
        "attachment": True,
        "modalities": {"input": ["text", "image"], "output": ["text"]},
    }
    config = {
        "provider": {
            "scripted": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Scripted",
                "options": {"baseURL": f"http://127.0.0.1:{port}/v1", "apiKey": "fake-key"},
                "models": {"model": model, "other": model},
            }
        },
        "model": "scripted/model",
        "small_model": "scripted/model",
        "share": "disabled",
        "autoupdate": False,
    }
    return {
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_MODELS_PATH": str(models),
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        "OPENCODE_PURE": "1",
        "OPENCODE_FAST_BOOT": "1",
    }


def completed_answers(home: Path, conversation: str) -> int:
    """Return how many answers opencode has completed in a conversation."""
    database = home / "data" / "opencode" / "opencode.db"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        query = "SELECT data FROM message WHERE session_id = ?"
        rows = connection.execute(query, (conversation,)).fetchall()
    return sum("completed" in json.loads(data)["time"] for (data,) in rows)
