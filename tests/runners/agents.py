"""A scripted agent: ``python agents.py SCENE`` behaves as badly as the scene says.

The prompt may name the scene instead: ``python agents.py prompt`` takes the first word of stdin.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

out = sys.stdout.buffer


def say(data: bytes) -> None:
    out.write(data)
    out.flush()


def spawn_sleepers(count: int, **options) -> None:
    for _ in range(count):
        subprocess.Popen(["sleep", "300"], **options)


def detached() -> None:
    """Fork twice, the middle one calling setsid: an orphan in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.execvp("sleep", ["sleep", "300"])
        os._exit(0)
    os.wait()


def escaped() -> None:
    """Leave a process that bears no mark: a session of its own, no parent, no environment, no
    descriptors.
    """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 64)
            os.execve("/bin/sleep", ["sleep", "300"], {})
        os._exit(0)
    os.wait()


def storm() -> None:
    """Fork 200 processes, every other one an orphan at once, and one whose children never stay."""
    for index in range(200):
        if os.fork() == 0:
            if index % 2:
                os.setsid()
                if os.fork():
                    os._exit(0)
            time.sleep(300)
    for _ in range(100):  # each orphan is there when the process between has ended
        os.wait()
    if os.fork() == 0:
        os.setsid()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)


def scene(name: str, argument: str) -> int:
    match name:
        case "echo":
            say(sys.stdin.buffer.read())
        case "print":
            say(argument.encode())
        case "exit":
            return int(argument)
        case "complain":
            sys.stderr.write("warming up\nno such model\n\n")
            return 3
        case "die":
            os.kill(os.getpid(), int(argument))
        case "invalid-utf8":
            say(b"caf\xe9 \xff\xfe\n")
        case "nul":
            say(b"a\0b\n")
        case "separators":
            say("one\u2028still one\u0085still\rone\ntwo\r\n".encode())
        case "no-newline":
            say(b"first\nlast")
        case "big-line":
            say(b"x" * int(argument) + b"\nafter\n")
        case "tiny-lines":
            for _ in range(100):
                say(b"tiny\n" * (int(argument) // 100))
        case "close-stdout":
            say(b"bye\n")
            os.close(1)
            time.sleep(0.3)
            return 4
        case "holder":
            spawn_sleepers(1)
            say(b"left it behind\n")
            sys.stdin.buffer.readline()
        case "stubborn":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say(b"ready\n")
            time.sleep(300)
        case "polite":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            say(b"ready\n")
            signal.sigwait([signal.SIGINT])
            say(b"z" * 1_000_000)
        case "flood-stderr":
            chunk = b"e" * 99 + b"\n"
            for _ in range(int(argument) // 100_000):
                os.write(2, chunk * 1000)
            os.write(2, b"the end\n")
            say(b"done\n")
        case "deaf":
            os.close(0)
            say(b"heard nothing\n")
        case "deaf-open":
            say(b"heard nothing\n")
            time.sleep(0.1)
        case "setsid":
            spawn_sleepers(1, start_new_session=True, stdout=subprocess.DEVNULL)
            say(b"ready\n")
            sys.stdin.buffer.readline()
        case "detached":
            detached()
            say(b"ready\n")
            sys.stdin.buffer.readline()
        case "forks":
            for index in range(50):
                if index % 2:
                    detached()
                else:
                    spawn_sleepers(1, start_new_session=index % 4 == 0)
            say(b"ready\n")
            time.sleep(300)
        case "clean-child":
            spawn_sleepers(1, start_new_session=True, env={"PATH": os.environ["PATH"]})
            say(b"ready\n")
            time.sleep(300)
        case "big-pipe":
            fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 2**20)
            say(b"tiny\n" * 200_000)
        case "unreachable":
            # an orphan before anyone looks, in a session and with an environment of its own
            code = (
                "import subprocess as s; print(s.Popen(['sleep', '300'], env={}).pid, flush=True)"
            )
            subprocess.run([sys.executable, "-c", code], check=True, env={}, start_new_session=True)
        case "escaped":
            escaped()
            say(b"ready\n")
            time.sleep(300)
        case "escaped-dead":
            escaped()
            say(b"ready\n")
        case "mute":
            say(b"ready\n")
            os.closerange(0, 3)
            time.sleep(300)
        case "stopped":
            detached()
            say(b"ready\n")
            os.kill(os.getpid(), signal.SIGSTOP)
        case "storm":
            storm()
            say(b"ready\n")
            time.sleep(300)
        case "last":
            spawn_sleepers(1)
            say(b"ready\n")
            time.sleep(300)
        case "environ":
            say(json.dumps(dict(os.environ)).encode() + b"\n")
        case "descriptors":
            say(json.dumps(sorted(int(fd.name) for fd in Path("/proc/self/fd").iterdir())).encode())
        case "jsonl":
            for line in argument.split("|"):
                say(line.encode() + b"\n")
        case _:
            sys.stderr.write(f"no scene {name}\n")
            return 2
    return 0


def main() -> int:
    # Python's own handler only sets a flag: an interrupt just before a blocking call starts does not
    # end that call. The default action ends the process at any moment.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name, *rest = sys.argv[1:]
    if name == "prompt":
        name, _, argument = sys.stdin.read().partition(" ")
    else:
        argument = rest[0] if rest else ""
    return scene(name, argument)


if __name__ == "__main__":
    sys.exit(main())
