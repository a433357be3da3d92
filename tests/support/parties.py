"""A whole consortium in memory: hospitals and server as the protocol sees them, every message through its bytes.

Nothing here knows what is inside a message; the tests reach in and change one where they play a liar.
"""

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.secagg import advertise_keys, consistency_check, full_unmasking, masked_input, share_keys, unmasking
from common.secagg.errors import SERVER, Place
from common.secagg.messages import (
    AdvertisedKeys,
    EncryptedShares,
    FullUnmaskingRequest,
    KeyDirectory,
    Limits,
    MaskedInput,
    MaskedInputRequest,
    Message,
    SurvivorList,
    SurvivorSignature,
    UnmaskingRequest,
    UnmaskingShares,
    decode,
    encode,
)
from common.secagg.parameters import Adversary, RunParameters, Vector
from common.secagg.phases import Phase

RUN_ID = "0123456789abcdef0123456789abcdef"
CONFIG_HASH = bytes(range(32))
TERMS = b"train from this model"
"""What every round here asks for; the protocol takes any bytes."""
PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)

M = TypeVar("M", bound=Message)


def sent(message: M) -> M:
    """Send a message over a wire that changes nothing."""
    return decode(encode(message), type(message), Limits(), PLACE)


@dataclass
class Hospital:
    """One hospital: its identity, its own view of the run, and the state of each phase by round."""

    name: str
    identity: Ed25519PrivateKey
    run: RunParameters
    random: Callable[[int], bytes] = field(repr=False)
    keys: dict[int, advertise_keys.RoundKeys] = field(default_factory=dict)
    shared: dict[int, share_keys.SharedKeys] = field(default_factory=dict)
    masked: dict[int, masked_input.MaskedState] = field(default_factory=dict)
    signed: dict[int, consistency_check.SignedState] = field(default_factory=dict)

    def advertise(self, round_number: int) -> AdvertisedKeys:
        self.keys[round_number], message = advertise_keys.advertise(
            self.run, round_number, self.name, self.identity, self.random
        )
        return message

    def share(self, directory: KeyDirectory) -> EncryptedShares:
        keys = self.keys[directory.round_number]
        self.shared[directory.round_number], message = share_keys.share(keys, directory, self.random)
        return message

    def mask(self, request: MaskedInputRequest, vector: Vector) -> tuple[MaskedInput, Vector]:
        shared = self.shared[request.round_number]
        self.masked[request.round_number], message, masked = masked_input.mask(
            shared, self.identity, request, vector.copy()
        )
        return message, masked

    def sign(self, survivors: SurvivorList) -> SurvivorSignature:
        masked = self.masked[survivors.round_number]
        self.signed[survivors.round_number], message = consistency_check.sign_survivors(
            masked, self.identity, survivors
        )
        return message

    def reveal(self, request: UnmaskingRequest) -> UnmaskingShares:
        signed = self.signed.get(request.round_number)
        return unmasking.reveal(signed or self.masked[request.round_number], request)

    def reveal_all(self, request: FullUnmaskingRequest) -> UnmaskingShares:
        return full_unmasking.reveal_all(self.masked[request.round_number], request)


class Consortium:
    """Hospitals and an honest server; ``seed`` decides every key, so that a failure can be repeated."""

    def __init__(self, hospitals: int, seed: int = 0, **changes: Any) -> None:  # noqa: ANN401 - fields of RunParameters
        self.source = random.Random(seed)  # noqa: S311 - repeatable keys for tests
        names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
        identities = {name: self.new_identity() for name in names}
        parameters = {
            "run_id": RUN_ID,
            "config_hash": CONFIG_HASH,
            "roster": {name: key.public_key().public_bytes_raw() for name, key in identities.items()},
            "min_hospitals": 3,
            "modulus_bits": 16,
            "vector_length": 16,
            "adversary": Adversary.ACTIVE,
        }
        self.run = RunParameters(**{**parameters, **changes})
        self.hospitals = {
            name: Hospital(name, identity, self.run, self.source.randbytes) for name, identity in identities.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.run.roster)

    def __getitem__(self, name: str) -> Hospital:  # noqa: D105 - a test reads as consortium["hospital-1"]
        return self.hospitals[name]

    def new_identity(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.source.randbytes(32))

    def vector(self) -> Vector:
        random_bytes = self.source.randbytes(self.run.vector_length * self.run.dtype.itemsize)
        vector: Vector = np.frombuffer(random_bytes, self.run.dtype)
        return vector

    def directory(self, round_number: int = 1, who: Iterable[str] | None = None) -> KeyDirectory:
        """Run AdvertiseKeys."""
        messages = {name: sent(self[name].advertise(round_number)) for name in who or self.names}
        collected = advertise_keys.collect(self.run, round_number, messages)
        assert collected.refusals == ()
        return sent(collected.directory)

    def routed(self, round_number: int = 1, lost: Collection[str] = ()) -> share_keys.Routed:
        """Run AdvertiseKeys and ShareKeys; ``lost`` hospitals advertise but never share."""
        directory = self.directory(round_number)
        messages = {name: sent(self[name].share(directory)) for name in self.names if name not in lost}
        routed = share_keys.route(self.run, directory, messages)
        assert routed.refusals == ()
        return routed

    def masked_sum(
        self,
        round_number: int = 1,
        lost: Collection[str] = (),
        vectors: Mapping[str, Vector] | None = None,
    ) -> masked_input.MaskedSum:
        """Run up to MaskedInputCollection, where ``lost`` hospitals do not answer; open until closed."""
        routed = self.routed(round_number)
        total = masked_input.MaskedSum(routed, TERMS)
        for name in routed.cohort:
            if name not in lost:
                vector = self.vector() if vectors is None else vectors[name]
                message, masked = self[name].mask(sent(routed.request_for(name, TERMS)), vector)
                total.add(name, sent(message), masked)
        return total

    def unmasking_request(self, total: masked_input.MaskedSum, lost: Collection[str] = ()) -> UnmaskingRequest:
        """Close the sum and, against an active adversary, run ConsistencyCheck without the ``lost`` hospitals."""
        if self.run.adversary is Adversary.SEMI_HONEST:
            return sent(consistency_check.unmasking_request(total))
        survivors = sent(total.close())
        signatures = {name: sent(self[name].sign(survivors)) for name in survivors.survivors if name not in lost}
        signed = consistency_check.collect(total, signatures)
        assert signed.refusals == ()
        return sent(signed.request)

    def unmask(
        self, total: masked_input.MaskedSum, request: UnmaskingRequest, lost: Collection[str] = ()
    ) -> unmasking.Unmasked:
        """Run Unmasking without the ``lost`` hospitals."""
        messages = {name: sent(self[name].reveal(request)) for name in request.survivors if name not in lost}
        return unmasking.unmask(total, messages)

    def unmask_all(self, total: masked_input.MaskedSum, lost: Collection[str] = ()) -> unmasking.Unmasked:
        """Open the sum over everybody at once, without the ``lost`` hospitals' answers."""
        request = sent(full_unmasking.request_all(total))
        messages = {name: sent(self[name].reveal_all(request)) for name in total.survivors if name not in lost}
        return unmasking.unmask(total, messages)


def plain_sum(run: RunParameters, vectors: Iterable[Vector]) -> Vector:
    """Return the sum by other means than the server's: over Python's integers, each segment in its own ring."""
    head = run.counts_length * (32 // run.modulus_bits)
    total: Vector = np.zeros(run.vector_length, run.dtype)
    counts, change = np.zeros(run.counts_length, object), np.zeros(run.vector_length - head, object)
    for vector in vectors:
        counts += np.frombuffer(vector[:head].tobytes(), "<u4").astype(object)
        change += vector[head:].astype(object)
    total[:head] = np.frombuffer((counts % 2**32).astype("<u4").tobytes(), run.dtype)
    total[head:] = (change % 2**run.modulus_bits).astype(run.dtype)
    return total


def with_roster(consortium: Consortium, **changes: bytes) -> RunParameters:
    """Return the consortium's run as a party with other identities on its roster sees it."""
    return replace(consortium.run, roster={**consortium.run.roster, **changes})
