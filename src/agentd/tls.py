"""TLS settings of the server, with its certificate. They are read at the start."""

import ssl
import time
from pathlib import Path

from agent_orchestrator.domain.errors import ConfigError


def server_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return the TLS settings for connections; None without a certificate.

    :param cert: a PEM file with the certificate and its chain.
    :param key: a PEM file with the private key, without a passphrase.
    :raises ConfigError: if they cannot be used, or only one of them is set.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        present, missing = "--tls-cert", "--tls-key"
        if cert is None:
            present, missing = missing, present
        raise ConfigError(f"{present} needs {missing}: a certificate and its private key")
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        _check_readable(flag, path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # it costs the server more than the client
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
    """Return the number of days that a certificate is still valid; None if it is not valid today.

    :param server: the server's TLS settings with that certificate.
    """
    # By a handshake in memory: the standard library can parse only a peer's certificate.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server)
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):  # a handshake needs three rounds
        for side in (client_side, server_side):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return None
    not_after = (client_side.getpeercert() or {}).get("notAfter")
    if not isinstance(not_after, str):
        return None
    return int((ssl.cert_time_to_seconds(not_after) - time.time()) // 86_400)


class _Encrypted(Exception):
    """The private key has a passphrase."""


def _no_passphrase() -> str:
    # Without this, OpenSSL asks for it on the terminal.
    raise _Encrypted


def _check_readable(flag: str, path: str) -> None:
    """Raise ``ConfigError`` if a file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror}") from None


def _certificate_problem(cert: str, key: str, error: Exception) -> str:
    """Return why OpenSSL refused the two files."""
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key}: is not the key of the certificate {cert}"
    if _contains(cert, b"CERTIFICATE-----") and not _contains(key, b"PRIVATE KEY-----"):
        return f"--tls-key {key}: contains no private key in PEM form"
    if not _contains(cert, b"CERTIFICATE-----"):
        return f"--tls-cert {cert}: contains no certificate in PEM form"
    return f"--tls-cert {cert} and --tls-key {key} cannot be used: {reason or error}"


def _contains(path: str, text: bytes) -> bool:
    return text in Path(path).read_bytes()
