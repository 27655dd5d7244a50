#!/usr/bin/env python3
"""A program that speaks as ``codex app-server`` does, and misbehaves as FAKE_FAULT says.

Faults happen in a turn whose prompt is ``fault``; any other is said back. They are those that the real
one cannot be brought to show.
"""

import json
import os
import sys
import time
from pathlib import Path

THREAD = "01a20000-0000-7000-8000-000000000000"


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def tell(method, **params):
    say({"method": method, "params": {"threadId": THREAD, "turnId": "turn", **params}})


def item(phase, **fields):
    tell(f"item/{phase}", item=fields)


def turn(status):
    return {"id": "turn", "status": status, "items": [], "error": None}


def finish(text):
    item("completed", type="agentMessage", id="m", text=text)
    tell("turn/completed", turn=turn("completed"))


def hear():
    return json.loads(sys.stdin.readline())


def is_first():
    """Tell whether no other has been here."""
    try:
        os.close(os.open(os.environ["FAKE_MARK"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def misbehave(fault):
    match fault:
        case "not-json":
            print("this is no message", flush=True)
            print('"nor this"', flush=True)
            print("[1, 2]", flush=True)
        case "unknown":
            tell("thread/invented", what="a notification of a newer codex")
            item("started", type="inventedItem", id="i", more={"x": 1})
            item("completed", type="inventedItem", id="i", more={"x": 1})
            item("completed", type="fileChange", id="f", changes="not a list")
            say({"id": "x-1", "method": "item/invented", "params": {"threadId": THREAD}})
            answer = hear()
            finish(json.dumps(answer))
            return
        case "ids":
            # Its ids are like ours, and its answers to what was never asked are nobody's.
            say({"id": 1, "result": {"stray": True}})
            say({"id": 4, "method": "item/invented", "params": {"threadId": THREAD}})
            assert hear()["id"] == 4
        case "long":
            item("completed", type="agentMessage", id="m", text="x" * 50 * 2**20)
            tell("turn/completed", turn=turn("completed"))
            return
        case "too-long":
            item("completed", type="agentMessage", id="m", text="x" * 70 * 2**20)
        case "half":
            sys.stdout.write('{"method": "item/comple')
            sys.stdout.flush()
            os._exit(3)
        case "eof":
            os._exit(3)
        case "closed":
            sys.stdout.close()
            os.close(1)
            time.sleep(600)
        case "unread":
            for number in range(5_000):
                say({"id": number, "method": "item/invented", "params": {"threadId": THREAD}})
            time.sleep(600)
        case "withdrawn":
            params = {"threadId": THREAD, "turnId": "turn", "itemId": "c", "command": "ls"}
            asks = "item/commandExecution/requestApproval"
            say({"id": 90, "method": asks, "params": params})
            while not Path(os.environ["FAKE_MARK"]).exists():
                time.sleep(0.01)
            tell("serverRequest/resolved", requestId=90)
        case "asks-long":
            changes = [{"path": "/f", "kind": {"type": "add"}, "diff": "x\n" * 3_000_000}]
            item("started", type="fileChange", id="f", changes=changes, status="inProgress")
            params = {"threadId": THREAD, "turnId": "turn", "itemId": "f"}
            say({"id": 90, "method": "item/fileChange/requestApproval", "params": params})
            finish(json.dumps(hear()))
            return
        case "stuck":
            time.sleep(600)
        case "steered" | "steered-deaf":
            return
    finish("hello")


def main():
    if "--version" in sys.argv:
        print("codex-cli", os.environ.get("FAKE_VERSION", "0.169.0"))
        return
    for line in sys.stdin:
        said = json.loads(line)
        match said.get("method"):
            case "initialize" if os.environ["FAKE_FAULT"] == "refuse":
                error = {"code": -32600, "message": "Invalid request: missing field `sesame`"}
                say({"id": said["id"], "error": error})
            case "initialize":
                say({"id": said["id"], "result": {"userAgent": "fake/0.169.0 (Test)"}})
            case "thread/start" if os.environ["FAKE_FAULT"] == "history" and (
                history := said["params"].get("historyMode")
            ):
                error = f"Invalid request: unknown variant `{history}`, expected `paginated`"
                say({"id": said["id"], "error": {"code": -32600, "message": error}})
            case "thread/start" | "thread/resume":
                say({"id": said["id"], "result": {"thread": {"id": THREAD}, "model": "m"}})
            case "turn/start":
                if said["params"]["input"][0]["text"] == "unanswered":
                    continue
                say({"id": said["id"], "result": {"turn": turn("inProgress")}})
                tell("turn/started", turn=turn("inProgress"))
                if os.environ["FAKE_FAULT"] == "not-taken" and is_first():
                    os._exit(3)
                if os.environ["FAKE_FAULT"] == "not-taken-yet" and is_first():
                    time.sleep(600)
                if os.environ["FAKE_FAULT"] == "steered-not-taken" and is_first():
                    continue
                item("completed", type="userMessage", id="u", content=[])
                if said["params"]["input"][0]["text"] == "fault":
                    misbehave(os.environ["FAKE_FAULT"])
                else:
                    finish(said["params"]["input"][0]["text"])
            case "turn/steer" if os.environ["FAKE_FAULT"].startswith("steered"):
                if os.environ["FAKE_FAULT"] == "steered-deaf":
                    continue
                os._exit(3)
            case "turn/interrupt":
                say({"id": said["id"], "result": {}})
                tell("turn/completed", turn=turn("interrupted"))
            case "initialized" | None:
                pass
            case method:
                error = {"code": -32600, "message": f"Invalid request: unknown variant `{method}`"}
                say({"id": said["id"], "error": error})


if __name__ == "__main__":
    main()
