"""An agent that speaks ACP and does what it is told: ``python scripted_agent.py [SETTINGS] acp``.

SETTINGS is a JSON object: ``version`` of the protocol; ``mode`` to start in and ``modes`` to have; ``resumes``, ``loads``;
``steers``; ``sticky``: it does not change its mode; ``mute``: methods that it never answers; ``refuses``: methods with
the code that they are refused with; ``sessions``: a directory of the sessions that it knows; ``deaf``: it does not end on SIGTERM;
``first``: a directory that it fills at its first start, in a second, and alone; ``late_replay``: it repeats a conversation after the answer, ``endless``: without end; ``otherwise``: what it
does for a prompt that is not a list; ``says``, ``says_more``: values in its
answer to ``initialize``.

A prompt is a list of steps in JSON:

======================= ===============================================================
["update", {…}]         send an update of the session
["say", TEXT]           a piece of a message
["tool"]                a tool call that is completed
["ask", {…}, [KIND, …]] ask for permission for a tool call, with options of these kinds, and keep the answer
["withdraw", {…}]       ask, and withdraw the question when the file ``been-asked`` is there
["request", METHOD]     send a request, and keep the answer
["notify", METHOD, {…}] send a notification
["answer"]              say the last answer
["steered"]             wait for a message during the turn, and keep it as the answer
["variable", NAME]      say the value of an environment variable
["model"]               say which model it has
["mode"]                say which mode it is in, and how often that was set
["leave", mode]         go into another mode by itself, and tell so
["raw", TEXT]           write a line
["stderr", TEXT]        write a line on stderr
["line", N]             write a line of N bytes that is no message
["run", [ARGV…]]        start a program, and do not wait for it
["touch", PATH]         make a file
["sleep", SECONDS]      wait; a cancel ends the turn
["deaf"]                wait for ever, and do not hear a cancel
["exit", CODE]          exit, after a line on stderr
["error", CODE, TEXT, DATA] answer the prompt with an error
["end", {…}]            answer the prompt with this result
======================= ===============================================================

A prompt that is not a list is said again, unless it has ``otherwise``. A prompt in JSON with other steps ends as ``end_turn`` after them.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

given = [argument for argument in sys.argv[1:] if argument.startswith("{")]
SETTINGS = json.loads(given[0]) if given else {}
INCOMING: "queue.Queue[dict | None]" = queue.Queue()
state = {"mode": SETTINGS.get("mode", "auto"), "model": "small", "session": None, "answer": None}
state["sets"] = 0
numbers = iter(range(10**9))


def send(**message):
    text = json.dumps({"jsonrpc": "2.0", **message})
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read():
    for line in sys.stdin:
        INCOMING.put(json.loads(line))
    INCOMING.put(None)


def known():
    directory = SETTINGS.get("sessions")
    return Path(directory) if directory else None


def options():
    modes = SETTINGS.get("modes", ["default", "auto"])
    return [
        {
            "id": "mode",
            "category": "mode",
            "type": "select",
            "currentValue": state["mode"],
            "options": [{"value": one, "name": one} for one in modes],
        },
        {
            "id": "model",
            "category": "model",
            "type": "select",
            "currentValue": state["model"],
            "options": [{"value": "small", "name": "Small"}, {"value": "large", "name": "Large"}],
        },
    ]


def update(content):
    send(method="session/update", params={"sessionId": state["session"], "update": content})


def say(text):
    update({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}})


class Canceled(Exception):
    pass


def wait_for(number):
    """Return the answer to a request of ours."""
    while True:
        message = INCOMING.get()
        if message is None:
            sys.exit()
        if message.get("id") == number and "method" not in message:
            return message
        if message.get("method") == "session/cancel":
            raise Canceled
        handle(message)


def ask(call, kinds, withdraws=False):
    number = next(numbers)
    choices = [
        {"optionId": f"{kind}-{i}", "name": kind, "kind": kind} for i, kind in enumerate(kinds)
    ]
    params = {"sessionId": state["session"], "toolCall": call, "options": choices}
    send(id=number, method="session/request_permission", params=params)
    if withdraws:
        while not Path("been-asked").exists():
            time.sleep(0.01)
        send(method="$/cancel_request", params={"requestId": number})
        return
    answer = wait_for(number)
    state["answer"] = answer.get("result", answer.get("error"))


def sleep(seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            message = INCOMING.get(timeout=left)
        except queue.Empty:
            return
        if message is None:
            sys.exit()
        if message.get("method") == "session/cancel":
            raise Canceled
        handle(message)


def do(step):
    match step:
        case ["update", content]:
            update(content)
        case ["say", text]:
            say(text)
        case ["tool"]:
            state["tools"] = number = state.get("tools", 0) + 1
            done = {"kind": "read", "title": "x", "status": "completed"}
            update({"sessionUpdate": "tool_call", "toolCallId": f"tool {number}", **done})
        case ["ask", call, kinds]:
            ask(call, kinds)
        case ["withdraw", call]:
            ask(call, ["allow_once", "reject_once"], withdraws=True)
        case ["request", method]:
            number = next(numbers)
            send(id=number, method=method, params={})
            answer = wait_for(number)
            state["answer"] = answer.get("result", answer.get("error"))
        case ["notify", method, params]:
            send(method=method, params=params)
        case ["answer"]:
            say(json.dumps(state["answer"]))
        case ["steered"]:
            state["answer"] = None
            while state["answer"] is None:
                handle(INCOMING.get())
        case ["variable", name]:
            say(os.environ.get(name, ""))
        case ["model"]:
            say(state["model"])
        case ["mode"]:
            say(f"{state['mode']}, set {state['sets']} times")
        case ["leave", mode]:
            state["mode"] = mode
            update({"sessionUpdate": "current_mode_update", "currentModeId": mode})
        case ["raw", text]:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        case ["stderr", text]:
            print(text, file=sys.stderr, flush=True)
        case ["line", size]:
            sys.stdout.write("x" * size + "\n")
            sys.stdout.flush()
        case ["run", argv]:
            program = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL)
            say(str(program.pid))
        case ["touch", path]:
            Path(path).touch()
        case ["sleep", seconds]:
            sleep(seconds)
        case ["deaf"]:
            time.sleep(600)
        case ["exit", code]:
            print("it has no more to say", file=sys.stderr, flush=True)
            os._exit(code)
        case _:
            return False
    return True


def turn(number, prompt):
    text = prompt[0]["text"]
    try:
        script = json.loads(text)
    except ValueError:
        script = None
    if not isinstance(script, list):
        script = SETTINGS.get("otherwise", [["say", text]])
    is_ended = False
    try:
        for step in script:
            match step:
                case ["error", code, words, *data]:
                    error = {"code": code, "message": words, **({"data": data[0]} if data else {})}
                    send(id=number, error=error)
                    return
                case ["end", result]:
                    send(id=number, result=result)
                    is_ended = True
                case _:
                    do(step)
    except Canceled:
        send(id=number, result={"stopReason": "cancelled"})
        return
    if is_ended:
        return
    usage = {"inputTokens": 10, "outputTokens": 5, "cachedReadTokens": 2}
    send(id=number, result={"stopReason": "end_turn", "usage": usage})


def handle(message):
    method, number, params = message.get("method"), message.get("id"), message.get("params", {})
    if method is None or method in SETTINGS.get("mute", ()):
        return
    if method in SETTINGS.get("refuses", {}):
        code = SETTINGS["refuses"][method]
        send(id=number, error={"code": code, "message": "it refuses"})
        return
    match method:
        case "initialize":
            capabilities = {
                "loadSession": SETTINGS.get("loads", False),
                "mcpCapabilities": {"http": SETTINGS.get("mcp", True)},
                "sessionCapabilities": {"resume": {}} if SETTINGS.get("resumes", True) else {},
            }
            result = {
                "protocolVersion": SETTINGS.get("version", 1),
                "agentCapabilities": capabilities,
                "agentInfo": {"name": "scripted", "version": "7.0"},
                **{name: SETTINGS[name] for name in ("says", "says_more") if name in SETTINGS},
            }
            if SETTINGS.get("steers"):
                result["_meta"] = {"steering": {"supported": True}}
            send(id=number, result=result)
        case "session/new":
            state["session"] = f"s-{os.getpid()}-{next(numbers)}"
            state["servers"] = params["mcpServers"]
            if known() is not None:
                (known() / state["session"]).touch()
            send(id=number, result={"sessionId": state["session"], "configOptions": options()})
        case "session/resume" | "session/load":
            state["servers"] = params["mcpServers"]
            if known() is not None and not (known() / params["sessionId"].strip()).exists():
                send(id=number, error={"code": -32002, "message": "there is no such session"})
                return
            state["session"] = params["sessionId"]
            is_late = SETTINGS.get("late_replay")
            state["mode"], state["model"] = SETTINGS.get("mode", "auto"), "large"
            if method == "session/load" and not is_late:
                say("what was said before")
            send(id=number, result={"configOptions": options()})
            if method == "session/load" and is_late:
                state["replay"] = 3
        case "session/set_config_option":
            offered = next(one["options"] for one in options() if one["id"] == params["configId"])
            if params["value"] not in [one["value"] for one in offered]:
                send(id=number, error={"code": -32602, "message": "it has no such value"})
                return
            if not SETTINGS.get("sticky"):
                state[params["configId"]] = params["value"]
            state["sets"] += params["configId"] == "mode"
            send(id=number, result={"configOptions": options()})
        case "session/prompt":
            turn(number, params["prompt"])
        case "_session/steering":
            state["answer"] = params["prompt"][0]["text"]
            send(id=number, result={"outcome": "injected"})
        case "session/cancel":
            pass
        case "_agent_orchestrator/ping":
            send(id=number, error={"code": -32601, "message": "there is no ping"})
            if state.get("replay"):
                state["replay"] -= not SETTINGS.get("endless")
                say("what was said before")
        case _:
            send(id=number, error={"code": -32601, "message": f"there is no {method}"})


if (first := SETTINGS.get("first")) and not (made := Path(first, "made")).exists():
    try:
        Path(first, "making").mkdir()
    except FileExistsError:
        sys.exit("Failed query: CREATE TABLE")
    time.sleep(1)  # as long as it takes
    made.touch()
if SETTINGS.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=read, daemon=True).start()
while (incoming := INCOMING.get()) is not None:
    handle(incoming)
