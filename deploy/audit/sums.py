"""Whether each model of a run with proved sums follows from what its hospitals committed to; checked offline.

Each model is computed again, from the run's seed on, as every hospital did: from the sums in the run's folder, each of
which must be what the survivors' commitments add up to, by hashes that they signed before anybody could know them.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.audit.chain import AuditEntry
from common.audit.entries import Began, Centred, Proved, Stepped, Summed
from common.errors import AuditError, ConfideError
from common.proved_sums.proof import committed_group, verify_sum
from common.run.basis import Evidence, ReadEvidence, read_evidence, sum_in
from common.run.flat_model import hash_model
from common.run.next_model import ModelState, SummedRound, check_norm, next_model, strategy_of
from common.run.round_terms import ProvedTerms, RoundTerms
from common.run.terms import layout_of
from common.secagg.binding import cohort_hash, request_hash
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase
from deploy.audit.record import RunRecord
from server.proved_sums import PROOF, SUM, SUMS_FOLDER, SumStore

Array = NDArray[np.float32]

Commitments = dict[int, dict[str, bytes]]
"""Round to hospital to the hash of its commitment, as it is in the sum of that round."""

_STATES_KEPT = 3
"""A server that was killed goes on from the last step that was on its disk, or from the one before."""


@dataclass
class _Replay:
    run: Path
    record: RunRecord
    states: list[ModelState]
    """The newest last."""
    pending: tuple[int, ModelState] | None = None
    summed: Summed | None = None
    commitments: Commitments = field(default_factory=dict)

    def follow(self, entry: AuditEntry, place: str) -> None:
        match entry.body:
            case Began() as body:
                again = [state for state in self.states if hash_model(state.model).hex() == body.model_hash]
                _require(bool(again), place, "it goes on from a model that no proved sum gave")
                self.states = [again[-1]]
                self.pending = self.summed = None
            case Summed() as body:
                terms = RoundTerms.decode(bytes.fromhex(body.terms))
                follows = isinstance(terms, ProvedTerms) and terms.state_hash == self.states[-1].hash
                _require(follows, place, "its round began from a model or an optimiser's state that no proved sum gave")
                self.summed = body
            case Proved() as body:
                self._prove(body, place)
            case Stepped() | Centred() as body:
                given = self.pending is not None and self.pending[0] == body.round_number
                _require(given, place, "no proved sum gave its model")
                self._take(body.model_hash, place)
            case _:
                pass

    def _take(self, model_hash: str, place: str) -> None:
        if self.pending is None:
            return
        after = self.pending[1]
        same = hash_model(after.model).hex() == model_hash
        _require(same, place, "its model is another than the one that follows from the proved sum")
        self.states = [*self.states, after][-_STATES_KEPT:]
        self.pending = None

    def _prove(self, body: Proved, place: str) -> None:
        summed, number = self.summed, body.round_number
        given = summed is not None and summed.round_number == number
        _require(given, place, "a proof must follow the sum that it is of")
        if summed is None:
            return
        store = SumStore(self.run / SUMS_FOLDER)
        encoded, words = (
            self._file(store.path(number, PROOF), body.evidence_hash),
            self._file(store.path(number, SUM), body.sum_hash),
        )
        try:
            evidence = read_evidence(encoded)
            self._check(evidence, np.frombuffer(words, "<f4"), summed, place)
        except AuditError:
            raise
        except (ConfideError, ValueError) as error:
            raise AuditError(f"{place}: the sum of round {number} is not proved: {error}") from None

    def _check(self, evidence: Evidence, words: Array, summed: Summed, place: str) -> None:
        here = Place(SERVER, summed.round_number, Phase.MASKED_INPUT)
        read = evidence.read(self.record.parameters, here)
        view = read.vouched.view
        run = self.record.terms.get(view.config_hash)
        if run is None:
            raise AuditError(f"{place}: its views must be of terms that the chain records")
        description = self.record.descriptions[view.config_hash.hex()]
        layout = layout_of(description)
        _require(_is_of(evidence, read, summed), place, "what proves a sum must be of the round that is recorded")
        group = committed_group(run, view, read.vouched.views, read.survivors, here)
        total = sum_in(words, layout.proof.length, layout.dtype, here)
        proved = verify_sum(group, layout.proof, read.proof, total)
        of = SummedRound(read.terms.purpose, len(read.cohort), len(proved.survivors))
        check_norm(description, layout, of, proved.total, here)
        self.pending = (summed.round_number, next_model(description, layout, self.states[-1], of, proved.total))
        self.commitments[summed.round_number] = dict(group.hashes)

    @staticmethod
    def _file(path: Path, expected: str) -> bytes:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AuditError(f"{SUMS_FOLDER}/{path.name}: must be readable: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != expected:
            raise AuditError(f"{SUMS_FOLDER}/{path.name}: must be the file that the server's chain has the hash of")
        return content


def _is_of(evidence: Evidence, read: ReadEvidence, summed: Summed) -> bool:
    view = read.vouched.view
    return (
        evidence.round_number == view.round_number == summed.round_number
        and evidence.terms == bytes.fromhex(summed.terms)
        and view.request_hash == request_hash(evidence.terms)
        and read.survivors == summed.survivors
        and cohort_hash(view.directory_hash, read.cohort) == view.cohort_hash
    )


def check_sums(run: Path, entries: Iterable[AuditEntry], name: str, record: RunRecord, first: Array) -> Commitments:
    """Compute each model of a run again, from the first one and the proved sums.

    Args:
        run: its folder, with the sums.
        entries: of the server's chain.
        name: of the chain's file, for messages.
        record: of the same chain.
        first: the model that the run begins with.

    Returns:
        For each round whose sum changed the model, what its survivors signed of their commitments.

    Raises:
        AuditError: a sum is not proved, or a model does not follow; the message names the line.
    """
    state = strategy_of(record.description, layout_of(record.description).parameters).state()
    replay = _Replay(run, record, [ModelState(first, state)])
    for entry in entries:
        replay.follow(entry, f"{name}, line {entry.sequence}")
    return replay.commitments


def _require(holds: bool, place: str, otherwise: str) -> None:
    if not holds:
        raise AuditError(f"{place}: {otherwise}")
