"""What an agent may try, as a program that it or its shell runs: prints what came of each.

``python agent_actions.py DIRECTORY confined|unconfined`` with ``deeds.json`` of that directory, which names
the targets. For each deed it prints ``possible``, or ``refused`` with the reason. Standard library
only.
"""

# ruff: noqa: BLE001, PTH108, PTH118, PTH123

import contextlib
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request


def write(*paths):
    """Open for writing; succeed if one of them can be. A file that is made is removed."""
    done = []
    for path in paths:
        is_new = not os.path.lexists(path)
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            done.append(path)
            if is_new:
                os.unlink(path)
    assert done, "none can be written"
    return done


def read(*paths):
    done = []
    for path in paths:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.read(1)
            done.append(path)
    assert done, "none can be read"
    return done


def connect(path):
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(60)
        line.connect(path)


def call(url, path, body, token=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)


def approve(targets):
    """Ask for an approval, where that can be, and approve it without the run's token."""
    url, token = os.environ["AGENTCTL_URL"], os.environ["AGENTCTL_AUTH_TOKEN"]
    question = {"text": "May I?", "request_kind": "approval_request"}
    asked = call(url, f"/runs/{os.environ['AGENTCTL_RUN_ID']}/reply-parent", question, token)
    path = f"/requests/{asked['request']['id']}/resolve"
    tokens = [None, token, "guess"]
    with contextlib.suppress(OSError), open(targets["token"]) as file:
        tokens.append(file.read())
    done = []
    for one in tokens:
        with contextlib.suppress(urllib.error.HTTPError):
            call(url, path, {"decision": "approve"}, one)
            done.append(one)
    assert done, "refused with every token"
    return done


def administer(targets):
    """Make a session as the daemon's user."""
    tokens = [None, os.environ.get("AGENTCTL_AUTH_TOKEN")]
    with contextlib.suppress(OSError), open(targets["token"]) as file:
        tokens.append(file.read())
    done = []
    for token in tokens:
        with contextlib.suppress(urllib.error.HTTPError):
            call(targets["url"], "/sessions", {}, token)
            done.append(token)
    assert done, "refused with every token"
    return done


def spawn(targets):
    """Spawn a child that may do more than this agent."""
    url, token = os.environ["AGENTCTL_URL"], os.environ["AGENTCTL_AUTH_TOKEN"]
    path = f"/runs/{os.environ['AGENTCTL_RUN_ID']}/spawn"
    done = []
    for more in targets["more"][sys.argv[2]]:
        with contextlib.suppress(urllib.error.HTTPError):
            call(url, path, {"task": "x", **more}, token)
            done.append(more)
    assert done, "refused every child that may do more"
    return done


DEEDS = {
    "state": lambda targets: write(*targets["state"]),
    "secrets": lambda targets: read(*targets["secrets"]),
    "memory": lambda targets: read(*targets["memory"]),
    "directories": lambda targets: write(*targets["directories"]),
    "processes": lambda targets: os.kill(targets["process"], signal.SIGCONT),
    "sockets": lambda targets: connect(targets["socket"]),
    "program": lambda targets: write(*targets["program"]),
    "approve": approve,
    "administer": administer,
    "spawn": spawn,
}


def main():
    with open(os.path.join(sys.argv[1], "deeds.json")) as file:
        targets = json.load(file)
    found = {}
    for name, deed in DEEDS.items():
        try:
            what = deed(targets)
        except Exception as error:
            found[name] = f"refused: {error!r}"
        else:
            found[name] = f"possible: {what!r}"
    # Not in one piece, so that the command itself does not say it.
    print("DEEDS" + "=" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
