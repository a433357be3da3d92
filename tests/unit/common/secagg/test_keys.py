import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from common.secagg.keys import (
    agree,
    decrypt,
    derive,
    encrypt,
    is_canonical,
    is_low_order,
    is_signed,
    pairwise_seed_info,
    public_key,
    self_mask_info,
    share_encryption_info,
)
from common.secagg.parameters import Segment

VECTORS = Path(__file__).parents[3] / "vectors"

keys = st.binary(min_size=32, max_size=32)


def published(name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((VECTORS / "rfc" / f"{name}.json").read_text())["vectors"]


def test_x25519_agrees_with_rfc_7748() -> None:
    pair = {name: bytes.fromhex(value) for name, value in published("x25519")["diffie_hellman"].items()}
    assert public_key(pair["alice_private"]) == pair["alice_public"]
    assert public_key(pair["bob_private"]) == pair["bob_public"]
    expected = derive(pair["shared"], b"purpose")
    assert agree(pair["alice_private"], pair["bob_public"], b"purpose") == expected
    assert agree(pair["bob_private"], pair["alice_public"], b"purpose") == expected


@pytest.mark.parametrize("vector", published("x25519")["scalar_multiplication"])
def test_x25519_multiplies_as_rfc_7748(vector: dict[str, str]) -> None:
    scalar, point, output = (bytes.fromhex(vector[name]) for name in ("scalar", "u", "output"))
    assert agree(scalar, point, b"purpose") == derive(output, b"purpose")


@pytest.mark.parametrize("vector", published("hkdf_sha256"))
def test_key_derivation_is_that_of_rfc_5869(vector: dict[str, str]) -> None:
    derived = derive(bytes.fromhex(vector["ikm"]), bytes.fromhex(vector["info"]))
    assert derived == bytes.fromhex(vector["okm"])[:32]


@pytest.mark.parametrize("vector", published("aes_256_gcm"))
def test_shares_are_encrypted_as_nist_publishes(vector: dict[str, str]) -> None:
    key, nonce, plaintext, ciphertext, tag = (
        bytes.fromhex(vector[name]) for name in ("key", "iv", "plaintext", "ciphertext", "tag")
    )
    assert encrypt(key, plaintext, lambda count: nonce[:count]) == nonce + ciphertext + tag
    assert decrypt(key, nonce + ciphertext + tag) == plaintext


@pytest.mark.parametrize("vector", published("ed25519"))
def test_signatures_are_those_of_rfc_8032(vector: dict[str, str]) -> None:
    public, message, signature = (bytes.fromhex(vector[name]) for name in ("public", "message", "signature"))
    assert is_signed(public, signature, message)
    assert not is_signed(public, signature, message + b"\0")
    assert not is_signed(public, signature[:-1], message)
    assert not is_signed(public, b"", message)


@given(keys, keys)
def test_two_hospitals_agree_on_one_key(mine: bytes, theirs: bytes) -> None:
    assert agree(mine, public_key(theirs), b"purpose") == agree(theirs, public_key(mine), b"purpose")


@given(keys, st.binary(max_size=150), st.binary(min_size=12, max_size=12))
def test_decryption_undoes_encryption_and_refuses_another_key(key: bytes, plaintext: bytes, nonce: bytes) -> None:
    ciphertext = encrypt(key, plaintext, lambda _: nonce)
    assert decrypt(key, ciphertext) == plaintext
    assert decrypt(bytes(byte ^ 1 for byte in key), ciphertext) is None


@given(keys)
def test_an_honest_public_key_is_canonical_and_of_high_order(private: bytes) -> None:
    assert is_canonical(public_key(private))
    assert not is_low_order(public_key(private))


def test_low_order_is_exactly_what_the_library_fails_on() -> None:
    vectors = json.loads((VECTORS / "secagg_bad_public_keys.json").read_text())["vectors"]
    anyone = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    low = [bytes.fromhex(vector["key"]) for vector in vectors if vector["error"] == "LowOrderPointError"]
    assert len(low) == 5
    for key in low:
        assert is_canonical(key)
        assert is_low_order(key)
        with pytest.raises(ValueError, match="computing shared key"):
            anyone.exchange(X25519PublicKey.from_public_bytes(key))
    assert not is_low_order((9).to_bytes(32, "little"))


@pytest.mark.parametrize("segment", list(Segment))
def test_a_pair_has_one_mask_for_each_segment_and_two_share_keys(segment: Segment) -> None:
    one, other = (pairwise_seed_info(b"c", b"h", b"r", pair, segment) for pair in (("a", "b"), ("b", "a")))
    assert one == other
    assert share_encryption_info(b"c", b"h", "a", "b") != share_encryption_info(b"c", b"h", "b", "a")


def test_a_mask_is_bound_to_all_of_its_context() -> None:
    infos = {
        pairwise_seed_info(b"context", b"cohort", b"request", ("a", "b"), Segment.COUNTS),
        pairwise_seed_info(b"other", b"cohort", b"request", ("a", "b"), Segment.COUNTS),
        pairwise_seed_info(b"context", b"other", b"request", ("a", "b"), Segment.COUNTS),
        pairwise_seed_info(b"context", b"cohort", b"other", ("a", "b"), Segment.COUNTS),
        pairwise_seed_info(b"context", b"cohort", b"request", ("a", "c"), Segment.COUNTS),
        pairwise_seed_info(b"context", b"cohort", b"request", ("a", "b"), Segment.CHANGE),
        self_mask_info(b"context", "a", Segment.COUNTS),
        self_mask_info(b"other", "a", Segment.COUNTS),
        self_mask_info(b"context", "b", Segment.COUNTS),
        self_mask_info(b"context", "a", Segment.CHANGE),
    }
    assert len(infos) == 10
