"""A browser and its push service: it subscribes, gets messages, and decrypts them with its own keys."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from attrs import define, field
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from receiver import Received, Receiver


def unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def padded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def extract(salt: bytes, secret: bytes) -> bytes:
    mac = HMAC(salt, SHA256())
    mac.update(secret)
    return mac.finalize()


def expand(secret: bytes, info: bytes, size: int) -> bytes:
    return HKDFExpand(SHA256(), size, info).derive(secret)


@define
class Browser:
    """The keys of one subscription."""

    endpoint: str
    key: ec.EllipticCurvePrivateKey = field(factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    auth: bytes = field(factory=lambda: os.urandom(16))

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a call that subscribes it."""
        return {
            "endpoint": self.endpoint,
            "p256dh": unpadded(point(self.key)),
            "auth": unpadded(self.auth),
        }

    def received(self, service: Receiver) -> list[Received]:
        """Return what a push service got for this subscription."""
        path = "/" + self.endpoint.rpartition("/")[2]
        return [one for one in service.requests if one.path == path]

    def decrypt(self, body: bytes) -> bytes:
        """Decrypt a message as RFC 8291 and RFC 8188 tell a browser to, step by step."""
        salt, size, length = body[:16], int.from_bytes(body[16:20]), body[20]
        sender, sealed = body[21 : 21 + length], body[21 + length :]
        assert len(body) <= 4096 <= size
        assert length == 65
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
        shared = self.key.exchange(ec.ECDH(), public)
        info = b"WebPush: info\0" + point(self.key) + sender
        secret = expand(extract(self.auth, shared), info, 32)
        root = extract(salt, secret)
        key = expand(root, b"Content-Encoding: aes128gcm\0", 16)
        nonce = expand(root, b"Content-Encoding: nonce\0", 12)
        opened = AESGCM(key).decrypt(nonce, sealed, None).rstrip(b"\0")
        assert opened[-1:] == b"\x02"
        return opened[:-1]

    def message(self, got: Received) -> dict[str, Any]:
        """Return the JSON that it got."""
        assert got.headers["content-encoding"] == "aes128gcm"
        message: dict[str, Any] = json.loads(self.decrypt(got.body))
        return message


def claims(headers: Mapping[str, str], key: str) -> dict[str, Any]:
    """Check the signature of a request as a push service does, and return its claims."""
    scheme, _, parameters = headers["authorization"].partition(" ")
    assert scheme == "vapid"
    given = dict(part.strip().split("=", 1) for part in parameters.split(","))
    assert given["k"] == key
    signed, _, signature = given["t"].rpartition(".")
    raw = padded(signature)
    assert len(raw) == 64
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), padded(key))
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    public.verify(der, signed.encode(), ec.ECDSA(SHA256()))
    header, _, payload = signed.partition(".")
    assert json.loads(padded(header)) == {"typ": "JWT", "alg": "ES256"}
    found: dict[str, Any] = json.loads(padded(payload))
    return found
