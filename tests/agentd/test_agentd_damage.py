"""A daemon whose database is damaged while it is open reports that."""

import sys
from pathlib import Path

import anyio
import apsw
import pytest
from serving import Serving, serving

pytestmark = pytest.mark.anyio

PAGE = 4096


async def damaged(server: Serving, path: Path, table: str) -> None:
    """Overwrite the first page of a table behind the store's back."""

    def root_of() -> int:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        found = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
        root = int(found.fetchone()[0])
        connection.close()
        return root

    # By another process: closing the file in this one would drop SQLite's locks on it.
    root = await server.store.read(lambda _: root_of())
    script = (
        "import sys; f = open(sys.argv[1], 'r+b', buffering=0); f.seek(int(sys.argv[2]));"
        " f.write(b'\\xa5' * 4096)"
    )
    argv = [sys.executable, "-c", script, str(path), str((root - 1) * PAGE)]
    await anyio.run_process(argv)


@pytest.mark.parametrize("table", ["runs", "events", "messages", "audit"])
async def test_check_and_status_report_a_damaged_database(tmp_path: Path, table: str) -> None:
    async with serving(tmp_path) as server:
        session = await server.session()
        for number in range(5):
            await server.say(session, f"{number} " + "x" * 2_000)
    async with serving(tmp_path) as server:
        await damaged(server, tmp_path / "data.db", table)
        checked = await server.client.get("/daemon/check")
        assert checked.status_code == 200, checked.text
        assert checked.json()["ok"] is False
        assert any(finding.startswith("store: ") for finding in checked.json()["findings"])
        status = await server.client.get("/daemon/status")
        assert status.status_code == 200, status.text
        assert status.json()["daemon_health"] == "degraded"
        assert "database_damaged" in [one["code"] for one in status.json()["problems"]]
        # A call that needs the page gets an error; the daemon goes on.
        assert (await server.client.get(f"/sessions/{session}")).status_code in (200, 503)
        assert (await server.client.get("/health")).status_code == 200
