"""A server, network or hospital that tampers with public keys, so as to read another's shares or masks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.secagg.advertise_keys import advertise, collect, signed_part
from common.secagg.errors import (
    ConfigHashError,
    DirectoryMismatchError,
    DuplicateKeyError,
    ForeignIdentityError,
    ImpersonationError,
    KeySignatureError,
    LowOrderPointError,
    NonCanonicalKeyError,
    OmittedHospitalError,
    PublicKeyError,
    ReflectedKeyError,
    ReplayedMessageError,
    SecAggError,
    TooFewHospitalsError,
    UnknownHospitalError,
    UnsignedKeyError,
    WrongRoundError,
    WrongRunError,
)
from common.secagg.keys import public_key
from common.secagg.messages import AdvertisedKeys, KeyDirectory
from common.secagg.phases import Phase
from tests.support.parties import Consortium, Hospital

BAD_KEYS = json.loads((Path(__file__).parents[1] / "vectors" / "secagg_bad_public_keys.json").read_text())["vectors"]
THE_SERVERS_OWN = bytes(range(32))
VICTIM, PEER, OTHER = "hospital-1", "hospital-2", "hospital-3"


@pytest.fixture
def consortium() -> Consortium:
    return Consortium(4)


def with_keys_of(directory: KeyDirectory, forged: AdvertisedKeys) -> KeyDirectory:
    """Return the directory with one hospital's entry exchanged for another, or added (with the threshold for more)."""
    keys = {keys.hospital: keys for keys in directory.keys} | {forged.hospital: forged}
    added = len(keys) - len(directory.keys)
    return KeyDirectory(
        directory.run_id,
        directory.round_number,
        directory.threshold + added,
        tuple(keys[name] for name in sorted(keys)),
    )


def keys_of(directory: KeyDirectory, hospital: str) -> AdvertisedKeys:
    return next(keys for keys in directory.keys if keys.hospital == hospital)


def assert_refused(
    victim: Hospital, directory: KeyDirectory, error: type[SecAggError], about: str | None = PEER
) -> None:
    """The victim deals no share, says who is to blame and where, and keeps no state."""
    with pytest.raises(error) as refusal:
        victim.share(directory)
    assert refusal.type is error
    assert (refusal.value.place.party, refusal.value.place.phase) == (victim.name, Phase.SHARE_KEYS)
    assert refusal.value.hospital == (about or victim.name)
    assert victim.shared == {}


def test_a_key_that_the_server_swapped_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    genuine, swapped = keys_of(directory, PEER), public_key(THE_SERVERS_OWN)
    for forged in (replace(genuine, encryption_key=swapped), replace(genuine, masking_key=swapped)):
        assert_refused(consortium[VICTIM], with_keys_of(directory, forged), KeySignatureError)


def test_two_keys_of_one_hospital_exchanged_for_each_other_are_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    keys = keys_of(directory, PEER)
    crossed = replace(keys, encryption_key=keys.masking_key, masking_key=keys.encryption_key)
    assert_refused(consortium[VICTIM], with_keys_of(directory, crossed), KeySignatureError)


def test_an_unsigned_key_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    unsigned = replace(keys_of(directory, PEER), signature=b"")
    assert_refused(consortium[VICTIM], with_keys_of(directory, unsigned), UnsignedKeyError)


def test_a_key_signed_by_an_identity_outside_the_roster_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    _, forged = advertise(consortium.run, 1, PEER, consortium.new_identity(), consortium.source.randbytes)
    assert_refused(consortium[VICTIM], with_keys_of(directory, forged), ForeignIdentityError)


def test_a_key_that_claims_the_rosters_identity_but_was_signed_by_another_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    _, forged = advertise(consortium.run, 1, PEER, consortium.new_identity(), consortium.source.randbytes)
    claimed = replace(forged, identity=consortium.run.roster[PEER])
    assert_refused(consortium[VICTIM], with_keys_of(directory, claimed), KeySignatureError)


def test_an_invented_hospital_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    _, invented = advertise(consortium.run, 1, "ghost", consortium.new_identity(), consortium.source.randbytes)
    assert_refused(consortium[VICTIM], with_keys_of(directory, invented), UnknownHospitalError, about="ghost")


def test_one_hospitals_keys_under_anothers_name_are_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    renamed = replace(keys_of(directory, OTHER), hospital=PEER)
    assert_refused(consortium[VICTIM], with_keys_of(directory, renamed), ForeignIdentityError)


def test_the_servers_inventions_are_refused_by_an_honest_server_too(consortium: Consortium) -> None:
    messages = {name: consortium[name].advertise(1) for name in consortium.names}
    messages[PEER] = replace(messages[PEER], signature=b"")
    collected = collect(consortium.run, 1, messages)
    assert [type(refusal) for refusal in collected.refusals] == [UnsignedKeyError]
    assert collected.refusals[0].hospital == PEER
    assert [keys.hospital for keys in collected.directory.keys] == [name for name in consortium.names if name != PEER]


def test_too_few_good_keys_end_the_round_before_it_starts(consortium: Consortium) -> None:
    messages = {name: consortium[name].advertise(1) for name in consortium.names}
    forged = {name: replace(messages[name], signature=b"") for name in (PEER, OTHER)}
    with pytest.raises(TooFewHospitalsError):
        collect(consortium.run, 1, {**messages, **forged})


def test_a_hospital_that_advertises_for_another_is_refused(consortium: Consortium) -> None:
    messages = {name: consortium[name].advertise(1) for name in consortium.names}
    messages[PEER] = messages[OTHER]
    collected = collect(consortium.run, 1, messages)
    assert [type(refusal) for refusal in collected.refusals] == [ImpersonationError]


def test_keys_replayed_from_an_earlier_round_are_refused(consortium: Consortium) -> None:
    earlier = consortium.directory(1)
    directory = consortium.directory(2)
    replayed = with_keys_of(directory, keys_of(earlier, PEER))
    assert_refused(consortium[VICTIM], replayed, ReplayedMessageError)


def test_keys_of_an_earlier_round_relabelled_as_of_this_one_are_refused(consortium: Consortium) -> None:
    earlier = consortium.directory(1)
    directory = consortium.directory(2)
    relabelled = replace(keys_of(earlier, PEER), round_number=2)
    assert_refused(consortium[VICTIM], with_keys_of(directory, relabelled), KeySignatureError)


def test_a_whole_directory_replayed_from_an_earlier_round_is_refused(consortium: Consortium) -> None:
    earlier = consortium.directory(1)
    consortium.directory(2)
    with pytest.raises(ReplayedMessageError):
        consortium[VICTIM].share(replace(earlier, round_number=2))


def test_keys_of_a_round_to_come_are_refused(consortium: Consortium) -> None:
    later = consortium.directory(2)
    directory = consortium.directory(1)
    assert_refused(consortium[VICTIM], with_keys_of(directory, keys_of(later, PEER)), WrongRoundError)


def test_keys_for_another_run_are_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    other_run = replace(consortium.run, run_id="f" * 32)
    _, stray = advertise(other_run, 1, PEER, consortium[PEER].identity, consortium.source.randbytes)
    assert_refused(consortium[VICTIM], with_keys_of(directory, stray), WrongRunError)


def test_a_directory_of_another_run_is_refused(consortium: Consortium) -> None:
    directory = replace(consortium.directory(), run_id="f" * 32)
    assert_refused(consortium[VICTIM], directory, WrongRunError, about=None)


def test_keys_made_under_a_stale_configuration_are_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    stale_run = replace(consortium.run, config_hash=bytes(32))
    _, stale = advertise(stale_run, 1, PEER, consortium[PEER].identity, consortium.source.randbytes)
    assert_refused(consortium[VICTIM], with_keys_of(directory, stale), ConfigHashError)


def test_a_hospitals_own_keys_reflected_under_another_name_are_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    own = keys_of(directory, VICTIM)
    for stolen in (own.encryption_key, own.masking_key):
        _, peers = advertise(consortium.run, 1, PEER, consortium[PEER].identity, consortium.source.randbytes)
        reflected = _resigned(consortium[PEER], replace(peers, masking_key=stolen))
        assert_refused(consortium[VICTIM], with_keys_of(directory, reflected), ReflectedKeyError)


def test_a_peers_key_copied_by_another_peer_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    copied = replace(keys_of(directory, OTHER), masking_key=keys_of(directory, PEER).masking_key)
    resigned = _resigned(consortium[OTHER], copied)
    assert_refused(consortium[VICTIM], with_keys_of(directory, resigned), DuplicateKeyError, about=OTHER)


def test_one_key_for_both_purposes_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    keys = keys_of(directory, PEER)
    resigned = _resigned(consortium[PEER], replace(keys, masking_key=keys.encryption_key))
    assert_refused(consortium[VICTIM], with_keys_of(directory, resigned), DuplicateKeyError)


@pytest.mark.parametrize("vector", BAD_KEYS, ids=[vector["name"] for vector in BAD_KEYS])
@pytest.mark.parametrize("purpose", ["encryption", "masking"])
def test_a_dangerous_point_is_refused_by_hospital_and_server(
    consortium: Consortium, vector: dict[str, str], purpose: str
) -> None:
    errors: dict[str, type[PublicKeyError]] = {
        "LowOrderPointError": LowOrderPointError,
        "NonCanonicalKeyError": NonCanonicalKeyError,
    }
    directory = consortium.directory()
    genuine, key = keys_of(directory, PEER), bytes.fromhex(vector["key"])
    bad = replace(genuine, encryption_key=key) if purpose == "encryption" else replace(genuine, masking_key=key)
    signed = _resigned(consortium[PEER], bad)
    assert_refused(consortium[VICTIM], with_keys_of(directory, signed), errors[vector["error"]])
    messages = {keys.hospital: keys for keys in with_keys_of(directory, signed).keys}
    assert [refusal.code for refusal in collect(consortium.run, 1, messages).refusals] == [errors[vector["error"]].code]


def test_a_directory_without_the_hospital_it_is_sent_to_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    without = replace(directory, keys=tuple(keys for keys in directory.keys if keys.hospital != VICTIM))
    assert_refused(consortium[VICTIM], without, OmittedHospitalError, about=None)


def test_a_directory_with_other_keys_of_the_hospital_itself_is_refused(consortium: Consortium) -> None:
    directory = consortium.directory()
    forgotten = keys_of(directory, VICTIM)
    consortium[VICTIM].advertise(1)
    assert keys_of(directory, VICTIM) == forgotten
    assert_refused(consortium[VICTIM], directory, DirectoryMismatchError, about=None)


def _resigned(signer: Hospital, keys: AdvertisedKeys) -> AdvertisedKeys:
    """Sign whatever keys a dishonest hospital chose, as its own program would."""
    return replace(keys, signature=signer.identity.sign(signed_part(signer.run, keys)))
