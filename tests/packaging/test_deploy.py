"""The files of deploy/ are valid and name existing flags, settings and files."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT

from agentd import settings
from agentd.cli import main as agentd

DEPLOY = ROOT / "deploy"

INSTRUCTIONS = {
    "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL",
    "HEALTHCHECK", "ENTRYPOINT", "CMD", "ARG", "LABEL",
}  # fmt: skip

VARIABLES = {
    *(name for setting in settings.declared().values() for name in setting.env),
    "AGENTD_CONFIG",
}


def unit() -> dict[str, list[str]]:
    """Return the unit's settings; one that is given twice has two values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "agentd.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def parsed(arguments: list[str]) -> dict[str, object]:
    return agentd.make_context("agentd", arguments).params


def test_systemd_unit_starts_agentd_with_valid_flags() -> None:
    program, *arguments = shlex.split(unit()["ExecStart"][0])
    assert Path(program).name == "agentd"
    given = parsed(arguments)
    grace = float(str(given["grace_s"]))
    # Beyond the grace period, agentd needs a few seconds to stop, kill and close.
    assert float(unit()["TimeoutStopSec"][0]) >= grace + 10
    state = f"/var/lib/{unit()['StateDirectory'][0]}"
    assert str(given["db"]).startswith(state)
    assert unit()["WorkingDirectory"] == [state]


def test_systemd_unit_confines_agentd() -> None:
    found = unit()
    assert found["User"] == ["agentd"]
    assert found["KillMode"] == ["mixed"], "agentd ends its agents, not systemd"
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "LockPersonality"):
        assert found[name] == ["true"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "agentd.service").read_text()
    program = shlex.split(unit()["ExecStart"][0])[0]
    copy = tmp_path / "agentd.service"
    copy.write_text(text.replace(program, sys.executable))  # it looks for the program, too
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "agentd.service" in line]
    assert not complaints
    assert done.returncode == 0, done.stderr


def test_environment_file_names_only_existing_settings() -> None:
    names = re.findall(
        r"^#?(AGENTD_\w+)=", (DEPLOY / "agentd.env.example").read_text(), re.MULTILINE
    )
    assert "AGENTD_AUTH_TOKEN" in names
    assert set(names) <= VARIABLES


def composed() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")  # of the tools that build the documents
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def test_compose_file_pins_its_images_and_opens_only_loopback_ports() -> None:
    services = composed()["services"]
    assert services.keys() == {"postgres", "agentd-a", "agentd-b"}
    image = services["postgres"]["image"]
    assert re.fullmatch(r"docker\.io/library/postgres:1[5-8]\.\d+", image), "a version, not a name"
    for name in ("agentd-a", "agentd-b"):
        one = services[name]
        assert one["init"], "process 1 reaps the processes of agents"
        assert one["depends_on"]["postgres"]["condition"] == "service_healthy"
        [port] = one["ports"]
        assert port.startswith("127.0.0.1:")
        [volume] = one["volumes"]
        assert volume == f"{name}:/var/lib/agentd"
        seconds = int(one["stop_grace_period"].removesuffix("s"))
        assert seconds >= int(one["environment"]["AGENTD_GRACE_S"]) + 10
    used = {one["volumes"][0].partition(":")[0] for one in services.values()}
    assert used == composed()["volumes"].keys()
    ports = [one["ports"][0] for one in services.values() if "ports" in one]
    assert len(set(ports)) == 2


def test_agentd_accepts_the_settings_of_the_compose_file(tmp_path: Path) -> None:
    names = set()
    for service in ("agentd-a", "agentd-b"):
        given = composed()["services"][service]["environment"]
        assert {name for name in given if name.startswith("AGENTD_")} <= VARIABLES
        secret = {name: value for name, value in given.items() if value.startswith("${")}
        assert secret.keys() == {"PGPASSWORD", "AGENTD_AUTH_TOKEN"}, "no secret is in the file"
        env = {**given, "AGENTD_AUTH_TOKEN": "0123456789abcdef" * 4, "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "agentd", "--print-config"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=env,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert given["AGENTD_STORE"].partition("?")[0] in done.stdout
        names.add(given["AGENTD_HOST_NAME"])
        assert given["AGENTD_HOST_NAME"] in done.stdout
    assert len(names) == 2, "each container is a host with a name that stays"


def container() -> list[tuple[str, str]]:
    """Return the instructions of the container file and what each says."""
    text = (DEPLOY / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()]  # type: ignore[misc]


def all_of(name: str) -> list[str]:
    return [said for instruction, said in container() if instruction == name]


def test_container_file_is_valid_and_runs_as_its_own_user() -> None:
    found = container()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[0][0] == "FROM"
    for image in all_of("FROM"):
        name, _, tag = image.split()[0].partition(":")
        assert name == "python"
        assert re.match(r"3\.\d+", tag), "a version, not whatever is the latest"
    [last] = [n for n, (name, _) in enumerate(found) if name == "FROM"][-1:]
    assert found.index(("USER", "agentd")) > last, "it runs as a dedicated user"


def test_container_file_copies_existing_files() -> None:
    built = [said.split() for said in all_of("COPY") if not said.startswith("--from")]
    for *sources, _ in built:
        for source in sources:
            assert (ROOT / source).exists(), source
    copied = {source for *sources, _ in built for source in sources}
    # What the build backend reads: hatchling fails without these.
    assert {"pyproject.toml", "README.md", "LICENSE", "src"} <= copied


def test_container_starts_agentd_with_valid_settings() -> None:
    [entry] = all_of("ENTRYPOINT")
    assert json.loads(entry) == ["agentd"]
    variables = dict(part.split("=", 1) for said in all_of("ENV") for part in shlex.split(said))
    ours = {name: value for name, value in variables.items() if name.startswith("AGENTD_")}
    assert set(ours) <= VARIABLES
    found = settings.load({}, ours, None)
    assert all_of("EXPOSE") == [str(found.port)]
    [volume] = all_of("VOLUME")
    assert found.db.startswith(f"{volume}/")
    [health] = all_of("HEALTHCHECK")
    command = json.loads(health.partition("CMD ")[2])
    compile(command[2], "health", "exec")
    assert f":{found.port}/health" in command[2]
