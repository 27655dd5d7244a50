"""An agent that stays alive and speaks JSON-RPC in lines: ``python agent_program.py [FAULT]``."""

import json
import os
import subprocess
import sys
import time

FAULT = sys.argv[1] if len(sys.argv) > 1 else ""


def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


if FAULT == "exits":
    sys.exit("it has no home")
for line in sys.stdin:
    said = json.loads(line)
    match said.get("method"):
        case "hello" if FAULT == "refuses":
            say(id=said["id"], error={"code": -32600, "message": "I speak another language"})
        case "hello" if FAULT == "mute":
            time.sleep(600)
        case "hello":
            say(method="welcome", params={})
            say(id=said["id"], result={"pid": os.getpid()})
        case "child":
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            say(id=said["id"], result=child.pid)
        case "ask":
            say(id="q", method="may_i", params={})
        case "die":
            os._exit(3)
        case "turn":
            say(method="piece", params={"delta": "a"})
            say(id=said["id"], result={"reason": "done"})
            say(method="after", params={})
        case None:
            say(
                method="answered", params={"answer": said.get("result"), "error": said.get("error")}
            )
