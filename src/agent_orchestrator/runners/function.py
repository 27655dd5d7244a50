"""Runs an async Python function as the agent: the embedded runtime."""

import importlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from attrs import field, frozen

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.ports.runner import Outcome, RunContext

Function = Callable[[RunContext], Awaitable[str | Outcome | None]]


def _loaded(target: Function | str) -> Function:
    """Return the function itself, or the one with the name ``package.module:callable``.

    :raises ConfigError: if there is no such function.
    """
    if not isinstance(target, str):
        return target
    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise ConfigError(f"target {target!r}: must be like package.module:callable")
    try:
        value: object = importlib.import_module(module)
        for name in path.split("."):
            value = getattr(value, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ConfigError(f"target {target!r}: {reason}{_hint(error, module)}") from error
    if not callable(value):
        raise ConfigError(f"target {target!r}: is not callable")
    return value


def _hint(error: BaseException, module: str) -> str:
    """Return a hint for a module that Python does not find; an empty text for other errors."""
    top = module.partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or error.name != top:
        return ""
    hint = "; install the package that has it, or add its directory to PYTHONPATH"
    if os.path.isfile(f"{top}.py") or os.path.isdir(top):
        hint += f" ({top!r} is in {Path.cwd()}, where Python does not search)"
    return hint


@frozen
class FunctionRunner:
    """A function as an agent: ``FunctionRunner("echo", echo)``, or in a file ``target =
    "module:echo"``.

    The function gets the :class:`RunContext`. It may emit events, set a thread and report usage. A
    returned ``str`` is emitted as a message, and is the run's result. A returned :class:`Outcome`
    is the result only, and None is an empty result. To fail a run, raise :class:`AgentFailed`. A
    cancel is anyio's cancellation.

    :param target: the function, or its name as ``package.module:callable``.
    """

    name: str
    target: Function = field(converter=_loaded, metadata={"option": str})

    @property
    def capabilities(self) -> Capabilities:
        """Return its capabilities: those of its context."""
        return Capabilities(steer=True, ask=True, protect=True)

    async def run(self, context: RunContext) -> Outcome:
        """Call the function.

        :raises TypeError: if it returns something else.
        """
        await context.delivered()
        answer = await self.target(context)
        match answer:
            case None:
                return Outcome("")
            case Outcome():
                return answer
            case str():
                if answer:
                    await context.emit(EventType.AGENT_MESSAGE, {"text": answer})
                return Outcome(answer)
        raise TypeError(f"the agent function returned {type(answer).__name__}, not text")
