"""An agent that says what it said in a recording: ``python replayed_agent.py RECORDING CASE``.

A line of a recording is a message of a case, to the agent (``>``) or from it (``<``). Each of ours releases what the agent
said after it. Requests to set the mode or the model may be others than in the recording. What was answered to the agent is
written on stderr.
"""

import json
import sys
from collections import deque
from pathlib import Path

RECORDING, CASE = sys.argv[1:3]
SETTINGS = ("session/set_mode", "session/set_config_option", "session/set_model")


def send(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def is_kept(entry):
    message = entry["msg"]
    if message.get("method") in SETTINGS:
        return False
    return not (entry["dir"] == "<" and "method" not in message and message["id"] in SET)


LINES = [json.loads(line) for line in Path(RECORDING).read_text().splitlines()]
OF_CASE = [one for one in LINES if one["case"] == CASE]
SET = {one["msg"].get("id") for one in OF_CASE if one["msg"].get("method") in SETTINGS}
LEFT = deque(one for one in OF_CASE if is_kept(one))
CONFIG = []
IDS = {}


def release():
    """Send what comes before the next message to the agent."""
    while LEFT and LEFT[0]["dir"] == "<":
        message = LEFT.popleft()["msg"]
        if "method" not in message:
            message = {**message, "id": IDS[message["id"]]}
            CONFIG[:] = (message.get("result") or {}).get("configOptions", CONFIG)
        send(message)


for line in sys.stdin:
    said = json.loads(line)
    method = said.get("method")
    if method in SETTINGS:
        params = said["params"]
        for option in CONFIG:
            if option["id"] == params.get("configId"):
                option["currentValue"] = params["value"]
        result = {"configOptions": CONFIG} if method == "session/set_config_option" else {}
        send({"jsonrpc": "2.0", "id": said["id"], "result": result})
        continue
    if method is None:
        print(json.dumps(said), file=sys.stderr, flush=True)
    elif "id" not in said:
        continue
    if not LEFT:  # such as what follows a denial
        result = {"stopReason": "end_turn", "usage": {"inputTokens": 1, "outputTokens": 1}}
        send({"jsonrpc": "2.0", "id": said["id"], "result": result})
        continue
    expected = LEFT.popleft()["msg"]
    assert expected.get("method") == method, (expected, said)
    IDS[expected.get("id")] = said.get("id")
    release()
