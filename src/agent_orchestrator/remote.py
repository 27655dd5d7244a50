"""Connecting a client to a daemon."""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.transports.http import HttpTransport, Token


@asynccontextmanager
async def connect(
    url: str = "http://127.0.0.1:8765",
    *,
    token: Token = None,
    ca_file: str | os.PathLike[str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Client]:
    """Connect to a daemon. Runs on asyncio and on trio.

    Nothing is sent before the first call, which raises
    :class:`~agent_orchestrator.domain.errors.Unreachable` if no daemon answers.

    :param token: the bearer token, or a function that returns it, called for each request.
    :param ca_file: a PEM file with the certificates to trust: a certificate authority's, or the
        daemon's. By default OpenSSL's default locations are used, ``SSL_CERT_FILE`` among them.
    :param transport: an HTTPX transport, for tests and proxies. Default: TCP.
    :raises ConfigError: if the CA file cannot be used.
    """
    # trust_env: requests to the user's daemon must not go through a proxy from the environment.
    # verify: loading certificates takes 20 ms and is useless for plain HTTP.
    async with httpx.AsyncClient(
        verify=False if url.startswith("http:") else _trust(ca_file),
        base_url=url,
        transport=transport,
        trust_env=False,
        limits=httpx.Limits(max_connections=None),
    ) as http:
        yield Client(HttpTransport(http, token=token))


def _trust(ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    if ca_file is None:
        return ssl.create_default_context()
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        reason = "is not a PEM file" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"CA file {os.fspath(ca_file)}: {reason}") from None
    # Trust the daemon's own certificate even if another authority signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
