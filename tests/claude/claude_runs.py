"""What the tests of the runner share."""

import secrets

import anyio
import psutil

SECONDS = 120


def lasting():
    """Return a command that ends only if it is stopped, unlike any other on this machine."""
    return f"tail -f /dev/null -s 9.{secrets.randbelow(10**12)}"


async def run(runner, context, seconds=SECONDS):
    with anyio.fail_after(seconds):
        return await runner.run(context)


def of(context, event_type):
    return [data for kind, data in context.events if kind == event_type]


def problems(context):
    return [data["message"] for data in of(context, "run.error")]


async def end_of_descendants(pid):
    """Wait until nothing that descends from a process is alive: Claude Code has helpers of its own for moments."""
    with anyio.fail_after(60):
        while any(map(is_alive, psutil.Process(pid).children(recursive=True))):
            await anyio.sleep(0.02)


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def with_argument(text):
    """Return the live processes with a text in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if text in line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
