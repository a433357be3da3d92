"""No secret shows in a repr or an error, whatever state or message a log line happens to hold."""

from dataclasses import replace

import pytest

from common.secagg.errors import SecAggError
from tests.support.parties import TERMS, Consortium


def forms_of(secret: bytes) -> set[str]:
    return {repr(secret)[2:-1], secret.hex(), str(list(secret))}


def test_no_state_shows_a_secret_in_its_repr() -> None:
    consortium = Consortium(4)
    total = consortium.masked_sum()
    request = consortium.unmasking_request(total)
    shares = consortium["hospital-1"].reveal(request)
    for hospital in consortium.hospitals.values():
        keys, shared, masked = hospital.keys[1], hospital.shared[1], hospital.masked[1]
        pairs = [shared.own_shares, *masked.shares.values()]
        secrets = [keys.encryption_key, keys.masking_key, shared.self_mask_seed]
        secrets += [secret for pair in pairs for secret in (pair.self_mask, pair.masking_key)]
        shown = repr((keys, shared, masked, hospital.signed[1], shares, pairs))
        assert not [form for secret in secrets for form in forms_of(secret) if form in shown]


def test_no_error_shows_a_secret() -> None:
    consortium = Consortium(4)
    request = consortium.routed().request_for("hospital-1", TERMS)
    altered = replace(request.inbox[0], self_mask_commitment=bytes(32))
    shared = consortium["hospital-1"].shared[1]
    secrets = [shared.self_mask_seed, shared.keys.masking_key, shared.keys.encryption_key, altered.ciphertext]
    with pytest.raises(SecAggError) as refusal:
        consortium["hospital-1"].mask(replace(request, inbox=(altered, *request.inbox[1:])), consortium.vector())
    assert not [form for secret in secrets for form in forms_of(secret) if form in str(refusal.value)]
