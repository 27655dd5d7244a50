"""Certificates made for a test."""

import ssl
from pathlib import Path

import trustme
from attrs import frozen

from agentd.tls import server_context


@frozen
class Certificate:
    """A certificate for 127.0.0.1 and localhost, its key, and that of the authority that made it."""

    cert: str
    key: str
    authority: str

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options of agentd for it."""
        return ("--tls-cert", self.cert, "--tls-key", self.key)

    def server(self) -> ssl.SSLContext:
        context = server_context(self.cert, self.key)
        assert context is not None
        return context

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


def make_certificate(directory: Path, *names: str, expires_at=None) -> Certificate:
    authority = trustme.CA()
    made = authority.issue_cert(*(names or ("127.0.0.1", "localhost")), not_after=expires_at)
    files = [str(directory / name) for name in ("cert.pem", "key.pem", "authority.pem")]
    made.cert_chain_pems[0].write_to_path(files[0])
    made.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    return Certificate(*files)
