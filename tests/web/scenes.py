"""Sessions in every state, as the pictures of the documents show them."""

from typing import Any

from daemons import Daemon

PATCH = """@@ -12,7 +12,9 @@ def retry(call, times=3):
     for attempt in range(times):
         try:
             return call()
-        except Exception:
+        except TimeoutError:
+            if attempt == times - 1:
+                raise
             time.sleep(2 ** attempt)
"""

ANSWER = """The retry now gives up only on **timeouts**. Three things changed:

1. `retry` catches `TimeoutError`, not every exception.
2. The last error is raised instead of being lost.
3. A test covers both, see [the guide](https://docs.pytest.org/en/stable/how-to/assert.html).

```python
with pytest.raises(ValueError):
    retry(broken, times=1)
```

| case | before | now |
|---|---|---|
| time-out | retried | retried |
| wrong value | retried | raised |
"""


def command(text: str, command: str, cwd: str, reason: str | None = None) -> dict[str, Any]:
    return {
        "text": text,
        "kind": "approval_request",
        "detail": {"type": "command", "command": command, "cwd": cwd, "reason": reason},
        "options": [
            {"id": "once", "label": "Allow", "kind": "allow_once"},
            {
                "id": "session",
                "label": "Allow for the session",
                "kind": "allow_session",
                "reaches": "commands like this one",
            },
            {"id": "no", "label": "Deny", "kind": "deny"},
            {"id": "stop", "label": "Deny and stop", "kind": "deny_and_stop"},
        ],
        "expires_in_s": 840,
    }


def tool(tool_id: str, line: str, output: str) -> list[Any]:
    started = {"tool_id": tool_id, "kind": "command", "name": "shell", "input": {"command": line}}
    return [
        ["emit", "tool.started", started],
        [
            "emit",
            "tool.completed",
            {**started, "status": "completed", "output": output, "exit_code": 0},
        ],
    ]


def plan(done: int) -> list[Any]:
    steps = ["Read the code and its tests", "Narrow what is caught", "Add a test", "Run the suite"]
    states = ["completed"] * done + ["in_progress"] + ["pending"] * len(steps)
    return [
        "emit",
        "plan.updated",
        {
            "steps": [
                {"text": text, "status": state} for text, state in zip(steps, states, strict=False)
            ]
        },
    ]


def fill(daemon: Daemon) -> dict[str, str]:
    """Fill a daemon, and return the ids of its sessions by name."""
    here = str(daemon.directory)
    for name in ("site", "docs"):
        (daemon.directory / name).mkdir()
    change = {"path": f"{here}/src/retry.py", "kind": "update", "diff": PATCH}
    finished = daemon.begin(
        [
            [
                "emit",
                "agent.reasoning",
                {"text": "The function catches everything. That hides mistakes."},
            ],
            ["emit", "agent.message", {"text": "I look at the retries first."}],
            plan(1),
            *tool(
                "t1", "rg -n 'except Exception' src", "src/retry.py:15:        except Exception:\n"
            ),
            ["emit", "file.changed", {"tool_id": "t2", "status": "completed", "changes": [change]}],
            *tool("t3", "pytest -q tests/test_retry.py", "..\n2 passed in 0.31s\n"),
            plan(4),
            ["emit", "agent.message", {"text": ANSWER}],
            ["usage", {"input_tokens": 18240, "output_tokens": 1312, "cost_usd": 0.0713}],
            ["end", ANSWER],
        ],
        text="Make the retries give up only on time-outs, and test it.",
        title="Retries hide mistakes",
        cwd=here,
    )
    daemon.wait_idle(finished)
    for decision, line in (("approve", "git push origin 2.4"), ("deny", "git push --force")):
        pushing = daemon.begin(
            [["ask", command("May I push?", line, here)], ["end", "Pushed."]],
            text="Push the branch.",
            title="Push the branch",
            cwd=f"{here}/site",
        )
        request = daemon.question(pushing)["id"]
        daemon.post(f"/requests/{request}/resolve", decision=decision)
        daemon.wait_idle(pushing)
        daemon.post(f"/sessions/{pushing}/close")
        daemon.post(f"/sessions/{pushing}/seen", seq=2**40)
    failed = daemon.begin(
        [
            ["emit", "agent.message", {"text": "I ask the server for the release notes."}],
            ["fail", "provider_error", "The model's server answered 529: overloaded."],
        ],
        text="Write the release notes of 2.4.",
        title="Release notes 2.4",
        provider="claude",
        cwd=f"{here}/docs",
    )
    daemon.wait_idle(failed)
    asking = daemon.begin(
        [
            [
                "emit",
                "agent.message",
                {"text": "The old builds take 14 GB. I would like to delete them."},
            ],
            [
                "ask",
                command(
                    "May I delete the old builds?",
                    f"rm -rf {here}/build/cache && du -sh {here}/build",
                    here,
                    "The disk is full, and the cache is rebuilt by the next build.",
                ),
            ],
            ["end", "Done."],
        ],
        text="Free some disk space.",
        title="Disk is full",
        cwd=here,
    )
    working = daemon.begin(
        [
            ["emit", "agent.message", {"text": "I run the whole suite now, and mend what fails."}],
            plan(1),
            [
                "emit",
                "tool.started",
                {
                    "tool_id": "t1",
                    "kind": "command",
                    "name": "shell",
                    "input": {"command": "pytest -q"},
                },
            ],
            [
                "emit",
                "tool.output",
                {
                    "tool_id": "t1",
                    "text": "........................................ [ 38%]\n.................F...................... [ 77%]\n",
                },
            ],
            ["file", f"{here}/go"],
            ["end", "Done."],
        ],
        text="Get the suite green.",
        title="Green suite",
        cwd=here,
    )
    child = daemon.post(
        f"/sessions/{working}/spawn",
        task="Find which test fails since yesterday.",
        title="Which test fails?",
        provider="claude",
        metadata={
            "script": [
                [
                    "emit",
                    "agent.message",
                    {"text": "Two candidates. I need to know where to look."},
                ],
                [
                    "ask",
                    {
                        "text": "Which branch is right?",
                        "kind": "input_request",
                        "detail": {
                            "type": "question",
                            "questions": [
                                {
                                    "id": "branch",
                                    "text": "Which branch should I compare with?",
                                    "choices": [
                                        {"label": "main", "description": "as it is today"},
                                        {
                                            "label": "release/2.3",
                                            "description": "what runs in production",
                                        },
                                    ],
                                    "multiple": False,
                                    "free_text": True,
                                }
                            ],
                        },
                        "expires_in_s": 7200,
                    },
                ],
                ["end", "It is test_retry."],
            ]
        },
    )["session"]["id"]
    change_asking = daemon.begin(
        [
            [
                "ask",
                {
                    "text": "Change src/retry.py",
                    "kind": "approval_request",
                    "detail": {"type": "file_change", "changes": [change], "reason": None},
                    "options": [
                        {"id": "once", "label": "Allow", "kind": "allow_once"},
                        {"id": "no", "label": "Deny", "kind": "deny"},
                    ],
                    "expires_in_s": 3000,
                },
            ],
            ["end", "Done."],
        ],
        text="Catch only time-outs.",
        title="Catch only time-outs",
        provider="claude",
        cwd=here,
    )
    for session in (asking, child, change_asking):
        daemon.question(session)
    daemon.until(
        lambda: any(event["event_type"] == "tool.output" for event in daemon.events(working))
    )
    run = daemon.get("/runs", session_id=failed)["runs"][0]["id"]
    return {
        "finished": finished,
        "failed": failed,
        "asking": asking,
        "working": working,
        "child": child,
        "changing": change_asking,
        "run": run,
        "request": daemon.question(asking)["id"],
    }


def same_twice(daemon: Daemon) -> list[str]:
    """Begin two sessions that ask the same, and return the ids of their requests."""
    here = str(daemon.directory)
    asked = command("May I publish the site?", "make site && make publish", here)
    return [
        str(daemon.question(daemon.begin([["ask", asked], ["end", "Published."]], title=title, cwd=here))["id"])
        for title in ("Fix the links of the guide", "Describe the new settings")
    ]  # fmt: skip


def screens(ids: dict[str, str]) -> dict[str, str]:
    """Return the address of each screen by its name, after the ``#``."""
    return {
        "inbox": "/inbox",
        "request": f"/r/{ids['request']}",
        "sessions": "/sessions",
        "story": f"/s/{ids['finished']}",
        "working": f"/s/{ids['working']}",
        "details": f"/s/{ids['finished']}/details",
        "new": "/new",
        "run": f"/run/{ids['run']}",
        "status": "/status",
        "audit": "/audit",
        "more": "/more",
        "devices": "/devices",
    }
