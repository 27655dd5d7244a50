"""A real codex whose daemon speaks TLS with a certificate nobody knows."""

from collections.abc import Callable
from typing import Any

from certificates import make_certificate
from gateway import THROUGH_A_GATEWAY, Gateway, turn
from test_codex_tools import parent_of_two

from agent_orchestrator import connect

pytestmark = THROUGH_A_GATEWAY


async def test_agents_of_a_daemon_with_tls_use_their_tools(
    gateways: Callable[..., Gateway], workspace: Any, tmp_path: Any
) -> None:
    certificate = make_certificate(tmp_path, "desk.example", "127.0.0.1")
    gateway = gateways(*certificate.options)
    assert gateway.daemon.url.startswith("https://")
    async with connect(gateway.daemon.url, ca_file=certificate.authority) as client:
        session = await client.create_session(cwd=str(workspace))
        script = parent_of_two("say the second is done", last=3)
        run = await turn(client, session.id, script)
    assert run.result is not None, run.error
    assert run.result.text == "A: the first is done / B: completed"
