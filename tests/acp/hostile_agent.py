"""An agent that speaks ACP badly: ``python hostile_agent.py SETTINGS``. The prompt is a function here with its arguments.

SETTINGS is a JSON object: ``session``: the id of its session; ``ends_at``: the method, or the prompt, at which it ends;
``way``: ``exit``, ``close`` (its output, without an exit) or ``kill``.
"""

import json
import os
import signal
import sys
import time

SETTINGS = json.loads(sys.argv[1])
SESSION = SETTINGS.get("session", f"s-{os.getpid()}")
OUT = sys.stdout.buffer
MODES = {"currentModeId": "default", "availableModes": [{"id": "default"}, {"id": "auto"}]}
KINDS = ("allow_always", "allow_once", "reject_always", "reject_once")


def raw(line: bytes) -> None:
    OUT.write(line + b"\n")
    OUT.flush()


def send(**message):
    raw(json.dumps({"jsonrpc": "2.0", **message}).encode())


def note(update, session=None):
    return {
        "jsonrpc": "2.0",
        "method": "session/update",
        "params": {"sessionId": session or SESSION, "update": update},
    }


def update(content, session=None):
    raw(json.dumps(note(content, session)).encode())


def say(text):
    update({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}})


def ask(number, call, options=KINDS):
    choices = (
        [{"optionId": one, "kind": one, "name": one} for one in options]
        if options is KINDS
        else options
    )
    params = {"sessionId": SESSION, "toolCall": call, "options": choices}
    send(id=number, method="session/request_permission", params=params)


def command(number, text="x"):
    return {
        "toolCallId": f"t{number}",
        "kind": "execute",
        "title": text,
        "rawInput": {"command": text},
    }


def repeat(line: bytes, count: int, batch: int = 1000) -> None:
    while count > 0:
        OUT.write((line + b"\n") * min(batch, count))
        count -= batch
    OUT.flush()


def read_all(count):
    """Read answers."""
    return [json.loads(sys.stdin.readline()) for _ in range(count)]


def odd_kinds():
    for kind in ([], {}, 5, True, 1.5, None, "x" * 1000):
        update({"sessionUpdate": kind})
    say("done")


def flood(kind, count, wait=""):
    count = int(count)
    line = (
        {
            "unknown": note({"sessionUpdate": "unknown"}),
            "usage": note(
                {"sessionUpdate": "usage_update", "cost": {"amount": 1, "currency": "USD"}}
            ),
            "commands": note({"sessionUpdate": "available_commands_update"}),
            "mode": note({"sessionUpdate": "current_mode_update", "currentModeId": "auto"}),
            "notification": {"jsonrpc": "2.0", "method": "_x", "params": {"a": 1}},
            "other": note(
                {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "x"}},
                "other",
            ),
            "request": {"jsonrpc": "2.0", "id": "r", "method": "fs/read_text_file", "params": {}},
            "answer": {"jsonrpc": "2.0", "id": 99, "result": {}},
            "chunk": note(
                {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "ab"}}
            ),
            "call": note(
                {"sessionUpdate": "tool_call_update", "toolCallId": "t", "status": "in_progress"}
            ),
            "output": note(
                {
                    "sessionUpdate": "tool_call_update",
                    "toolCallId": "t",
                    "_meta": {"terminal_output_delta": {"data": "ab"}},
                }
            ),
        }[kind]
        if kind != "text"
        else None
    )
    repeat(json.dumps(line).encode() if line else b"no json", count)
    if wait:
        read_all(1)


def big(kind, megabytes):
    """Send one large message."""
    size = int(float(megabytes) * 2**20)
    x = "x" * size
    lines = {"oldText": "a\n" * (size // 4), "newText": "b\n" * (size // 4)}
    diff = {"toolCallId": "t", "kind": "edit", "content": [{"type": "diff", "path": "p", **lines}]}
    files = [{"path": f"p{number}"} for number in range(size // 20)]
    updates = {
        "chunk": {
            "sessionUpdate": "agent_message_chunk",
            "content": {"type": "text", "text": x},
        },
        "unknown": {"sessionUpdate": "unknown", "x": x},
        "kind": {"sessionUpdate": x},
        "call": {"sessionUpdate": "tool_call", **command(1, x)},
        "id": {"sessionUpdate": "tool_call", **command(1), "toolCallId": x},
        "diff": {"sessionUpdate": "tool_call", "status": "completed", **diff},
        "many": {"sessionUpdate": "plan", "entries": [{"content": "x"}] * (size // 20)},
    }
    asked = {
        "ask": command(1, x),
        "askdiff": diff,
        "asklist": {"toolCallId": "t", "kind": "edit", "locations": files},
    }
    answer = None
    if kind in updates:
        update(updates[kind])
    elif kind in asked:
        ask(7, asked[kind])
        read_all(1)
    elif kind == "optionid":
        ask(7, command(1), [{"optionId": x, "kind": "allow_once"}])
        say(str(len(read_all(1)[0]["result"]["outcome"]["optionId"])))
    elif kind == "json":
        raw(b"[" * 10 + b'{"a":' * (size // 5))
    elif kind == "error":
        answer = {"error": {"code": -32603, "message": x, "data": {"details": x}}}
    else:
        answer = {"result": {"stopReason": x}}
    return answer


def calls(count, size):
    for number in range(int(count)):
        update(
            {
                "sessionUpdate": "tool_call",
                "toolCallId": f"t{number}",
                "kind": "other",
                "title": "x",
                "rawInput": {"a": "x" * int(size)},
            }
        )


def ids(count, size):
    for number in range(int(count)):
        update(
            {
                "sessionUpdate": "tool_call_update",
                "toolCallId": f"{number}" + "x" * int(size),
                "status": "completed",
            }
        )


def metas(count, size):
    for number in range(int(count)):
        update(
            {
                "sessionUpdate": "tool_call_update",
                "toolCallId": "t",
                "_meta": {f"k{number}": "x" * int(size)},
            }
        )


def asks(count):
    for number in range(int(count)):
        ask(number + 100, command(number))
    refused = 0
    while True:
        message = json.loads(sys.stdin.readline())
        if message.get("method") == "session/cancel":
            return {"result": {"stopReason": "cancelled"}}
        refused += "error" in message
        if refused == 50:
            say("refused 50")
            update(
                {"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": "-"}}
            )


def hang():
    """Never end, and read nothing any more."""
    say("begun")
    time.sleep(600)


def restless(count):
    """Leave the mode whenever it was set."""
    for _ in range(int(count)):
        update({"sessionUpdate": "current_mode_update", "currentModeId": "auto"})
        send(id=read_all(1)[0]["id"], result={})


def twins():
    for number, text in enumerate(("first", "second")):
        ask(7, command(number, text))
    (refused,) = read_all(1)
    say(f"refused with {refused['error']['code']}")
    update({"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": "-"}})
    say(json.dumps(read_all(1)[0]["result"]))


def many_options():
    always = [{"optionId": f"o{number}", "kind": "allow_always"} for number in range(10_000)]
    once = {"optionId": "once", "kind": "allow_once"}
    ask(7, command(1), [*always, once, {"optionId": "no", "kind": "reject_once"}])
    say(json.dumps(read_all(1)[0]["result"]))


def twin_options():
    ask(
        7,
        command(1),
        [
            {"optionId": "x", "kind": "allow_always"},
            {"optionId": "x", "kind": "allow_once"},
            {"optionId": "no", "kind": "reject_once"},
        ],
    )
    say(json.dumps(read_all(1)[0]["result"]))


def no_kinds():
    ask(
        7,
        command(1),
        [
            {"optionId": "a"},
            {"optionId": "b", "kind": 5},
            "c",
            None,
            {"kind": "allow_once"},
            {"optionId": 5, "kind": "allow_once"},
        ],
    )
    say(json.dumps(read_all(1)[0]["result"]))


def end_while_asking(number):
    ask(1000, command(1))
    time.sleep(0.5)
    send(id=number, result={"stopReason": "end_turn"})
    return "answered"


def late():
    """Say how the late request was answered, once it is."""
    while not GOT:
        note_answer(json.loads(sys.stdin.readline()))
    say(json.dumps(GOT))


GOT = []


def note_answer(message):
    GOT.append([message["id"], message.get("result", message.get("error", {}).get("code"))])


def after_end(number):
    """Answer the prompt, and go on."""
    send(id=number, result={"stopReason": "end_turn"})
    ask(1000, command(1))
    return "answered"


def end():
    match SETTINGS["way"]:
        case "exit":
            os._exit(3)
        case "close":
            os.close(1)
            time.sleep(600)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)


def serve():
    global SESSION  # noqa: PLW0603 - it is the one of the process
    while line := sys.stdin.readline():
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        if method is not None and method == SETTINGS.get("ends_at"):
            end()
        if method is None:
            note_answer(message)
            continue
        match method:
            case "initialize":
                send(
                    id=number,
                    result={
                        "protocolVersion": 1,
                        "agentCapabilities": {"sessionCapabilities": {"resume": {}}},
                    },
                )
            case "session/new":
                send(id=number, result={"sessionId": SESSION, "modes": MODES})
            case "session/resume":
                SESSION = message["params"]["sessionId"]
                send(id=number, result={"modes": MODES})
            case "session/set_mode":
                send(id=number, result={})
            case "session/prompt":
                name, *arguments = message["params"]["prompt"][0]["text"].split()
                if name == SETTINGS.get("ends_at"):
                    end()
                if name == "hello":
                    say("hello")
                    send(id=number, result={"stopReason": "end_turn"})
                    continue
                function = globals()[name]
                if name in ("after_end", "end_while_asking"):
                    arguments = [number]
                answer = function(*arguments)
                if answer != "answered":
                    send(id=number, **(answer or {"result": {"stopReason": "end_turn"}}))


if __name__ == "__main__":
    serve()
