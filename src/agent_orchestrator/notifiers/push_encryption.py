"""The encryption of Web Push messages (RFC 8291, RFC 8188), and the signature for push services (RFC 8292)."""

import base64
import json
import os
import re
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

RECORD_SIZE: Final = 4096
MAX_PLAINTEXT: Final = 3993
"""Maximum bytes of a message: push services accept 4096 bytes with the header, padding and tag."""

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")

POINT_SIZE: Final = 65
AUTH_SIZE: Final = 16
"""Bytes of a browser's public key, and of its secret."""


def encode(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes of base64url, with or without padding.

    :raises ValueError: if it is not base64url.
    """
    bare = text.rstrip("=")
    if not _BASE64URL.fullmatch(bare) or len(bare) % 4 == 1:
        raise ValueError("is not base64url")
    return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key of a private one, as an uncompressed point."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def public_key_from(point: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of an uncompressed point.

    :raises ValueError: if it is not a point of the curve.
    """
    if len(point) != POINT_SIZE:
        raise ValueError(f"must have {POINT_SIZE} bytes")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)


def encrypt(
    plaintext: bytes,
    receiver: bytes,
    auth: bytes,
    *,
    sender: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """Return the body of a push message: one record with the coding ``aes128gcm``.

    :param receiver: the browser's public key, as an uncompressed point.
    :param auth: the browser's secret.
    :param sender: the key of this message. Default: a new one. Only for tests.
    :param salt: 16 bytes. Default: random. Only for tests.
    :raises ValueError: if the browser's key is not a point of the curve.
    """
    sender = sender or ec.generate_private_key(ec.SECP256R1())
    salt = os.urandom(16) if salt is None else salt
    point = point_of(sender)
    shared = sender.exchange(ec.ECDH(), public_key_from(receiver))
    secret = _derive(shared, auth, b"WebPush: info\0" + receiver + point, 32)
    key = _derive(secret, salt, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _derive(secret, salt, b"Content-Encoding: nonce\0", 12)
    header = salt + RECORD_SIZE.to_bytes(4) + bytes([len(point)]) + point
    return header + AESGCM(key).encrypt(nonce, plaintext + b"\x02", None)


def _derive(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=size, salt=salt, info=info).derive(secret)


def authorization(
    key: ec.EllipticCurvePrivateKey, audience: str, expires_at: int, contact: str | None
) -> str:
    """Return the header ``Authorization`` for a push service.

    :param audience: the origin of the push service.
    :param expires_at: seconds since 1970, at most 24 hours from now.
    :param contact: a ``mailto:`` or ``https:`` address of the operator.
    """
    claims: dict[str, object] = {"aud": audience, "exp": expires_at}
    if contact is not None:
        claims["sub"] = contact
    parts = ({"typ": "JWT", "alg": "ES256"}, claims)
    signed = ".".join(encode(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
    signature = encode(r.to_bytes(32) + s.to_bytes(32))
    return f"vapid t={signed}.{signature}, k={encode(point_of(key))}"
