"""Encryption and signatures of Web Push, by the examples of the RFCs and by a browser's own steps."""

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from loops import ON_ONE_LOOP
from push_service import Browser, claims, padded, point, unpadded

from agent_orchestrator.notifiers.push_encryption import (
    MAX_PLAINTEXT,
    authorization,
    decode,
    encrypt,
    public_key_from,
)

pytestmark = ON_ONE_LOOP


def private_key(text: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(padded(text)), ec.SECP256R1())


def test_example_of_rfc_8291() -> None:
    """Section 5 and appendix A."""
    browser = Browser(
        "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",
        private_key("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"),
        padded("BTBZMqHH6r4Tts7J_aSIgg"),
    )
    assert browser.fields["p256dh"] == (
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    )
    text = b"When I grow up, I want to be a watermelon"
    sent = encrypt(
        text,
        point(browser.key),
        browser.auth,
        sender=private_key("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"),
        salt=padded("DGv6ra1nlYgDCS1FRnbzlw"),
    )
    assert unpadded(sent) == (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
        "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )
    assert browser.decrypt(sent) == text


def test_each_message_has_new_keys_and_only_its_browser_reads_it() -> None:
    browser, other = Browser("https://push.example/a"), Browser("https://push.example/b")
    bodies = [
        encrypt(b"x" * size, point(browser.key), browser.auth) for size in (0, 1, MAX_PLAINTEXT)
    ]
    assert [len(browser.decrypt(body)) for body in bodies] == [0, 1, MAX_PLAINTEXT]
    assert len(bodies[-1]) == 4096
    assert len({body[:16] for body in bodies}) == len({body[21:86] for body in bodies}) == 3
    with pytest.raises(InvalidTag):
        other.decrypt(bodies[0])


def test_signature_names_the_service_and_the_operator() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = unpadded(point(key))
    header = authorization(key, "https://push.example", 1_767_268_800, "mailto:ann@example.org")
    assert claims({"authorization": header}, public) == {
        "aud": "https://push.example",
        "exp": 1_767_268_800,
        "sub": "mailto:ann@example.org",
    }
    bare = authorization(key, "https://push.example", 1, None)
    assert claims({"authorization": bare}, public).keys() == {"aud", "exp"}


@pytest.mark.parametrize(
    "bad", [b"", b"\x04" * 64, b"\x04" * 65, b"\x02" + b"\x01" * 64, b"\0" * 65]
)
def test_key_that_is_no_point_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError):
        public_key_from(bad)


@pytest.mark.parametrize("text", ["*", "abc de", "a", "a+b/", "ü"])
def test_text_that_is_not_base64url_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)
