"""Envelopes: the protocol's own vector, round trips, and nothing altered gets through."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scf.core.errors import InputError
from scf.signing import keys
from scf.signing.envelope import Envelope, Signature, pae
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey, SignatureInvalid, verify_envelope

TYPE = "application/test"


@pytest.fixture(scope="module")
def signer(tmp_path_factory) -> Signer:
    folder: Path = tmp_path_factory.mktemp("keys")
    keys.create_keys(folder)
    return keys.load_signer(folder, "foundry")


def test_the_encoding_is_that_of_the_protocol() -> None:
    """The example of the DSSE specification."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"

    assert pae("http://example.com/HelloWorld", b"hello world") == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=100), kind=st.text(min_size=1, max_size=20))
def test_what_is_signed_verifies_after_a_round_trip(
    signer: Signer, payload: bytes, kind: str
) -> None:
    envelope = Envelope.from_json(signer.sign_envelope(kind, payload).to_json())

    assert verify_envelope(envelope, [signer.public_key], payload_type=kind) == payload


def test_any_alteration_is_refused(signer: Signer, tmp_path: Path) -> None:
    good = signer.sign_envelope(TYPE, b"payload")
    key = signer.public_key
    other = keys.create_keys(tmp_path)["foundry"]
    flipped = bytes([good.signatures[0].value[0] ^ 1]) + good.signatures[0].value[1:]

    altered = [
        (replace(good, payload=b"Payload"), [key]),
        (replace(good, payload_type="application/other"), [key]),
        (replace(good, signatures=()), [key]),
        (replace(good, signatures=(Signature(key.key_id, flipped),)), [key]),
        (replace(good, signatures=(Signature(key.key_id, b""),)), [key]),
        (replace(good, signatures=(Signature(other.key_id, good.signatures[0].value),)), [other]),
        (good, [other]),
        (good, []),
    ]
    for envelope, trusted in altered:
        with pytest.raises(SignatureInvalid):
            verify_envelope(envelope, trusted, payload_type=TYPE)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"payloadType": 1, "payload": "", "signatures": []},
     {"payloadType": "t", "payload": "not base64!", "signatures": []},
     {"payloadType": "t", "payload": "", "signatures": [{}]}],
)  # fmt: skip
def test_what_is_no_envelope_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        Envelope.from_json(value)


def test_public_keys_read_back_from_pem_and_other_keys_are_refused(signer: Signer) -> None:
    assert PublicKey.from_pem(signer.public_key.to_pem()) == signer.public_key
    with pytest.raises(InputError):
        PublicKey.from_pem(b"-----BEGIN PUBLIC KEY-----\nxx\n-----END PUBLIC KEY-----\n")
