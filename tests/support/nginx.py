"""A real nginx with TLS in front of a daemon. Without it, tests are skipped; with ``REQUIRE_PROXY=1`` they fail."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from certificates import Certificate

_CONFIGURATION: Final = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        proxy_buffering on;
        {locations}
    }}
}}
"""

PATIENCE_S: Final = 90.0


def program() -> str:
    """Return nginx. Skip the test without it."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = "nginx is not there: run `bin/setup proxy`"
        if os.environ.get("REQUIRE_PROXY") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def proxy(directory: Path, certificate: Certificate, locations: str, port: int) -> Iterator[None]:
    """Run nginx on a port of loopback.

    :param locations: the ``location`` blocks of its only server.
    :param port: a free port. Nginx cannot choose one itself.
    """
    nginx = program()
    directory.mkdir()
    file = directory / "nginx.conf"
    file.write_text(
        _CONFIGURATION.format(
            directory=directory,
            port=port,
            certificate=certificate.cert,
            key=certificate.key,
            locations=locations,
        )
    )
    process = subprocess.Popen(
        [nginx, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(file)],
        stdin=subprocess.DEVNULL,
    )
    try:
        _wait(process, port, directory / "error.log")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nginx does not listen")
