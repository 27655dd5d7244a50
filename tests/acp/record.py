"""Record how an agent starts: ``python tests/acp/record.py NAME [PROGRAM [ARGUMENT…]]``.

It writes the case ``start`` of the agent's recording: ``initialize``, then ``session/new`` in an empty directory, as the
runner sends them. No model is asked. Without a program it starts that of the agent's row. Check the recording with
``./bin/test tests/acp/test_acp_agents.py``.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from queue import Empty, Queue

from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.runners.acp.process import INITIALIZE

RECORDINGS = Path(__file__).parent / "recordings"
PATIENCE_S = 60.0
LONGEST = 400
"""Characters of a text, and items of a list, that are recorded."""


def cut(value):
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, list):
        return [cut(one) for one in value[:4]]
    return {name: cut(one) for name, one in value.items()} if isinstance(value, dict) else value


def record(argv, directory):
    """Return the messages of the case, in order."""
    program = subprocess.Popen(
        [shutil.which(argv[0]) or argv[0], *argv[1:]],
        cwd=directory,
        env={**os.environ, "HOME": directory},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    incoming: Queue[dict] = Queue()

    def read():
        for line in program.stdout:
            incoming.put(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    found = []
    new = {"cwd": directory, "mcpServers": []}
    try:
        for number, (method, params) in enumerate(
            [("initialize", INITIALIZE), ("session/new", new)], 1
        ):
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            program.stdin.write(json.dumps(message).encode() + b"\n")
            program.stdin.flush()
            found.append({"case": "start", "dir": ">", "msg": message})
            while True:
                answer = incoming.get(timeout=PATIENCE_S)
                found.append({"case": "start", "dir": "<", "msg": cut(answer)})
                if answer.get("id") == number and "method" not in answer:
                    break
    except Empty:
        print(f"it did not answer {method} within {PATIENCE_S:g} s", file=sys.stderr)
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    return found


def main():
    name, *argv = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        found = record(argv or AGENTS[name].argv, directory)
        lines = [json.dumps(one, ensure_ascii=False).replace(directory, "<cwd>") for one in found]
    file = RECORDINGS / f"{name}.jsonl"
    kept = file.read_text().splitlines() if file.exists() else []
    others = [line for line in kept if json.loads(line)["case"] != "start"]
    file.write_text("\n".join([*lines, *others]) + "\n")
    print(f"{len(lines)} messages in {file}")


if __name__ == "__main__":
    main()
