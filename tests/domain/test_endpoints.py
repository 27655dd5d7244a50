"""Endpoint files, by which a user's daemons are found."""

import json
import os
from pathlib import Path

import pytest
from attrs import asdict, evolve

from agent_orchestrator import endpoints
from agent_orchestrator.endpoints import Endpoint
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.user_state import UserState, write_private


@pytest.fixture
def state(tmp_path: Path) -> UserState:
    return UserState(tmp_path / "state")


def _other(directory: str, **more: object) -> Endpoint:
    one = endpoints.this_process("http://127.0.0.1:1", Path(directory, "a.db"))
    return evolve(one, directory=directory, **more)


def test_endpoint_of_a_daemon_is_found_while_it_runs(state: UserState) -> None:
    assert endpoints.running_endpoints(state) == endpoints.running_endpoints(None) == []
    ours = endpoints.this_process("http://127.0.0.1:8770", Path("/d/a.db"))
    endpoints.write_endpoint(state, ours)
    assert endpoints.running_endpoints(state) == [ours]
    endpoints.remove_endpoint(state, ours)
    assert endpoints.running_endpoints(state) == []
    assert endpoints.last_endpoint(state) == ours


def test_endpoint_file_of_a_killed_daemon_is_removed_and_of_another_boot_kept(
    state: UserState,
) -> None:
    ours = endpoints.this_process("http://127.0.0.1:1", Path("/d/a.db"))
    boot, _, tick = (process_start_id(os.getpid()) or "").partition("/")
    for name, start_id in (("1", f"{boot}/{int(tick) + 1}"), ("2", f"another-boot/{tick}")):
        endpoints.write_endpoint(state, ours)
        text = json.dumps(asdict(evolve(ours, process_start_id=start_id))).encode()
        write_private(state.daemons / f"{name}.json", text)
    assert endpoints.running_endpoints(state) == [ours]
    assert {path.name for path in state.daemons.iterdir()} == {"2.json", f"{os.getpid()}.json"}


def test_invalid_endpoint_files_are_ignored(state: UserState) -> None:
    endpoints.write_endpoint(state, endpoints.this_process("http://127.0.0.1:1", Path("/d/a.db")))
    [good] = state.daemons.iterdir()
    valid = json.loads(good.read_text())
    for number, odd in enumerate([b"", b"[]", b"{", json.dumps({**valid, "url": 1}).encode()]):
        write_private(state.daemons / f"odd{number}.json", odd)
    (state.daemons / "loose.json").write_text(good.read_text())
    (state.daemons / "loose.json").chmod(0o666)
    assert len(endpoints.running_endpoints(state)) == 1


@pytest.mark.parametrize(
    ("directories", "here", "expected"),
    [
        ([], "/a", None),
        (["/a"], "/elsewhere", "/a"),
        (["/a", "/b"], "/a/sub", "/a"),
        (["/a", "/a/sub"], "/a/sub/deeper", "/a/sub"),
        (["/a", "/ab"], "/ab", "/ab"),
        (["/a", "/b"], "/c", None),
        (["/a", "/a"], "/a", None),
    ],
)
def test_endpoint_of_the_nearest_parent_directory_is_chosen(
    directories: list[str], here: str, expected: str | None
) -> None:
    found = endpoints.endpoint_for([_other(one) for one in directories], Path(here))
    assert (found and found.directory) == expected
