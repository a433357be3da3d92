"""Phase 0, AdvertiseKeys: each hospital publishes two fresh X25519 keys, signed with its identity.

Proof that the refused keys are the right ones: ``docs/proofs/public-keys.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.secagg.binding import bind, require_place, round_context
from common.secagg.erasing import erase
from common.secagg.errors import (
    SERVER,
    ConfigHashError,
    ForeignIdentityError,
    KeySignatureError,
    LowOrderPointError,
    NonCanonicalKeyError,
    Place,
    SecAggError,
    TooFewHospitalsError,
    UnsignedKeyError,
)
from common.secagg.keys import KEY_BYTES, is_canonical, is_low_order, is_signed, public_key
from common.secagg.masking_keys import derived_key
from common.secagg.messages import (
    AdvertisedKeys,
    DisputableDirectory,
    DisputableKeys,
    KeyDirectory,
    encode,
)
from common.secagg.parameters import RunParameters, Segment
from common.secagg.phases import Phase
from common.secagg.shamir import Random


@dataclass(frozen=True)
class RoundKeys:
    """A hospital's state after AdvertiseKeys; lives in memory only, for one round."""

    run: RunParameters
    round_number: int
    hospital: str
    encryption_key: bytes = field(repr=False)
    """c_u^SK"""
    masking_key: bytes = field(repr=False)
    """s_u^SK; in a run that has disputes the seed of two, one for each segment (:mod:`common.secagg.masking_keys`)."""
    advertised: AdvertisedKeys

    def erase(self) -> None:
        """Overwrite both private keys."""
        erase(self.encryption_key, self.masking_key)


@dataclass(frozen=True)
class Collected:
    """The server's state after AdvertiseKeys: what to send to everyone in it, and whose keys were refused."""

    directory: KeyDirectory
    refusals: tuple[SecAggError, ...]


def advertise(
    run: RunParameters, round_number: int, hospital: str, identity_key: Ed25519PrivateKey, random: Random
) -> tuple[RoundKeys, AdvertisedKeys]:
    """Make a hospital's two key pairs for one round (Bonawitz et al. 2017, figure 4, round 0, user).

    Args:
        run: this hospital's own view of the run.
        round_number: never used before with this run; see :mod:`common.secagg.answered_rounds`.
        hospital: this hospital's name on the roster.
        identity_key: whose public key the roster has for this hospital.
        random: cryptographic source; 64 bytes are drawn.

    Returns:
        The state to keep, and the message for the server.
    """
    encryption_key, masking_key = random(KEY_BYTES), random(KEY_BYTES)
    public = {segment: _public_half(run, round_number, hospital, masking_key, segment) for segment in Segment}
    unsigned = AdvertisedKeys(
        run_id=run.run_id,
        round_number=round_number,
        hospital=hospital,
        config_hash=run.config_hash,
        identity=identity_key.public_key().public_bytes_raw(),
        encryption_key=public_key(encryption_key),
        masking_key=public[Segment.COUNTS],
        signature=b"",
    )
    if run.disputes:
        unsigned = DisputableKeys(**vars(unsigned), change_key=public[Segment.CHANGE])
    advertised = replace(unsigned, signature=identity_key.sign(signed_part(run, unsigned)))
    return RoundKeys(run, round_number, hospital, encryption_key, masking_key, advertised), advertised


def _public_half(run: RunParameters, round_number: int, hospital: str, masking_key: bytes, segment: Segment) -> bytes:
    with derived_key(run, round_number, hospital, masking_key, segment) as private:
        return public_key(private)


def keys_type(run: RunParameters) -> type[AdvertisedKeys]:
    """Return which message advertises keys in a run."""
    return DisputableKeys if run.disputes else AdvertisedKeys


def directory_type(run: RunParameters) -> type[KeyDirectory]:
    """Return which message is a round's directory in a run."""
    return DisputableDirectory if run.disputes else KeyDirectory


def collect(run: RunParameters, round_number: int, messages: Mapping[str, AdvertisedKeys]) -> Collected:
    """Check everyone's keys and open the round's directory (figure 4, round 0, server).

    Args:
        run: the server's view of the run.
        round_number: the round these keys are for.
        messages: authenticated sender to message.

    Returns:
        The directory of those whose keys are good, and an error for each of the others.

    Raises:
        TooFewHospitalsError: fewer than the threshold are left; no round can start.
    """
    place = Place(SERVER, round_number, Phase.ADVERTISE_KEYS)
    accepted, refusals = [], []
    for sender, message in sorted(messages.items()):
        try:
            verify(run, round_number, message, place, sender)
        except SecAggError as refusal:
            refusals.append(refusal)
        else:
            accepted.append(message)
    threshold = run.threshold(len(accepted))
    if len(accepted) < threshold:
        raise TooFewHospitalsError(
            place, f"at least {threshold} hospitals must advertise keys, got {len(accepted)} with good ones"
        )
    made = directory_type(run)(run.run_id, round_number, threshold, tuple(accepted))
    return Collected(made, tuple(refusals))


def verify(run: RunParameters, round_number: int, message: AdvertisedKeys, place: Place, sender: str) -> None:
    """Refuse keys that are not fresh for this round, not on the roster, not signed, or not usable.

    Server and hospitals call it alike: a hospital takes no key on the server's word.

    Raises:
        ContextError, UnknownHospitalError, PublicKeyError: one of their kinds.
    """
    require_place(run, round_number, message, place, sender)
    if type(message) is not keys_type(run):
        raise KeySignatureError(
            place, "keys must have one for changes where a run has disputes, and none elsewhere", sender
        )
    if message.config_hash != run.config_hash:
        raise ConfigHashError(place, "keys must be made under this run's configuration", sender)
    if message.identity != run.roster[sender]:
        raise ForeignIdentityError(place, "keys must be signed by the identity on the roster", sender)
    if not message.signature:
        raise UnsignedKeyError(place, "keys must be signed, got no signature", sender)
    if not is_signed(message.identity, message.signature, signed_part(run, message)):
        raise KeySignatureError(place, "the signature must be over these keys", sender)
    for key in public_keys(message):
        if not is_canonical(key):
            raise NonCanonicalKeyError(place, "a public key must be in its reduced encoding", sender)
        if is_low_order(key):
            raise LowOrderPointError(place, "a public key must not be of low order", sender)


def public_keys(message: AdvertisedKeys) -> tuple[bytes, ...]:
    """Return every public key that a hospital advertises."""
    two = (message.encryption_key, message.masking_key)
    return (*two, message.change_key) if isinstance(message, DisputableKeys) else two


def signed_part(run: RunParameters, message: AdvertisedKeys) -> bytes:
    """Return what a hospital's identity signs: the keys, bound to version, run, round and configuration."""
    unsigned = encode(replace(message, signature=b""))
    return bind("advertised keys", round_context(run, message.round_number), unsigned)
