"""The agent of the experiments: does what its prompt says, and leaves a trace of it.

As a program it is a ``command`` provider's agent, in this module's :func:`play` a function's. What it
is asked and what it has done go into the file ``CHAOS_TRACE``, a line of JSON each, so that work done
twice is seen however the daemon's own record looks. It imports nothing that costs time.

    KEY say          one message
    KEY talk N       so many messages
    KEY slow S       works for so many seconds
    KEY child S      the same, and leaves a grandchild in a session of its own that never ends
    KEY ask          asks, and goes on with the answer (only as a function)
"""

import json
import os
import re
import sys
import time

PROMPT = re.compile(r"(k\d+-\d+) (say|talk|slow|child|ask) ?([\d.]*)")


def trace(what, tag, key):
    """Add a line; one write, so that lines of several processes do not mix."""
    line = json.dumps({"what": what, "mark": tag, "key": key, "pid": os.getpid()}) + "\n"
    file = os.open(os.environ["CHAOS_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def asked(prompt):
    """Return key, verb and number of the last thing a prompt asks for."""
    key, verb, number = PROMPT.findall(prompt)[-1]
    return key, verb, float(number or 1)


def lines(key, verb, number):
    """Return what there is to say."""
    return [f"{key} says {n}" for n in range(int(number) if verb == "talk" else 1)]


async def play(context):
    """Be the agent inside the daemon."""
    import anyio

    tag = context.env["AGENT_ORCHESTRATOR_TAG"]
    key, verb, number = asked(context.prompt)
    trace("asked", tag, key)
    if verb in ("slow", "child"):
        await anyio.sleep(number)
    if verb == "ask" and "Your request was" not in context.prompt:
        await context.ask_parent(f"{key}?", kind="approval_request", expires_in_s=600)
    for line in lines(key, verb, number):
        await context.emit("agent.message", {"text": line})
    trace("done", tag, key)
    return f"{key} done"


def main():
    """Be the agent as a program."""
    tag = os.environ["AGENT_ORCHESTRATOR_TAG"]
    key, verb, number = asked(sys.stdin.read())
    trace("asked", tag, key)
    if verb == "child" and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            time.sleep(600)
        os._exit(0)
    if verb in ("slow", "child"):
        time.sleep(number)
    for line in lines(key, verb, number):
        print(line, flush=True)
    trace("done", tag, key)


if __name__ == "__main__":
    main()
