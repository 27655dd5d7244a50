"""The daemon on a disk that fills up and has space again."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from serving import serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system takes root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip(f"no small file system here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_daemon_on_a_full_disk_refuses_work_accepts_cancels_and_recovers(
    small_disk: Path,
) -> None:
    with anyio.fail_after(60):
        async with serving(small_disk) as served:
            http = served.client
            session = await served.session("talkative")
            run = await served.say(session, "100000", wait=False)

            async def problems() -> list[str]:
                status = (await http.get("/daemon/status")).json()
                codes = [problem["code"] for problem in status["problems"]]
                assert status["daemon_health"] == ("degraded" if codes else "ok")
                return codes

            # At times the watermark beside the database is due, too, and finds no room either.
            while "disk_full" not in await problems():
                await anyio.sleep(0.02)
            refused = await http.post("/sessions", json={})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            error = refused.json()["error"]
            assert error["code"] == "unavailable"
            assert str(small_disk) in error["message"]
            assert "full" in error["message"]
            assert error["details"]["problem"] == "disk_full"
            # Reads go on; the run waits with its events.
            assert (await http.get(f"/runs/{run}")).json()["run"]["status"] == "running"
            canceled = await http.post(f"/runs/{run}/cancel", json={})
            assert canceled.status_code == 202, canceled.text
            waited = await http.get(f"/runs/{run}/wait", params={"timeout_s": 30})
            assert waited.json()["run"]["status"] == "canceled", waited.text
            assert {"disk_full"} <= set(await problems()) <= {"disk_full", "watermark_failed"}
            await anyio.run_process(["mount", "-o", "remount,size=64m", str(small_disk)])
            while await problems():
                await anyio.sleep(0.02)
            await served.say(await served.session("echo"), "hello")
            events = await served.events(session)
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
            assert events[-1]["event_type"] == "run.canceled"
