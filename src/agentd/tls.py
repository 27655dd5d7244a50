"""TLS: the certificate the daemon shows, read at its start."""

import ssl
import time
from pathlib import Path

from agent_orchestrator.domain.errors import ConfigError


def server_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return what connections are secured with; None where there is no certificate.

    :param cert: a PEM file with the certificate and those that lead to its authority.
    :param key: a PEM file with its private key, without a passphrase.
    :raises ConfigError: if they cannot be used, or only one of them is given.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        given, missing = "--tls-cert", "--tls-key"
        if cert is None:
            given, missing = missing, given
        raise ConfigError(f"{given} needs {missing}: a certificate and its private key")
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        _readable(flag, path)
    # TLS 1.2 and later with the ciphers Python's authors keep up to date.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # costs the server more than who asks for it
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except _Encrypted:
        raise ConfigError(
            f"--tls-key {key}: has a passphrase, which agentd cannot ask for: "
            "store it without a passphrase, readable by its owner only"
        ) from None
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(_certificate_problem(cert, key, error)) from None
    return context


def days_left(server: ssl.SSLContext, cert: str) -> int | None:
    """Return for how many days a certificate is good; None if it is not good today.

    :param server: a context that shows it.
    """
    # Asked the way any client asks: the standard library reads no certificate but a peer's.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asked = client.wrap_bio(to_client, to_server)
    shown = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):  # flights of a handshake, and one to spare
        for side in (asked, shown):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return None
    ends = (asked.getpeercert() or {}).get("notAfter")
    if not isinstance(ends, str):
        return None
    return int((ssl.cert_time_to_seconds(ends) - time.time()) // 86_400)


class _Encrypted(Exception):
    """The key asks for a passphrase."""


def _no_passphrase() -> str:
    # Without this, OpenSSL asks for it on the terminal, and waits.
    raise _Encrypted


def _readable(flag: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror}") from None


def _certificate_problem(cert: str, key: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key}: is not the key of the certificate {cert}"
    if _contains(cert, b"CERTIFICATE-----") and not _contains(key, b"PRIVATE KEY-----"):
        return f"--tls-key {key}: contains no private key in PEM form"
    if not _contains(cert, b"CERTIFICATE-----"):
        return f"--tls-cert {cert}: contains no certificate in PEM form"
    return f"--tls-cert {cert} and --tls-key {key} cannot be used: {reason or error}"


def _contains(path: str, mark: bytes) -> bool:
    return mark in Path(path).read_bytes()
