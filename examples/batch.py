"""A batch job for cron: ask a daemon one question about each file, and print a report.

You can repeat it at any time. A key identifies each file's content, so no question is asked twice,
and an interrupted batch continues where it stopped.

    python examples/batch.py "Review this:" src/*.py > report.md
"""

import hashlib
import os
import sys

import anyio

from agent_orchestrator import Client, OrchestratorError, Unreachable, connect

AT_ONCE = 8
"""Questions sent at once. The daemon's --max-concurrency limits the number of working agents."""


async def ask(client: Client, question: str, path: anyio.Path) -> tuple[bool, str]:
    """Return whether there is an answer, and the answer or the reason for having none."""
    try:
        text = f"{question}\n\n{await path.read_text()}"
    except (OSError, UnicodeDecodeError) as error:
        return False, f"not read: {error}"
    key = hashlib.sha256(f"{path}\n{text}".encode()).hexdigest()
    session = await client.create_session(
        title=str(path), cwd=str(await path.parent.absolute()), idempotency_key=key
    )
    sent = await client.send_message(session.id, text, idempotency_key=key)
    assert sent.run is not None
    run = sent.run
    while run.status not in ("completed", "failed", "canceled"):
        run = (await client.wait_run(run.id, timeout_s=60)).run
    if run.result is None:
        return False, f"{run.status}: {run.error.message if run.error else 'by someone'}"
    return True, run.result.text


async def main(question: str, *names: str) -> int:
    answers: dict[str, tuple[bool, str]] = {}
    places = anyio.CapacityLimiter(AT_ONCE)

    async def one(client: Client, name: str) -> None:
        async with places:
            try:
                answers[name] = await ask(client, question, anyio.Path(name))
            except (Unreachable, OrchestratorError) as error:
                answers[name] = False, f"no answer: {error}"

    url = os.environ.get("AGENTCTL_URL", "http://127.0.0.1:8765")
    async with connect(url, token=os.environ.get("AGENTCTL_AUTH_TOKEN")) as client:
        await client.status()  # raises here if there is no daemon, or the token is wrong
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(one, client, name)
    for name in names:
        print(f"## {name}\n\n{answers[name][1]}\n")
    return 0 if all(good for good, _ in answers.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: batch.py QUESTION FILE …")
    try:
        sys.exit(anyio.run(lambda: main(*sys.argv[1:])))
    except (Unreachable, OrchestratorError) as error:
        sys.exit(f"batch.py: {error}")
