"""Whole rounds in memory whose sums can be disputed, with hospitals that cheat and a server that may lie."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np

from common.proved_sums.commitment import Centred, Commitment, commit, from_bytes
from common.proved_sums.dispute import Fault, Rules, require_fault, verdict
from common.secagg import disputes
from common.secagg.errors import Place
from common.secagg.messages import Dispute, OpenedChange
from common.secagg.parameters import Vector
from common.secagg.phases import Phase
from tests.support.parties import TERMS, sent
from tests.support.proved_rounds import ENTRIES, ProvedConsortium, ProvedRound

LIMBS = 2
MOST_WEIGHT = 4096
LONGEST = 600.0
"""The length of an honest change at most, in units."""

Cheat = Callable[["DisputedConsortium", Centred], tuple[Centred, Centred]]
"""From what an honest hospital would add: what the cheat commits to, and what it masks."""


class DisputedConsortium(ProvedConsortium):
    """Hospitals of a run that has disputes; of the forty entries two are limbs of a weight."""

    def __init__(
        self, hospitals: int, seed: int = 0, modulus_bits: int = 16, cheats: Mapping[str, Cheat] | None = None
    ) -> None:
        super().__init__(hospitals, seed, modulus_bits, disputes=True)
        self.cheats = dict(cheats or {})
        bits = (self.parameters.bound // hospitals + 1).bit_length() - 1
        self.rules = Rules(self.parameters, ENTRIES - LIMBS, LONGEST, bits, MOST_WEIGHT)

    def change(self) -> Centred:
        """Return a change that is within the bound, and a weight behind it."""
        entries = np.array([self.source.gauss(0, 60) for _ in range(ENTRIES - LIMBS)])
        entries *= min(1.0, LONGEST * 0.999 / max(float(np.linalg.norm(entries)), 1.0))
        weight = self.source.randint(1, MOST_WEIGHT)
        bits = self.rules.weight_limb_bits
        limbs = [weight & ((1 << bits) - 1), weight >> bits]
        return np.concatenate([np.trunc(entries), limbs]).astype(f"<i{self.run.modulus_bits // 8}")

    def made(self, name: str) -> tuple[Centred, Commitment, Vector]:
        honest = self.change()
        cheat = self.cheats.get(name)
        committed, masked = (honest, honest) if cheat is None else cheat(self, honest)
        commitment = commit(self.key, self.parameters, committed, self.source.randbytes)
        return masked, commitment, self.whole(masked, commitment)

    def dispute(self, lost: Collection[str] = (), round_number: int = 1, terms: bytes = TERMS) -> "DisputedPlay":
        """Play a round to the end, and return everything that a dispute about it needs."""
        return DisputedPlay(self.play(round_number, lost, terms))


class DisputedPlay:
    """A round that is over, and what everybody holds of it."""

    def __init__(self, played: ProvedRound) -> None:
        self.played, self.consortium = played, played.consortium
        assert isinstance(self.consortium, DisputedConsortium)
        self.rules = self.consortium.rules
        self.round_number = played.round_number
        self.kept: dict[str, disputes.Disputable] = {}
        for name in played.total.survivors:
            kept = disputes.keep(self.consortium[name].masked[played.round_number], played.views())
            assert kept is not None
            self.kept[name] = kept
        shown, self.changes = disputes.dispute(played.total, played.unmasked)
        self.shown: Dispute = sent(shown)

    @property
    def names(self) -> tuple[str, ...]:
        return self.played.total.survivors

    def check(self, name: str, shown: Dispute | None = None, changes: Vector | None = None) -> disputes.ShownDispute:
        """Let a hospital look at what the server shows, the honest dispute where nothing else is given."""
        place = Place(name, self.round_number, Phase.DISPUTE)
        changes = self.changes if changes is None else changes
        return disputes.check(self.kept[name].round, sent(shown or self.shown), changes, place)

    def answer(self, name: str, shown: Dispute | None = None, changes: Vector | None = None) -> OpenedChange:
        """Let a hospital answer a dispute, as its agent does; raises where it shows nothing."""
        checked = self.check(name, shown, changes)
        require_fault(self.rules, checked, Place(name, self.round_number, Phase.DISPUTE))
        return sent(disputes.open_change(self.kept[name], self.consortium[name].identity))

    def opened(self, without: Collection[str] = ()) -> dict[str, OpenedChange]:
        """Return what everybody shows who is asked, whether the sum fails or not."""
        return {
            name: sent(disputes.open_change(self.kept[name], self.consortium[name].identity))
            for name in self.names
            if name not in without
        }

    def verdict(self, name: str, opened: Mapping[str, OpenedChange]) -> Mapping[str, Fault]:
        return verdict(self.rules, self.check(name), opened.values())

    def verdicts(self, opened: Mapping[str, OpenedChange]) -> Mapping[str, Fault]:
        """Return what everybody finds; fails where two find something else."""
        found = [self.verdict(name, opened) for name in self.names]
        assert all(each == found[0] for each in found)
        return found[0]

    def commitments(self) -> dict[str, list[int]]:
        place = Place(self.names[0], self.round_number, Phase.VERDICT)
        parameters = self.rules.proof
        return {name: from_bytes(parameters, self.played.values[name], place, name) for name in self.names}


def resigned(play: DisputedPlay, opened: OpenedChange, **changes: bytes) -> OpenedChange:
    """Return what a cheat shows instead, well signed."""
    unsigned = replace(opened, **changes, signature=b"")  # type: ignore[arg-type]
    run = play.consortium.run
    identity = play.consortium[opened.hospital].identity
    return replace(unsigned, signature=identity.sign(disputes.signed_part(run, unsigned)))
