"""Secrets that are erased are zero, wherever the protocol still holds them, and nothing else is."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from common.secagg import keys as keys_module
from common.secagg import masked_input, shamir, share_keys, unmasking
from common.secagg.erasing import erase
from common.secagg.errors import InconsistentDealingError, SecAggError
from common.secagg.masks import Mask, apply_masks
from common.secagg.messages import MaskedInputRequest
from common.secagg.parameters import Adversary, Vector
from common.secagg.share_keys import SharePair
from tests.support.parties import TERMS, Consortium

NAME = "hospital-1"


def is_erased(*secrets: bytes) -> bool:
    return all(len(secret) >= 32 and not any(secret) for secret in secrets)


def both(pair: SharePair) -> tuple[bytes, bytes]:
    return pair.self_mask, pair.masking_key


def request_of(consortium: Consortium) -> MaskedInputRequest:
    return consortium.routed().request_for(NAME, TERMS)


@pytest.fixture
def consortium() -> Consortium:
    return Consortium(4)


@pytest.mark.parametrize("length", [2, 32, 33, 10_000])
def test_what_is_erased_is_zero_in_every_byte(length: int) -> None:
    secret, neighbour = os.urandom(length), os.urandom(length)
    before = bytearray(neighbour)
    erase(secret)
    assert secret == bytes(length)
    assert neighbour == before


def test_several_are_erased_at_once_and_twice_is_as_good_as_once() -> None:
    first, second = os.urandom(32), os.urandom(33)
    for _ in range(2):
        erase(first, second)
        assert is_erased(first, second)


def test_the_objects_that_cpython_shares_are_left_alone() -> None:
    for byte in range(256):
        erase(bytes([byte]))
        assert bytes([byte])[0] == byte
    erase(b"", bytes(0))
    assert len(b"") == 0


def test_round_keys_erase_both_private_keys(consortium: Consortium) -> None:
    consortium.directory()
    keys = consortium[NAME].keys[1]
    keys.erase()
    assert is_erased(keys.encryption_key, keys.masking_key)
    assert any(keys.advertised.encryption_key)


def test_shared_keys_erase_the_keys_the_seed_and_the_hospitals_own_shares(consortium: Consortium) -> None:
    consortium.routed()
    shared = consortium[NAME].shared[1]
    shared.erase()
    assert is_erased(shared.keys.encryption_key, shared.keys.masking_key, shared.self_mask_seed)
    assert is_erased(*both(shared.own_shares))


def test_what_was_accepted_erases_what_was_opened_for_it_and_can_be_accepted_again(consortium: Consortium) -> None:
    request, shared = request_of(consortium), consortium[NAME].shared[1]
    accepted = masked_input.accept(shared, request)
    accepted.erase()
    assert len(accepted.shares) == 3
    assert all(is_erased(*both(pair)) for pair in accepted.shares.values())
    again = masked_input.accept(shared, request)
    assert not any(is_erased(secret) for pair in again.shares.values() for secret in both(pair))


@pytest.mark.parametrize("adversary", list(Adversary))
def test_a_round_completes_when_every_state_is_erased_as_soon_as_the_next_is_there(adversary: Adversary) -> None:
    consortium = Consortium(5, adversary=adversary)
    vectors = {name: consortium.vector() for name in consortium.names}
    total = consortium.masked_sum(lost=("hospital-5",), vectors=vectors)
    for hospital in consortium.hospitals.values():
        hospital.shared[1].erase()
    request = consortium.unmasking_request(total)
    unmasked = consortium.unmask(total, request)
    assert np.array_equal(unmasked.total, sum((vectors[name] for name in request.survivors), np.zeros(16, np.uint16)))
    for name in request.survivors:
        state = consortium[name].signed.get(1) or consortium[name].masked[1]
        state.erase()
        shares = consortium[name].masked[1].shares
        assert set(shares) == set(consortium.names)
        assert all(is_erased(*both(pair)) for pair in shares.values())


def test_dealing_leaves_no_share_for_another_hospital(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    plaintexts: list[bytes] = []
    keys: list[bytes] = []

    def watched(key: bytes, plaintext: bytes, random: shamir.Random) -> bytes:
        keys.append(key)
        plaintexts.append(plaintext)
        return keys_module.encrypt(key, plaintext, random)

    monkeypatch.setattr(share_keys, "encrypt", watched)
    consortium.routed()
    assert len(keys) == len(plaintexts) == 4 * 3
    assert is_erased(*keys, *plaintexts)


def test_opening_leaves_keys_and_plaintexts_behind_as_zeros(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[bytes | None] = []

    def watched(key: bytes, ciphertext: bytes) -> bytes | None:
        handled.extend((key, keys_module.decrypt(key, ciphertext)))
        return handled[-1]

    request = request_of(consortium)
    monkeypatch.setattr(masked_input, "decrypt", watched)
    consortium[NAME].mask(request, consortium.vector())
    assert len(handled) == 2 * 3
    assert is_erased(*(secret for secret in handled if secret is not None))


@pytest.mark.parametrize("bad", ["ciphertext", "self_mask_commitment"])
def test_a_refused_inbox_leaves_no_opened_share(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    request = request_of(consortium)
    *good, last = request.inbox
    zeros = bytes(len(getattr(last, bad)))
    altered = replace(last, ciphertext=zeros) if bad == "ciphertext" else replace(last, self_mask_commitment=zeros)
    pairs: list[SharePair] = []

    def watched(*secrets: bytes) -> SharePair:
        pairs.append(SharePair(*secrets))
        return pairs[-1]

    monkeypatch.setattr(masked_input, "SharePair", watched)
    with pytest.raises(SecAggError):
        consortium[NAME].mask(replace(request, inbox=(*good, altered)), consortium.vector())
    assert len(pairs) == len(good) + (bad != "ciphertext")
    assert all(is_erased(*both(pair)) for pair in pairs)


@pytest.mark.parametrize("fails", [False, True])
def test_mask_seeds_are_erased_also_when_masking_fails(consortium: Consortium, *, fails: bool) -> None:
    seeds: list[bytes] = []

    def watched(vector: Vector, masks: Sequence[Mask]) -> None:
        seeds.extend(mask.seed for mask in masks)
        assert not any(is_erased(mask.seed) for mask in masks)
        if fails:
            raise MemoryError
        apply_masks(vector, masks)

    request, shared = request_of(consortium), consortium[NAME].shared[1]
    try:
        masked_input.mask(shared, consortium[NAME].identity, request, consortium.vector().copy(), watched)
    except MemoryError:
        assert fails
    # Each part of the vector has masks of its own.
    assert len(seeds) == (4 if fails else 2 * 4)
    assert is_erased(*seeds)


@pytest.mark.parametrize("fails", [False, True])
def test_the_server_erases_what_it_rebuilt_and_the_seeds_it_made_of_it(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    rebuilt: list[bytes] = []
    seeds: list[bytes] = []
    rebuild = shamir.rebuild

    def watched(shares: Mapping[int, bytes]) -> bytes | None:
        last_of_all = fails and len(rebuilt) == 3
        secret = os.urandom(32) if last_of_all else rebuild(shares)
        assert secret is not None
        rebuilt.append(secret)
        return secret

    def apply(vector: Vector, masks: Sequence[Mask]) -> None:
        seeds.extend(mask.seed for mask in masks)
        apply_masks(vector, masks)

    total = consortium.masked_sum(lost=("hospital-4",))
    request = consortium.unmasking_request(total)
    revealed = {name: consortium[name].reveal(request) for name in request.survivors}
    monkeypatch.setattr(shamir, "rebuild", watched)
    try:
        unmasking.unmask(total, revealed, apply)
    except InconsistentDealingError:
        assert fails
    assert len(rebuilt) == 4
    assert len(seeds) == (0 if fails else 2 * (3 + 3))
    assert is_erased(*rebuilt, *seeds)
