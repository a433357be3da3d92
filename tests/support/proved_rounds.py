"""Whole rounds in memory with commitments: every hospital commits, masks and opens; the server adds and proves.

The lying server is the test: it takes an honest :class:`ProvedRound` and changes what it hands out.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from common.proved_sums.commitment import Centred, Commitment, commit
from common.proved_sums.expansion import matrix_key
from common.proved_sums.parameters import ProofParameters, parameters_for
from common.proved_sums.proof import CommittedGroup, committed_group, prove, verify_sum
from common.secagg import full_unmasking, masked_input, unmasking
from common.secagg.errors import Place
from common.secagg.messages import MaskedInput, SignedView, SumProof
from common.secagg.parameters import RunParameters, Vector
from common.secagg.phases import Phase
from tests.support.parties import TERMS, Consortium, sent

ENTRIES = 40
COUNTS = 2


class ProvedConsortium(Consortium):
    """Hospitals of a run that proves its sums; vectors have two counts and forty parameters."""

    def __init__(
        self,
        hospitals: int,
        seed: int = 0,
        modulus_bits: int = 16,
        **changes: Any,  # noqa: ANN401 - fields of RunParameters
    ) -> None:
        self.parameters = parameters_for(ENTRIES, modulus_bits, hospitals)
        super().__init__(
            hospitals,
            seed,
            modulus_bits=modulus_bits,
            counts_length=COUNTS,
            vector_length=COUNTS * 32 // modulus_bits + self.parameters.length,
            proves_sums=True,
            **changes,
        )
        self.key = matrix_key(self.run, self.parameters)

    def change(self) -> Centred:
        """Return a change that a hospital may commit to."""
        bound = self.parameters.bound // len(self.names)
        values = [self.source.randint(-bound, bound) for _ in range(ENTRIES)]
        return np.array(values, f"<i{self.run.modulus_bits // 8}")

    def made(self, name: str) -> tuple[Centred, Commitment, Vector]:
        """Return what a hospital has to add, what it commits to, and what it masks."""
        change = self.change()
        commitment = commit(self.key, self.parameters, change, self.source.randbytes)
        return change, commitment, self.whole(change, commitment)

    def whole(self, change: Centred, commitment: Commitment) -> Vector:
        """Return counts, change and ρ: what a hospital masks."""
        head = np.frombuffer(self.source.randbytes(4 * COUNTS), self.run.dtype)
        parts = [head, change.view(self.run.dtype), commitment.randomness.view(self.run.dtype)]
        vector: Vector = np.concatenate(parts)
        return vector

    def play(
        self,
        round_number: int = 1,
        lost: Collection[str] = (),
        terms: bytes = TERMS,
        silent: Collection[str] = (),
    ) -> "ProvedRound":
        """Play a round honestly; ``lost`` hospitals send no vector, ``silent`` ones vanish before their last reply."""
        routed = self.routed(round_number)
        played = ProvedRound(self, round_number, masked_input.MaskedSum(routed, terms))
        for name in routed.cohort:
            if name not in lost:
                change, commitment, vector = self.made(name)
                request = sent(routed.request_for(name, terms))
                hospital = self[name]
                hospital.masked[round_number], message, masked = masked_input.mask(
                    hospital.shared[round_number],
                    hospital.identity,
                    request,
                    vector,
                    commitment=commitment.value,
                )
                played.changes[name], played.values[name] = change, commitment.value
                sealed = hospital.masked[round_number].sealed
                assert sealed is not None
                played.total.add(name, sent(message), masked, sent(sealed))
        played.open(lost, silent)
        return played


@dataclass
class ProvedRound:
    """What everybody holds after a round."""

    consortium: ProvedConsortium
    round_number: int
    total: masked_input.MaskedSum
    changes: dict[str, Centred] = field(default_factory=dict)
    values: dict[str, bytes] = field(default_factory=dict)
    groups: dict[str, CommittedGroup] = field(default_factory=dict)
    """What each survivor keeps of the round."""

    @property
    def run(self) -> RunParameters:
        return self.consortium.run

    @property
    def parameters(self) -> ProofParameters:
        return self.consortium.parameters

    def open(self, lost: Collection[str] = (), silent: Collection[str] = ()) -> None:
        """Open the sum, at once where nobody is lost; ``silent`` hospitals reveal nothing."""
        if lost:
            request = self.consortium.unmasking_request(self.total)
            shares = {name: sent(self.consortium[name].reveal(request)) for name in request.survivors}
        else:
            opening = sent(full_unmasking.request_all(self.total))
            shares = {name: sent(self.consortium[name].reveal_all(opening)) for name in self.total.survivors}
        for name in silent:
            del shares[name]
        for name in self.total.survivors:
            self.groups[name] = self.group_of(name, self.views())
        self.unmasked = unmasking.unmask(self.total, shares)
        assert self.unmasked.refusals == ()
        self.proof = prove(self.run, self.round_number, self.unmasked.commitments)
        self.sum = self.run.segments(self.unmasked.total).change

    def views(self, changed: Mapping[str, SignedView] | None = None) -> tuple[SignedView, ...]:
        """Return the survivors' views as the server shows them."""
        shown = {name: signed_view(self.total.views[name]) for name in self.total.survivors}
        return tuple({**shown, **(changed or {})}.values())

    def group_of(self, name: str, views: tuple[SignedView, ...]) -> CommittedGroup:
        place = Place(name, self.round_number, Phase.FULL_UNMASKING)
        return committed_group(self.run, self.total.views[name], views, self.total.survivors, place)

    def verify(self, name: str, proof: SumProof | None = None, total: Vector | None = None) -> Centred:
        """Let a hospital check a proof, the honest one where nothing else is given."""
        shown = sent(proof or self.proof)
        return verify_sum(self.groups[name], self.parameters, shown, self.sum if total is None else total).total

    def plain(self) -> list[int]:
        """Return the sum of the changes over Python's integers."""
        return [sum(int(each) for each in column) for column in zip(*self.changes.values(), strict=True)]


def signed_view(view: MaskedInput) -> SignedView:
    return SignedView.of(view)


def resigned(consortium: Consortium, view: MaskedInput, **changes: bytes) -> SignedView:
    """Return another view that a colluding hospital signs instead."""
    unsigned = replace(view, **changes, signature=b"")  # type: ignore[arg-type]
    signature = consortium[view.hospital].identity.sign(masked_input.signed_part(consortium.run, unsigned))
    return signed_view(replace(unsigned, signature=signature))
