import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg import errors, messages
from common.secagg.errors import SERVER, MessageError, OversizedMessageError, Place
from common.secagg.messages import (
    AdvertisedKeys,
    DisputableDirectory,
    DisputableKeys,
    Dispute,
    DisputedVector,
    DroppedKey,
    EncryptedShare,
    EncryptedShares,
    FullUnmaskingRequest,
    KeyDirectory,
    Limits,
    MaskedInput,
    MaskedInputRequest,
    Message,
    OpenedChange,
    OpenedChanges,
    OpenedCommitment,
    RevealedShare,
    SealedCommitment,
    SignedView,
    SumProof,
    SurvivorList,
    SurvivorSignature,
    UnmaskingRequest,
    UnmaskingShares,
    decode,
    encode,
)
from common.secagg.parameters import VERSION
from common.secagg.phases import Phase

BAD_MESSAGES = json.loads((Path(__file__).parents[3] / "vectors" / "secagg_bad_messages.json").read_text())["vectors"]
PLACE = Place(SERVER, 7, Phase.SHARE_KEYS)
MESSAGE_TYPES: tuple[type[Message], ...] = (
    AdvertisedKeys,
    KeyDirectory,
    EncryptedShares,
    MaskedInputRequest,
    MaskedInput,
    SurvivorList,
    SurvivorSignature,
    UnmaskingRequest,
    UnmaskingShares,
    FullUnmaskingRequest,
    SealedCommitment,
    SumProof,
    DisputableKeys,
    DisputableDirectory,
    Dispute,
    OpenedChange,
    OpenedChanges,
)

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
run_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
rounds = st.integers(0, 2**64 - 1)
hashes = st.binary(min_size=32, max_size=32)
signatures = st.binary(max_size=64)
commitments = st.binary(max_size=32)


def sorted_by(key: str | None, items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    def of(item: Any) -> Any:  # noqa: ANN401 - a name or any message part
        return item if key is None else getattr(item, key)

    return st.lists(items, max_size=4, unique_by=of).map(lambda found: tuple(sorted(found, key=of)))


several = sorted_by(None, names)
advertised = st.builds(AdvertisedKeys, run_ids, rounds, names, hashes, hashes, hashes, hashes, signatures)
encrypted = st.builds(EncryptedShare, names, names, st.binary(max_size=messages.LONGEST_CIPHERTEXT), hashes, hashes)
signed = st.builds(SurvivorSignature, run_ids, rounds, names, hashes, hashes, hashes, hashes, signatures)
revealed = sorted_by("owner", st.builds(RevealedShare, names, st.binary(min_size=33, max_size=33)))
disputable = st.builds(DisputableKeys, run_ids, rounds, names, hashes, hashes, hashes, hashes, signatures, hashes)
disputed = st.builds(DisputedVector, names, st.binary(max_size=100), hashes, hashes, hashes)
opened = st.builds(OpenedChange, run_ids, rounds, names, hashes, signatures)
any_message = st.one_of(
    advertised,
    disputable,
    st.builds(DisputableDirectory, run_ids, rounds, st.integers(0, 65_535), sorted_by("hospital", disputable)),
    st.builds(
        Dispute,
        run_ids,
        rounds,
        sorted_by("hospital", disputed),
        sorted_by("hospital", st.builds(DroppedKey, names, hashes)),
    ),
    opened,
    st.builds(OpenedChanges, run_ids, rounds, sorted_by("hospital", opened)),
    st.builds(KeyDirectory, run_ids, rounds, st.integers(0, 65_535), sorted_by("hospital", advertised)),
    st.builds(EncryptedShares, run_ids, rounds, names, hashes, hashes, sorted_by("recipient", encrypted)),
    st.builds(MaskedInputRequest, run_ids, rounds, st.binary(max_size=300), several, sorted_by("dealer", encrypted)),
    st.builds(
        MaskedInput,
        run_ids,
        rounds,
        names,
        *[hashes] * 4,
        st.sampled_from((16, 32)),
        rounds,
        hashes,
        commitments,
        signatures,
    ),
    st.builds(
        FullUnmaskingRequest,
        run_ids,
        rounds,
        sorted_by("hospital", st.builds(SignedView, names, hashes, commitments, signatures)),
    ),
    st.builds(SurvivorList, run_ids, rounds, several, several),
    signed,
    st.builds(UnmaskingRequest, run_ids, rounds, several, several, sorted_by("hospital", signed)),
    st.builds(UnmaskingShares, run_ids, rounds, names, revealed, revealed),
    st.builds(SealedCommitment, run_ids, rounds, names, st.binary(max_size=100)),
    st.builds(
        SumProof,
        run_ids,
        rounds,
        sorted_by("hospital", st.builds(OpenedCommitment, names, st.binary(max_size=100))),
    ),
)


@given(any_message)
def test_decoding_undoes_encoding(message: Message) -> None:
    assert decode(encode(message), type(message), Limits(), PLACE) == message


@given(any_message, st.data())
def test_a_truncated_message_is_refused_by_name(message: Message, data: st.DataObject) -> None:
    encoded = encode(message)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(errors.TruncatedMessageError):
        decode(encoded[:cut], type(message), Limits(), PLACE)


@given(st.sampled_from(MESSAGE_TYPES), st.binary(max_size=400), st.booleans())
def test_any_bytes_are_a_message_or_refused_by_name(kind: type[Message], noise: bytes, headed: bool) -> None:
    type_byte = messages._LAYOUTS[kind][0]
    encoded = b"CSA" + bytes([VERSION, type_byte]) + noise if headed else noise
    try:
        message = decode(encoded, kind, Limits(), PLACE)
    except MessageError:
        return
    assert encode(message) == encoded


@given(any_message, st.data())
@settings(max_examples=200)
def test_a_changed_byte_gives_another_message_or_is_refused_by_name(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(encode(message))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(encoded), type(message), Limits(), PLACE)
    except MessageError:
        return
    assert other != message


@pytest.mark.parametrize("vector", BAD_MESSAGES, ids=[vector["name"] for vector in BAD_MESSAGES])
def test_stored_bad_bytes_are_refused_each_by_its_name(vector: dict[str, Any]) -> None:
    kind = getattr(messages, vector["message_type"])
    with pytest.raises(MessageError) as refusal:
        decode(bytes.fromhex(vector["bytes"]), kind, Limits(vector["hospitals"]), PLACE, "hospital-2")
    assert type(refusal.value).__name__ == vector["error"]
    assert (refusal.value.hospital, refusal.value.place) == ("hospital-2", PLACE)


def test_bytes_beyond_the_longest_message_are_refused_without_being_read() -> None:
    longest = 5 + messages._LAYOUTS[SurvivorList][1].longest(Limits(3))
    with pytest.raises(OversizedMessageError, match=f"at most {longest} bytes"):
        decode(b"\xff" * (longest + 1), SurvivorList, Limits(3), PLACE)


def test_the_longest_message_fits_its_limit() -> None:
    longest_names = tuple(f"{number}".rjust(messages.LONGEST_NAME, "a") for number in range(3))
    message = SurvivorList("0" * 32, 1, longest_names, longest_names)
    encoded = encode(message)
    assert len(encoded) == 5 + messages._LAYOUTS[SurvivorList][1].longest(Limits(3))
    assert decode(encoded, SurvivorList, Limits(3), PLACE) == message


def test_encoding_refuses_what_has_no_canonical_bytes() -> None:
    good = AdvertisedKeys("0" * 32, 1, "a", bytes(32), bytes(32), bytes(32), bytes(32), b"")
    for bad in (replace(good, config_hash=b""), replace(good, signature=bytes(65)), replace(good, hospital="a" * 64)):
        with pytest.raises(ValueError, match="must have"):
            encode(bad)
    with pytest.raises(ValueError, match="sorted"):
        encode(SurvivorList("0" * 32, 1, ("b", "a"), ()))
    with pytest.raises(ValueError, match="sorted"):
        encode(SurvivorList("0" * 32, 1, ("a", "a"), ()))


@pytest.mark.parametrize("kind", MESSAGE_TYPES)
def test_every_field_of_a_message_travels(kind: type[Message]) -> None:
    assert list(messages._LAYOUTS[kind][1].fields) == [field.name for field in fields(kind)]


def test_each_type_has_its_own_byte() -> None:
    assert len({type_byte for type_byte, _ in messages._LAYOUTS.values()}) == len(MESSAGE_TYPES)


def test_a_revealed_share_is_not_in_its_repr() -> None:
    assert "share" not in repr(RevealedShare("hospital-1", bytes(33))).replace("RevealedShare", "")
