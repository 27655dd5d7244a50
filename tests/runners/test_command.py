import json
import os
import sys
from pathlib import Path

import anyio
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import open_embedded
from agent_orchestrator.domain.errors import AgentFailed, ConfigError
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.runners.command import CommandRunner, FailRule, Rule, UsagePaths
from agent_orchestrator.runners.command.runner import MAX_RESULT
from agent_orchestrator.testing.runners import RecordingContext, tagged_processes

AGENT = (sys.executable, "-S", str(Path(__file__).parent / "agents.py"))


MAP = (
    Rule({"type": "session"}, thread="$.id"),
    Rule({"type": "say"}, emit="agent.message", data={"text": "$.message.parts[0].text"}),
    Rule(
        {"type": "tool", "state.done": True},
        emit="tool.completed",
        data={"tool_id": "$.id", "kind": "function", "name": "$$name", "all": "$", "x": ["$.no"]},
    ),
    Rule(
        {"type": ["done", "end"]},
        result="$.text",
        usage=UsagePaths(input_tokens="$.usage.in", output_tokens="$.usage.out"),
    ),
    Rule({"type": "error"}, fail=FailRule("rate_limited", "$.error")),
)


@pytest.fixture
async def execute(tmp_path):
    async def execute(runner, prompt="", **options):
        context = RecordingContext(prompt, cwd=tmp_path, **options)
        with anyio.fail_after(60):
            try:
                context.outcome = await runner.run(context)
            except AgentFailed as failure:
                context.outcome, context.failure = None, failure
        assert tagged_processes(context.tag) == []
        return context

    return execute


def command(*scene, **options):
    return CommandRunner("mine", [*AGENT, *scene], **options)


pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


async def test_every_line_is_a_message_and_all_lines_are_the_result(execute):
    context = await execute(command("separators"))
    assert context.texts() == ["one\u2028still one\u0085still\rone", "two\r"]
    assert context.outcome.text == "one\u2028still one\u0085still\rone\ntwo\r"
    assert context.outcome.exit_code == 0


async def test_text_output_is_one_message(execute):
    context = await execute(command("print", "a\n\nb\n", output="text"))
    assert context.texts() == ["a\n\nb\n"]
    assert context.outcome.text == "a\n\nb\n"


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a\n",
        "a\n\n",
        "\n",
        "\r\n",
        "a\r\nb\r\n",
        " \n\n",
        "\u2028",
        "\ufeffa\n",
        "a\rb\r",
        "\f\v\x1c",
    ],
)
async def test_text_is_kept_byte_for_byte(execute, text):
    context = await execute(command("print", text, output="text"))
    assert context.texts() == [text]
    assert context.outcome.text == text


async def test_text_over_the_limit_is_cut_and_says_so(execute):
    size = MAX_RESULT + 5
    context = await execute(command("big-line", str(size), output="text"))
    [(_, data)] = context.events
    assert data["truncated"]["size"] == size + len("\nafter\n")
    assert data["text"] == context.outcome.text
    assert context.outcome.text.endswith(f"\n[cut: the output had {size + 7:,} bytes]")


async def test_an_agent_without_output_makes_no_message(execute):
    context = await execute(command("print", "", output="text"))
    assert (context.events, context.outcome.text) == ([], "")


@pytest.mark.parametrize("output", ["lines", "text", "jsonl"])
@pytest.mark.parametrize(
    ("scene", "text"),
    [("invalid-utf8", "caf\ufffd \ufffd\ufffd"), ("nul", "a\0b"), ("no-newline", "first\nlast")],
)
async def test_unusual_output_is_kept_as_text(execute, scene, text, output):
    context = await execute(command(scene, output=output))
    if output == "jsonl":
        payloads = [data["payload"]["text"] for _, data in context.events]
        assert payloads == text.split("\n")
    else:
        assert context.outcome.text.removesuffix("\n") == text


@pytest.mark.parametrize("output", ["lines", "text"])
async def test_a_line_of_50_megabytes_is_read(execute, output):
    size = 50 * 2**20
    context = await execute(command("big-line", str(size), output=output))
    assert len(context.outcome.text.removesuffix("\n")) == size + len("\nafter")
    assert sum(len(text) for text in context.texts()) >= size


@pytest.mark.parametrize("output", ["lines", "jsonl"])
async def test_a_line_over_the_limit_is_cut_and_says_so(execute, output):
    size = 65 * 2**20
    context = await execute(command("big-line", str(size), output=output))
    _, data = context.events[0]
    data = data.get("payload", data)
    assert data["truncated"]["size"] == size
    assert len(data["truncated"]["sha256"]) == 64
    assert len(data["text"]) == 2**16


@pytest.mark.parametrize(
    ("scene", "words", "exit_code"),
    [
        (("exit", "3"), "exited with 3", 3),
        (("complain",), "no such model", 3),
        (("die", "9"), "killed by SIGKILL", -9),
        (("die", "11"), "killed by SIGSEGV", -11),
    ],
)
async def test_a_crash_reports_the_last_output_of_the_agent(execute, scene, words, exit_code):
    failure = (await execute(command(*scene))).failure
    assert (failure.code, failure.message) == ("agent_crashed", words)
    assert failure.exit_code == exit_code


async def test_stderr_is_kept_for_diagnosis(execute):
    assert (await execute(command("complain"))).stderr == "warming up\nno such model\n\n"


async def test_a_missing_program_is_provider_unavailable(execute):
    runner = CommandRunner("mine", ["no-such-agent"])
    context = await execute(runner)
    assert context.failure.code == "provider_unavailable"
    assert context.calls == []
    availability = await runner.probe(os.environ)
    assert not availability.available
    assert "no-such-agent" in availability.reason


async def test_the_version_is_queried_once(tmp_path, monkeypatch):
    monkeypatch.setattr("agent_orchestrator.runners.command.runner._VERSION_S", 60.0)
    program = tmp_path / "agent"
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/log\necho agent 7.1\necho more\n")
    program.chmod(0o755)
    runner = CommandRunner("mine", [str(program)], version_argv=[str(program), "--version"])
    for _ in range(3):
        assert (await runner.probe(os.environ)).version == "agent 7.1"
    assert (tmp_path / "log").read_text() == "asked\n"


async def test_a_version_query_that_times_out_is_not_repeated(tmp_path):
    program = tmp_path / "agent"
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/log\ntrap '' INT TERM\nsleep 300\n")
    program.chmod(0o755)
    runner = CommandRunner("mine", [str(program)], version_argv=[str(program), "-V"])
    with anyio.fail_after(60):
        for _ in range(3):
            found = await runner.probe(os.environ)
            assert (found.available, found.version) == (True, None)
            assert found.reason == (
                f"`{program} -V` did not print its version: it did not answer within 2 s"
            )
    assert (tmp_path / "log").read_text() == "asked\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["true"], "it printed none"), (["no-such-agent"], "no-such-agent is not installed")],
)
async def test_a_failed_version_query_is_reported_and_the_program_is_available(
    argv, words, monkeypatch
):
    monkeypatch.setattr("agent_orchestrator.runners.command.runner._VERSION_S", 60.0)
    found = await CommandRunner("mine", ["true"], version_argv=argv).probe(os.environ)
    assert (found.available, found.version) == (True, None)
    assert words in found.reason


# --- the program --------------------------------------------------------------------------------


def script(path, first_line):
    path.write_text(f"{first_line}\necho hello\n")
    path.chmod(0o755)
    return str(path)


LONG = "x" * 300
"""More characters than a file name can have."""


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("no-such-agent", "no-such-agent is not on the PATH"),
        ("/nowhere/agent", "there is no file /nowhere/agent"),
        ("/etc/passwd/agent", "there is no file /etc/passwd/agent"),
        ("/tmp", "/tmp is a directory"),
        ("/etc/passwd", "/etc/passwd is not executable"),
        ("/dev/null", "/dev/null is not executable"),
        (f"/tmp/{LONG}", f"/tmp/{LONG}: File name too long"),
        (LONG, f"{LONG} is not on the PATH"),
    ],
)
async def test_a_program_that_cannot_be_run_is_unavailable_with_the_reason(program, reason):
    found = await CommandRunner("mine", [program]).probe(os.environ)
    assert (found.available, found.reason) == (False, reason)


@pytest.mark.parametrize(
    ("first_line", "problem"),
    [
        ("#!/nowhere/sh", "'/nowhere/sh' does not exist"),
        ("#! /nowhere/sh -e", "'/nowhere/sh' does not exist"),
        ("#!/bin/sh\r", r"'/bin/sh\r' does not exist"),
        ("#!/usr/bin/env no-such-node", "'no-such-node' is not on the PATH"),
        ("#!/usr/bin/env -S no-such-node --flag", "'no-such-node' is not on the PATH"),
        ("#!/bin/sh", None),
        ("#!/usr/bin/env -S sh -e", None),
        ("#!/usr/bin/env A=1 sh", None),
        ("no shebang", None),
    ],
)
async def test_a_script_with_a_missing_interpreter_is_unavailable(tmp_path, first_line, problem):
    program = script(tmp_path / "agent", first_line)
    found = await CommandRunner("mine", [program]).probe(os.environ)
    assert found.available is (problem is None)
    if problem is not None:
        assert found.reason == f"{program} cannot be run: its interpreter {problem}"


async def test_the_program_is_searched_on_the_path_of_the_agent(tmp_path):
    script(tmp_path / "agent", "#!/bin/sh")
    runner = CommandRunner("mine", ["agent"])
    assert (await runner.probe({"PATH": str(tmp_path)})).available
    assert not (await runner.probe({})).available


async def test_a_relative_program_is_resolved_when_the_runner_is_created(
    tmp_path, monkeypatch, execute
):
    made, elsewhere = tmp_path / "made", tmp_path / "elsewhere"
    made.mkdir()
    elsewhere.mkdir()
    script(made / "agent", "#!/bin/sh")
    monkeypatch.chdir(made)
    runner = CommandRunner("mine", ["./agent"])
    monkeypatch.chdir(elsewhere)
    assert (await runner.probe(os.environ)).available
    context = await execute(runner)
    assert context.outcome.text == "hello"
    assert context.invocation.argv[0] == str(made / "agent")


# --- the prompt ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    # The test's name is in the environment of its processes, which has no room for all of it.
    ["-x", "a\0b", "two\nlines", "😀\u2028", pytest.param("x" * 900_000, id="long")],
)
async def test_any_prompt_can_be_passed_on_stdin(execute, prompt):
    context = await execute(command("echo", output="text"), prompt)
    assert context.outcome.text == prompt


@pytest.mark.parametrize(
    "prompt", ["-x", "two\nlines", "{thread} {prompt}", pytest.param("😀" * 32_000, id="long")]
)
@pytest.mark.parametrize("scene", [("print",), ("print", "{prompt}")])
async def test_any_prompt_can_be_passed_as_an_argument(execute, prompt, scene):
    context = await execute(command(*scene, prompt="argument", output="text"), prompt)
    assert context.outcome.text == prompt
    assert context.invocation.argv[-1] == "{prompt}"


async def test_a_prompt_can_be_part_of_an_argument(execute):
    runner = command("print", "--prompt={prompt}", prompt="argument")
    assert (await execute(runner, "-x")).outcome.text == "--prompt=-x"


async def test_the_longest_argument_is_passed_and_a_longer_one_fails(execute):
    runner = command("print", prompt="argument")
    assert (await execute(runner, "x" * 131_071)).outcome.text == "x" * 131_071
    failure = (await execute(runner, "x" * 131_072)).failure
    assert failure.code == "invalid_config"
    assert "131,072 bytes" in failure.message


async def test_a_nul_character_in_an_argument_fails_the_run(execute):
    context = await execute(command("print", prompt="argument"), "a\0b")
    assert context.failure.code == "invalid_config"
    assert "NUL" in context.failure.message
    assert context.calls == []


# --- conversations ------------------------------------------------------------------------------


async def test_a_conversation_is_resumed(execute):
    runner = command(
        "jsonl",
        '{"type":"session","id":"t-1"}',
        output="jsonl",
        map=MAP,
        resume_argv=[*AGENT, "jsonl", '{"type":"done","text":"{thread}"}'],
    )
    first = await execute(runner)
    assert first.thread == Thread("t-1", {})
    assert (await execute(runner, thread=first.thread)).outcome.text == "t-1"


async def test_a_thread_id_that_looks_like_an_option_is_refused(execute):
    runner = command("jsonl", '{"type":"session","id":"--evil"}', output="jsonl", map=MAP)
    context = await execute(runner)
    assert context.thread is None
    [(kind, data)] = context.events
    assert kind == "run.error"
    assert "--evil" in data["message"]
    resuming = command("print", resume_argv=[*AGENT, "print", "{thread}"])
    failure = (await execute(resuming, thread=Thread("--evil", {}))).failure
    assert failure.code == "thread_missing"


async def test_a_thread_that_is_not_resumed_may_have_any_id(execute):
    context = await execute(command("print", "anew"), thread=Thread("of: another runner", {}))
    assert context.outcome.text == "anew"


# --- the table ----------------------------------------------------------------------------------


async def objects(execute, *values, rules=MAP):
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return await execute(command("jsonl", "|".join(lines), output="jsonl", map=rules))


async def test_the_rules_convert_objects_to_events(execute):
    say = {"type": "say", "message": {"parts": [{"text": "hi \ud800"}]}}
    tool = {"type": "tool", "id": 5, "state": {"done": True}}
    done = {"type": "end", "text": "bye", "usage": {"in": 7, "out": 2.0, "other": 1}}
    context = await objects(execute, say, tool, done)
    assert context.events == [
        ("agent.message", {"text": "hi \ufffd"}),
        (
            "tool.completed",
            {"tool_id": 5, "kind": "function", "name": "$name", "all": tool, "x": []},
        ),
    ]
    assert context.outcome.text == "bye"
    assert context.usage == Usage(input_tokens=7, output_tokens=2)


async def test_the_last_message_is_the_result_if_no_rule_defines_it(execute):
    values = [{"type": "say", "message": {"parts": [{"text": t}]}} for t in ("one", "two")]
    assert (await objects(execute, *values)).outcome.text == "two"


BLOCKS = (
    Rule(
        {"type": "assistant"},
        each="$.message.content",
        map=(
            Rule({"type": "text"}, emit="agent.message", data={"text": "$.text"}),
            Rule({"type": "tool_use"}, emit="tool.started", data={"tool_id": "$.id"}),
            Rule({"type": "list"}, each="$.parts", map=(Rule({"k": 1}, result="$.v"),)),
            Rule({"type": "fail"}, fail=FailRule("rate_limited", "$.why")),
        ),
        usage=UsagePaths(input_tokens="$.in"),
    ),
    Rule(
        {"type": "both"},
        emit="plan.updated",
        data={"n": "$.n"},
        each="$.x",
        map=(Rule(emit="agent.reasoning", data={"text": "$"}),),
    ),
)


def blocks(content):
    return {"type": "assistant", "message": {"content": content}}


async def test_a_rule_can_be_applied_to_each_entry_of_a_list(execute):
    said = blocks(
        [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1"},
            {"type": "list", "parts": [{"k": 1, "v": "found"}, {"k": 2}]},
            {"type": "new"},
            "odd",
            7,
            None,
            [1],
        ]
    )
    context = await objects(execute, {**said, "in": 5}, rules=BLOCKS)
    assert context.events == [
        ("agent.message", {"text": "I look."}),
        ("tool.started", {"tool_id": "t1"}),
        ("backend.event", {"kind": "object", "payload": {"k": 2}}),
        ("backend.event", {"kind": "new", "payload": {"type": "new"}}),
        *[
            ("backend.event", {"kind": "object", "payload": {"entry": odd}})
            for odd in ("odd", 7, None, [1])
        ],
    ]
    assert context.outcome.text == "found"
    assert context.usage.input_tokens == 5


async def test_rules_apply_to_an_object_and_to_its_list(execute):
    context = await objects(execute, {"type": "both", "n": 1, "x": ["a", "b"]}, rules=BLOCKS)
    assert [kind for kind, _ in context.events] == ["plan.updated"] + ["agent.reasoning"] * 2


async def test_a_failure_in_a_list_fails_the_run(execute):
    said = blocks([{"type": "fail", "why": "slow down"}, {"type": "text", "text": "bye"}])
    context = await objects(execute, said, rules=BLOCKS)
    assert (context.failure.code, context.failure.message) == ("rate_limited", "slow down")
    assert context.texts() == ["bye"]


@pytest.mark.parametrize(
    "content", [None, {}, {"0": {"type": "text", "text": "a"}}, "text", 5, [], True]
)
async def test_a_value_that_is_not_a_list_is_recorded_unchanged(execute, content):
    context = await objects(execute, blocks(content), {"type": "assistant"}, rules=BLOCKS)
    assert context.events == [
        ("backend.event", {"kind": "assistant", "payload": said})
        for said in (blocks(content), {"type": "assistant"})
    ]


async def test_a_long_list_makes_a_thousand_events_and_one_with_the_rest(execute):
    entries = [{"type": "text", "text": str(n)} for n in range(2_500)]
    nested = [{"type": "list", "parts": [{"k": 2, "n": n} for n in range(1_500)]}, *entries[:3]]
    context = await objects(execute, blocks(entries), blocks(nested), rules=BLOCKS)
    assert context.texts() == [str(n) for n in range(1_000)]
    rests = [data["payload"]["entries"] for _, data in context.events if data.get("kind") == "rest"]
    assert rests[0] == entries[1_000:]
    assert rests[1:] == [nested[0]["parts"][999:], nested[1:]]
    assert len(context.events) == 1_000 + 1 + 999 + 2


async def test_a_list_of_deeply_nested_values_is_recorded(execute):
    for depth in (40, 900):
        deep = json.dumps(blocks("x")).replace('"x"', "[" * depth + "]" * depth)
        context = await objects(execute, deep, rules=BLOCKS)
        [(kind, data)] = context.events
        assert (kind, "[" * 8 in str(data)) == ("backend.event", True)


async def test_objects_without_a_rule_are_recorded(execute):
    odd = [
        {"type": "news", "n": 1},
        {"type": 5},
        {"type": "say", "message": "no parts"},
        {"type": "tool", "state": {"done": 1}},
    ]
    context = await objects(execute, *odd, "plain text", "[1]", "   ")
    assert [kind for kind, _ in context.events] == ["backend.event"] * 6
    assert [data["payload"] for _, data in context.events] == [
        *odd,
        {"text": "plain text"},
        {"text": "[1]"},
    ]
    assert [data["kind"] for _, data in context.events] == [
        "news",
        "object",
        "say",
        "tool",
        "text",
        "text",
    ]


async def test_deeply_nested_objects_do_not_fail_the_run(tmp_path):
    rules = [Rule({"type": "tool"}, emit="tool.started", data={"input": {"all": "$"}})]
    output = tmp_path / "output"
    lines = [
        f'{{"type":"{kind}","a":{"[" * depth}{"]" * depth}}}'
        for kind in ("news", "tool")
        for depth in range(10, 1100)
    ]
    output.write_text("\n".join(lines))
    runner = CommandRunner("mine", ["cat", str(output)], output="jsonl", map=rules)
    async with open_embedded(tmp_path / "store.db", runners=[runner]) as client:
        session = await client.create_session(cwd=str(tmp_path))
        sent = await client.send_message(session.id, "go")
        run = (await client.wait_run(sent.run.id)).run
        kept = [event.data async for event in client.events(session.id)]
    assert run.error is None
    assert sum(("kind" in data and "payload" in data) or "input" in data for data in kept) == len(
        lines
    )


async def test_objects_without_the_value_that_a_rule_needs_are_recorded(execute):
    odd = [
        {"type": "session", "session_id": "abc"},
        {"type": "done", "text": ["a", "b"], "usage": {"in": 1}},
        {"type": "done", "text": "bye", "usage": {"in": "many"}},
        {"type": "error", "error": {"deep": 1}},
    ]
    context = await objects(execute, *odd)
    assert context.events == [
        ("backend.event", {"kind": value["type"], "payload": value}) for value in odd
    ]
    assert context.failure.message == "the agent reported an error"


async def test_usage_that_is_reported_in_parts_is_merged(execute):
    rule = Rule({}, usage=UsagePaths("$.in", "$.cached", "$.out", "$.cost"))
    values = [{"in": 5, "out": 1}, {"in": 9, "cached": 3, "out": 2}, {"cost": 0.5}, {"out": -1}]
    context = await objects(execute, *values, rules=[rule])
    assert context.usage == Usage(9, 3, 2, 0.5)


async def test_a_reported_failure_fails_the_run_and_later_output_is_recorded(execute):
    error = {"type": "error", "error": "slow down"}
    context = await objects(execute, error, {"type": "late"})
    assert (context.failure.code, context.failure.message) == ("rate_limited", "slow down")
    assert context.failure.exit_code == 0
    assert len(context.events) == 1
    context = await objects(execute, {"type": "error", "error": {"deep": 1}})
    assert context.failure.message == "the agent reported an error"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule({"type": "x"}), r"map\[0\]: needs one"),
        (Rule(each="$.x"), r"map\[0\].map: is required"),
        (Rule(emit="run.error", map=(Rule(emit="run.error"),)), r"map\[0\].map: needs"),
        (Rule(each="x", map=(Rule(emit="run.error"),)), r"map\[0\].each: must be a path"),
        (Rule(each="$.x[", map=(Rule(emit="run.error"),)), r"map\[0\].each: .* is not a path"),
        (Rule(each="$.x", map=(Rule(),)), r"map\[0\].map\[0\]: needs one"),
        (Rule(emit="run.completed"), r"map\[0\].emit: must be one of"),
        (Rule(emit="agent.message"), r"map\[0\].data.text: is required"),
        (Rule(thread="$id"), r"map\[0\].thread: '\$id' is not a path"),
        (Rule(thread="$.a..b"), r"map\[0\].thread: 'a..b' is not a path"),
        (Rule({"a.[": 1}, thread="$.a"), r"map\[0\].when"),
        (Rule(data={"a": 1}, thread="$.a"), r"map\[0\].data: needs"),
        (Rule(emit="plan.updated", data={"a": ["$.["]}), r"map\[0\].data.a\[0\]"),
        (Rule(fail=FailRule("oops")), r"map\[0\].fail.code: must be one of"),
        (Rule(usage=UsagePaths(cost_usd="cost")), r"map\[0\].usage.cost_usd"),
    ],
)
async def test_an_invalid_rule_is_named_with_its_path(rule, words):
    with pytest.raises(ConfigError, match=words):
        command(output="jsonl", map=[rule])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"argv": []}, "argv: must name a program"),
        ({"argv": ["a", "{thread}"]}, "argv: {thread}"),
        ({"argv": ["a", "{prompt}"]}, "argv: {prompt}"),
        ({"argv": ["a"], "resume_argv": ["a", "{thread}", "{prompt}"]}, "^resume_argv: {prompt}"),
        ({"argv": ["a"], "resume_argv": ["a"]}, "resume_argv: must contain {thread}"),
        ({"argv": ["a"], "map": [Rule(thread="$.id")]}, "map: needs"),
        ({"argv": ["a"], "stop_grace_s": -1}, "stop_grace_s"),
        ({"argv": ["a\0b"]}, r"^argv\[0\]: contains a NUL"),
        ({"argv": ["a", "b", "c\0"]}, r"^argv\[2\]: contains a NUL"),
        ({"argv": ["a"], "version_argv": ["a", "\0"]}, r"^version_argv\[1\]: contains a NUL"),
        ({"argv": ["a", "x" * 131_072]}, r"^argv\[1\]: is longer than the 131,071 bytes"),
    ],
)
async def test_invalid_options_are_configuration_errors(options, words):
    with pytest.raises(ConfigError, match=words):
        CommandRunner("mine", **options)


async def test_the_agent_gets_the_environment_of_the_context(execute):
    context = await execute(command("environ"), env={"EXTRA": "1"})
    seen = json.loads(context.outcome.text)
    assert seen.items() >= context.env.items()
    assert os.environ.items() <= seen.items()
