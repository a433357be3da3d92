"""What a server keeps of proved sums: the files that hospitals follow the model by, and ``audit verify`` checks.

For each round whose sum changed the model, in the run's folder::

    sums/round-000000000007.proof   what proves the sum, a common.run.basis.Evidence
    sums/round-000000000007.sum     the sum, as it travels
    sums/round-000000000007.before  the checkpoint that the round began from, for a late joiner; of the last two rounds

A late joiner gets model and state of before, then the sum. The files are on disk before the step counts, so that a
server that is killed goes on with the sum of its last step; a round without them is void.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from common.errors import RunError
from common.files import sync_folder, write_private
from common.proved_sums.lineage import state_hash
from common.run.basis import Basis, Evidence, read_evidence, words_of
from common.run.flat_model import FlatModel, JoinedModel
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.parameters import MOST_HOSPITALS
from common.secagg.phases import Phase
from server.checkpoints import Checkpoint, arrays_in, keep_file_of
from server.rounds import Following

SUMS_FOLDER = "sums"
"""The folder's name inside a run's."""

PROOF, SUM, BEFORE = ".proof", ".sum", ".before"

_BEFORE_KEPT = 2

Array = NDArray[np.float32]


@dataclass(frozen=True)
class KeptSum:
    """One sum and what proves it, as they lie in the folder."""

    evidence: Evidence
    evidence_hash: str
    sum_hash: str


class SumStore:
    """The sums of one run that changed its model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, evidence: Evidence, total: NDArray[Any], checkpoint: Checkpoint) -> KeptSum:
        """Write a sum durably, before the step that it gives is taken.

        Args:
            evidence: what proves it.
            total: of changes, weights and ρ.
            checkpoint: that the round began from, as it was saved.

        Raises:
            RunError: the disk is full or the folder cannot be written.
        """
        encoded, words = evidence.encode(), words_of(total)
        try:
            write_private(self.path(evidence.round_number, PROOF), encoded)
            write_private(self.path(evidence.round_number, SUM), words.data.cast("B"))
            keep_file_of(checkpoint, self.path(evidence.round_number, BEFORE))
            sync_folder(self._folder)
            for old in sorted(self._folder.glob(f"round-*{BEFORE}"))[:-_BEFORE_KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"a proved sum could not be written: {error.strerror}; free space and start again, the run continues "
                "from the last step"
            ) from None
        hashes = (hashlib.sha256(encoded).hexdigest(), hashlib.sha256(words.data.cast("B")).hexdigest())
        return KeptSum(evidence, *hashes)

    def following(
        self, round_number: int | None, model: FlatModel, state: Mapping[str, Array], answered: frozenset[str]
    ) -> Following:
        """Return what the run's model follows from.

        Args:
            round_number: of the last sum that changed the model; None before the first.
            model: of now.
            state: the optimiser's, likewise.
            answered: who has sent a vector for a model that follows from that sum.

        Raises:
            RunError: the files of that round cannot be read.
        """
        hashed = state_hash(model[:], state)
        if round_number is None:
            return Following(hashed, Basis(evidence=None).encode())
        try:
            evidence = read_evidence(self.path(round_number, PROOF).read_bytes())
            total = np.memmap(self.path(round_number, SUM), np.dtype("<f4"), "r")
            before = arrays_in(self.path(round_number, BEFORE))
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(
                f"the files of round {round_number} in {SUMS_FOLDER} must be readable: {type(error).__name__}; restore "
                "them, or start a new run"
            ) from None
        place = Place(SERVER, round_number, Phase.MASKED_INPUT)
        limits = secagg.Limits(hospitals=MOST_HOSPITALS)
        views = secagg.decode(evidence.views, secagg.FullUnmaskingRequest, limits, place).views
        knowing = answered | {view.hospital for view in views}
        return Following(hashed, Basis(evidence=evidence).encode(), total, JoinedModel((*before, total)), knowing)

    def config_hash(self, round_number: int) -> bytes:
        """Return the hash of the description under which a kept round's views were signed."""
        evidence = read_evidence(self.path(round_number, PROOF).read_bytes())
        place = Place(SERVER, round_number, Phase.MASKED_INPUT)
        limits = secagg.Limits(hospitals=MOST_HOSPITALS)
        return secagg.decode(evidence.view, secagg.MaskedInput, limits, place).config_hash

    def path(self, round_number: int, kind: str) -> Path:
        """Return where a file of a round lies."""
        return self._folder / f"round-{round_number:012d}{kind}"
