import anyio
import pytest

from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.ports.runner import Outcome
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.testing.runners import RecordingContext, RunnerContract

pytestmark = pytest.mark.anyio


async def agent(context):
    match context.prompt:
        case "last":
            await anyio.sleep(60)
        case "fail":
            raise AgentFailed("denied", "I would rather not")
        case "delegate":
            await context.tools.call("session_spawn", {"task": "a part"})
    return f"you said {context.prompt}"


class TestFunctionContract(RunnerContract):
    answer = "you said succeed"
    delegating = "delegate"
    failure_code = "denied"

    def make_runner(self):
        return FunctionRunner("mine", agent)


@pytest.mark.parametrize(
    ("answer", "text", "messages"),
    [("hi", "hi", ["hi"]), ("", "", []), (None, "", []), (Outcome("so", 3), "so", [])],
)
async def test_the_value_that_a_function_returns_is_the_result(tmp_path, answer, text, messages):
    async def function(context):
        return answer

    context = RecordingContext("", cwd=tmp_path)
    outcome = await FunctionRunner("mine", function).run(context)
    assert outcome.text == text
    assert context.texts() == messages


async def test_a_function_that_returns_another_type_is_a_type_error(tmp_path):
    async def function(context):
        return 7

    with pytest.raises(TypeError, match="int"):
        await FunctionRunner("mine", function).run(RecordingContext("", cwd=tmp_path))


async def test_a_function_can_be_named_by_module_and_name(tmp_path):
    runner = FunctionRunner("mine", f"{__name__}:agent")
    assert (await runner.run(RecordingContext("x", cwd=tmp_path))).text == "you said x"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("agent", "package.module:callable"),
        (":agent", "package.module:callable"),
        ("no_such_module:agent", "No module named"),
        (f"{'x' * 300}:agent", "No module named"),
        (f"{__name__}:nobody", "no attribute 'nobody'"),
        (f"{__name__}:__name__", "not callable"),
    ],
)
async def test_a_named_function_that_does_not_exist_is_a_configuration_error(target, words):
    with pytest.raises(ConfigError, match=words):
        FunctionRunner("mine", target)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys; sys.exit(4)", "SystemExit: 4"),
        ("import sys; sys.exit()", "SystemExit$"),
        ("raise BaseException('no way')", "BaseException: no way"),
        ("raise ValueError", "ValueError$"),
    ],
)
def test_a_module_that_exits_while_imported_is_a_configuration_error(
    tmp_path, monkeypatch, source, words
):
    (tmp_path / "ending_agent.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"target 'ending_agent:agent': {words}"):
        FunctionRunner("mine", "ending_agent:agent")


def test_a_keyboard_interrupt_during_the_import_is_raised(tmp_path, monkeypatch):
    (tmp_path / "interrupted_agent.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        FunctionRunner("mine", "interrupted_agent:agent")
