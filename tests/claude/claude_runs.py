"""What the tests of the runner share."""

import anyio
import psutil

SECONDS = 40


async def run(runner, context, seconds=SECONDS):
    with anyio.fail_after(seconds):
        return await runner.run(context)


def of(context, event_type):
    return [data for kind, data in context.events if kind == event_type]


def problems(context):
    return [data["message"] for data in of(context, "run.error")]


def descendants(pid):
    """Return the live processes that descend from a process, those of other sessions too."""
    found = psutil.Process(pid).children(recursive=True)
    return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]


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
