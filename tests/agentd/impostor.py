"""An agent that asks for an approval and then tries to call as somebody else; prints the results.

Run as the agent of a ``command`` provider. Each way approves its own request, without the token of
its run. Standard library only. The last output of each way is the status of the answer.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

URL = os.environ["AGENTCTL_URL"]
RUN = os.environ["AGENTCTL_RUN_ID"]
TOKEN = os.environ["AGENTCTL_AUTH_TOKEN"]
HOST, PORT = urllib.parse.urlsplit(URL).hostname, urllib.parse.urlsplit(URL).port
ME = [sys.executable, "-S", __file__]


def post(path, body, token=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def approve(path, token=None):
    return post(path, {"decision": "approve"}, token)[0]


def by_socket(path, source=None, host=HOST, family=socket.AF_INET):
    with socket.socket(family) as line:
        if source:
            line.bind((source, 0))
        line.settimeout(60)
        line.connect((host, PORT))
        return exchange(line, path)


def exchange(line, path):
    body = b'{"decision": "approve"}'
    line.sendall(
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return int(line.recv(65536).split()[1])


def get(path, *headers):
    """Return the status of a request for a stream, which is not read."""
    with socket.create_connection((HOST, PORT), 20) as line:
        lines = [f"GET {path} HTTP/1.1", f"Host: {HOST}", *headers, "", ""]
        line.sendall("\r\n".join(lines).encode())
        return int(line.recv(65536).split()[1])


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def socket_frame(path):
    """Return the answer to a WebSocket whose first frame has the token of another caller."""
    with socket.create_connection((HOST, PORT), 20) as line:
        lines = ["GET /stream HTTP/1.1", f"Host: {HOST}", *UPGRADE, "", ""]
        line.sendall("\r\n".join(lines).encode())
        assert line.recv(65536).split()[1] == b"101"
        try:
            token = local_token()
        except OSError:
            token = "guess"
        frame = json.dumps({"type": "auth", "token": token}).encode()
        line.sendall(bytes([0x81, 0x80 | len(frame), 0, 0, 0, 0]) + frame)
        said = line.recv(65536)
        return next(code for word, code in REFUSALS.items() if word in said)


REFUSALS = {b'"unauthorized"': 401, b'"forbidden"': 403}


def by_shell(script, path, **options):
    """Return the output of a shell script that calls this program again, as ``$@``."""
    command = ["sh", "-c", script, "sh", *ME, path]
    return subprocess.run(
        command, stdout=subprocess.PIPE, timeout=60, check=False, **options
    ).stdout


def twice_removed(path):
    """Fork twice in a new process session, and wait until the parent is gone."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        middle = os.getpid()
        if os.fork() == 0:
            while os.getppid() == middle:
                pass
            os.write(write, str(approve(path)).encode())
            os._exit(0)
        os._exit(0)
    os.wait()
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        return stream.read()


def handed_on(path):
    """Use a connection that no process has open while the daemon looks for its owner."""
    ours, theirs = socket.socketpair()
    line = socket.create_connection((HOST, PORT))
    body = b'{"decision": "approve"}'
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    socket.send_fds(ours, [b"x"], [line.fileno()])
    sent = os.dup(line.fileno())
    line.close()
    os.write(sent, request)
    os.close(sent)
    # Until the daemon has looked, the descriptor is only in the queue of the socket pair.
    time.sleep(0.5)
    _, [fd], _, _ = socket.recv_fds(theirs, 1, 1)
    with socket.socket(fileno=fd) as again:
        again.settimeout(60)
        return int(again.recv(65536).split()[1])


def then_gone(path):
    """Close at once, whatever the answer is."""
    with socket.create_connection((HOST, PORT)) as line:
        body = b'{"decision": "approve"}'
        line.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
    return "closed"


def from_thread(path):
    """Use a connection of a thread with its own table of descriptors."""
    import ctypes
    import threading

    found = []

    def work():
        assert ctypes.CDLL(None).unshare(0x400) == 0  # CLONE_FILES
        found.append(approve(path))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def local_token():
    state = os.environ["XDG_STATE_HOME"] + "/agent-orchestrator/tokens/"
    with open(state + str(PORT)) as file:  # noqa: PTH123 - quicker to import
        return file.read()


def hidden(path):
    """Call from a process whose open files no other process may see."""
    import ctypes

    assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
    return approve(path)


def agentctl(path):
    """Call with agentctl, which finds the token of its user."""
    request = path.split("/")[2]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AGENT")}
    command = [sys.executable, "-m", "agentctl.main", "--url", URL]
    done = subprocess.run(
        [*command, "request", "approve", request],
        capture_output=True,
        env=env,
        timeout=90,
        check=False,
    )
    return {0: 200, 5: 403}.get(done.returncode, done.stderr.decode())


CURL = 'curl -s -o /dev/null -w "%{http_code}" -H "Content-Type: application/json"'

WAYS = {
    "no token": approve,
    "a word for a token": lambda path: approve(path, "guess"),
    "another token": lambda path: approve(path, TOKEN[:-2] + "xx"),
    "the local token": lambda path: approve(path, local_token()),
    "its own token": lambda path: approve(path, TOKEN),
    "a socket": by_socket,
    "another address": lambda path: by_socket(path, source="127.0.0.9"),
    "an IPv6 socket": lambda path: by_socket(path, host="::ffff:127.0.0.1", family=socket.AF_INET6),
    "a stream": lambda path: get("/stream"),
    "a WebSocket": lambda path: get("/stream", *UPGRADE, "Sec-WebSocket-Protocol: bearer.guess"),
    "a WebSocket's frame": socket_frame,
    "the tools": lambda path: post("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"})[0],
    "curl": lambda path: by_shell(f'{CURL} -d \'{{"decision": "approve"}}\' {URL}{path}', path),
    "setsid": lambda path: by_shell('exec setsid --wait "$@"', path),
    "nohup": lambda path: by_shell('nohup "$@" & wait', path, stderr=subprocess.DEVNULL),
    "two forks": twice_removed,
    "a clean environment": lambda path: by_shell(
        f'exec env -i AGENTCTL_URL={URL} AGENTCTL_RUN_ID=x AGENTCTL_AUTH_TOKEN=x "$@"', path
    ),
    "another lock limit": lambda path: by_shell('ulimit -S -x 7 2>&-; exec "$@"', path),
    "a thread": from_thread,
    "agentctl without the token": agentctl,
    "a connection in a queue": handed_on,
    "a connection that is closed": then_gone,
    "a process that hides": hidden,
}


def main():
    if len(sys.argv) > 1:
        print(approve(sys.argv[1]))
        return
    question = {"text": "May I?", "request_kind": "approval_request"}
    _, asked = post(f"/runs/{RUN}/reply-parent", question, TOKEN)
    path = f"/requests/{asked['request']['id']}/resolve"
    found = {}
    for name, way in WAYS.items():
        try:
            result = way(path)
        except Exception as error:  # noqa: BLE001
            result = repr(error)
        found[name] = result.decode().strip() if isinstance(result, bytes) else str(result)
    print(json.dumps({"request": asked["request"]["id"], "found": found}), flush=True)


if __name__ == "__main__":
    main()
