"""A parameter is declared once for all: client, runner, HTTP, tools, agentctl."""

import inspect
from functools import partial
from typing import Any

import anyio
import click
import pytest

from agent_orchestrator import fields
from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.fields import specs
from agent_orchestrator.operations import options
from agent_orchestrator.operations import requests as request_calls
from agent_orchestrator.operations import sessions as session_calls
from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.testing.runners import RecordingContext
from agent_orchestrator.tools.arguments import input_schema
from agent_orchestrator.tools.toolbox import TOOLS, read_arguments
from agent_orchestrator.wire.openapi import openapi_document
from agentctl.commands.tool import session_reply_parent, session_spawn


def _parameters(method: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(method).parameters)
    del found["self"]
    return found


def test_spawn_has_the_same_parameters_everywhere() -> None:
    declared = specs(options.SpawnOptions)
    assert declared.keys() == _parameters(RunContext.spawn).keys()
    assert declared.keys() | {"run_id", "session_id"} == _parameters(Client.spawn).keys()
    assert declared.keys() <= {parameter.name for parameter in session_spawn.params}
    for_agents = {name for name, spec in declared.items() if spec.limits.for_agents}
    assert input_schema(TOOLS["session_spawn"].arguments)["properties"].keys() == for_agents
    for path in ("/runs/{run_id}/spawn", "/sessions/{session_id}/spawn"):
        body = openapi_document("0")["paths"][path]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert schema["properties"].keys() == declared.keys()


def test_question_has_the_same_parameters_everywhere() -> None:
    declared = specs(options.QuestionDetails).keys()
    assert declared < _parameters(RunContext.ask_parent).keys()
    assert declared < _parameters(RecordingContext.ask_parent).keys()
    assert specs(request_calls.ReplyParent).keys() == _parameters(Client.reply_parent).keys()
    assert declared < input_schema(TOOLS["session_reply_parent"].arguments)["properties"].keys()
    assert declared < {parameter.name for parameter in session_reply_parent.params}


class Taking:
    @fields.takes(request_calls.ReplyParent)
    async def reply(self, request: request_calls.ReplyParent) -> request_calls.ReplyParent:
        return request


def test_field_is_also_accepted_under_its_alias() -> None:
    named: dict[str, Any] = {"timeout_s": 5.0}
    assert anyio.run(partial(Taking().reply, "run_1", "?", **named)).expires_in_s == 5


def test_only_required_parameters_are_positional() -> None:
    signature = inspect.signature(Client.send_message)
    bound = signature.bind(None, "ses_1", "hello", when_busy="steer")
    assert bound.arguments["text"] == "hello"
    with pytest.raises(TypeError):
        signature.bind(None, "ses_1", "hello", "user")


def test_option_of_agentctl_has_the_bounds_of_its_field() -> None:
    (option,) = (one for one in session_spawn.params if one.name == "max_depth")
    limits = specs(options.SpawnOptions)["max_depth"].limits
    assert isinstance(option.type, click.IntRange)
    assert (option.type.min, option.type.max) == (limits.minimum, limits.maximum)


def test_docstring_of_a_client_method_describes_its_fields() -> None:
    doc = Client.spawn.__doc__ or ""
    for name in specs(options.SpawnOptions):
        assert doc.count(f":param {name}:") == 1
    assert doc.index(":param max_depth:") < doc.index(":raises InvalidRequest:")


def test_fields_that_are_not_for_agents_are_refused_as_tool_arguments() -> None:
    for name, value in {"approvals": "allow", "metadata": {}}.items():
        with pytest.raises(InvalidRequest) as caught:
            read_arguments(options.SpawnOptions, {"task": "x", name: value})
        assert caught.value.details["fields"] == {name: fields.NOT_A_FIELD}


def test_the_largest_number_is_named_exactly() -> None:
    problems = fields.problems(session_calls.MarkSeen, {"session_id": "ses_1", "seq": 2**63})
    assert problems == {"seq": "must be between 0 and 9,223,372,036,854,775,807"}
