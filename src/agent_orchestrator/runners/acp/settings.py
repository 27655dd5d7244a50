"""The mode and the model of a session. Agents have three formats for them."""

from collections.abc import Mapping
from typing import Literal

from attrs import evolve, frozen

from agent_orchestrator.runners.acp.values import objects, value_at
from agent_orchestrator.runners.events import JsonObject, text

Category = Literal["mode", "model"]


@frozen
class Setting:
    """A setting of a session.

    :param value: the present value.
    :param method: the request that changes it.
    :param params: its parameters, without the session and the value.
    :param name: the name of the value in them.
    """

    value: str
    method: str
    params: JsonObject
    name: str

    def change(self, session_id: str, value: str) -> JsonObject:
        """Return the parameters of the request that sets a value."""
        return {"sessionId": session_id, **self.params, self.name: value}

    def having(self, value: str) -> "Setting":
        return evolve(self, value=value)


def setting_of(answer: JsonObject, category: Category) -> Setting | None:
    """Return a setting from the answer to a new or loaded session; None if the agent has none."""
    if (option := _option(answer, category)) is not None:
        value = text(option.get("currentValue"))
        params = {"configId": text(option.get("id"))}
        return Setting(value, "session/set_config_option", params, "value")
    plural = answer.get(f"{category}s")
    if not isinstance(plural, Mapping):
        return None
    value = text(plural.get(f"current{category.capitalize()}Id"))
    return Setting(value, f"session/set_{category}", {}, f"{category}Id")


def told_mode(update: JsonObject) -> str | None:
    """Return the mode that an agent tells in an update of a session; None if it tells none."""
    match update.get("sessionUpdate"):
        case "current_mode_update":
            return text(update.get("currentModeId")) or None
        case "config_option_update":
            option = _option(update, "mode") or {}
            mode = text(option.get("currentValue")) or text(
                value_at(update, ["modes", "currentModeId"])
            )
            return mode or None
    return None


def _option(answer: JsonObject, category: Category) -> JsonObject | None:
    options = objects(answer.get("configOptions"))
    return next((one for one in options if one.get("category") == category), None)
