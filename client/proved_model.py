"""A hospital's own model in a run that proves its sums: it computes each from the one before, and takes none over.

``common/proved_sums/lineage.py`` has the rules. Here is what they are applied to: the model, the optimiser's state, the
round that this hospital helped to open last, and all of it on the hospital's disk, so that it goes on after a restart.
Whatever is lost there, it takes part again as a late joiner. Models of older runs are removed; which of their rounds
were void is kept.

What leaves of all this is a refusal, which is a function of what the server sent and of what this hospital was asked
before; its records have no part in it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.audit.entries import PassedOver
from common.config import RunDescription
from common.errors import ConfideError, RunError
from common.files import whole_file, write_private
from common.models.seeded import seeded_model
from common.proved_sums.arithmetic import require_gradual_underflow
from common.proved_sums.errors import StaleModelError, UnprovedModelError
from common.proved_sums.expansion import matrix_key
from common.proved_sums.lineage import Lineage, begin, follow, has_opened, join, pass_over, stay, void
from common.proved_sums.proof import CommittedGroup, committed_group, verify_sum
from common.run.basis import Basis, Evidence, sum_in, words_for
from common.run.flat_model import hash_model
from common.run.next_model import ModelState, SummedRound, check_norm, next_model, strategy_of
from common.run.round_terms import ProvedTerms, RoundTerms
from common.run.terms import layout_of, protocol_parameters
from common.run.vector import VectorLayout
from common.secagg import messages as secagg
from common.secagg.binding import cohort_hash
from common.secagg.errors import ModelHashError, Place, UnusableModelError
from common.secagg.masked_input import MaskedState
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase

VERSION = 1

_MODELS_KEPT = 4
"""How many runs' models are kept; an older run, if it goes on after all, is joined late."""

_LOG = logging.getLogger("confide.hospital")

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Opened:
    """The round whose sum this hospital helped to open last, with what decides the model that follows."""

    description: RunDescription
    terms: ProvedTerms
    cohort: tuple[str, ...]
    group: CommittedGroup

    @property
    def round_number(self) -> int:
        return self.group.view.round_number


@dataclass(frozen=True, eq=False)
class _Held:
    lineage: Lineage
    followed: int
    """The round of the last sum that is in the model; 0 for the model of the seed."""
    now: ModelState
    opened: _Opened | None = None


@dataclass(frozen=True)
class _Remembered:
    """What is left of an earlier start whose model was lost; its small file is written through to the disk."""

    newest: int = 0
    """The last round whose sum this hospital followed, or helped to open."""
    void_rounds: tuple[int, ...] = ()


_NOT_WHOLE = (
    OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, ConfideError,
)  # fmt: skip
"""What reading a file can raise that this hospital wrote and that a disk damaged."""


class ProvedModel:
    """What one hospital knows of one run's model.

    Args:
        description: the agreed one.
        parameters: of the protocol, under this description.
        layout: of the run's vectors.
        hospital: this one.
        folder: of the hospital's state.
        random: source of fresh bytes, ``os.urandom``.
        record: writes the hospital's audit chain.

    Raises:
        FlushToZeroError: this process computes another model than others do.
    """

    def __init__(
        self,
        description: RunDescription,
        parameters: RunParameters,
        layout: VectorLayout,
        hospital: str,
        folder: Path,
        random: Callable[[int], bytes],
        record: Callable[[PassedOver], None],
    ) -> None:
        require_gradual_underflow()
        self._hospital = hospital
        self._folder = folder
        self._random = random
        self._record = record
        self._description, self._parameters, self._layout = description, parameters, layout
        self._remembered = _Remembered()
        self._held = self._kept()
        self._noted = set(self._remembered.void_rounds)

    @property
    def run_id(self) -> str:
        """Return whose model it is."""
        return self._description.run_id

    def go_on_under(self, description: RunDescription, parameters: RunParameters, layout: VectorLayout) -> None:
        """Go on with the same model under other members."""
        require_gradual_underflow()
        self._description, self._parameters, self._layout = description, parameters, layout
        if self._held is not None:
            lineage = replace(self._held.lineage, run=parameters, most_void_rounds=description.most_void_rounds)
            self._held = replace(self._held, lineage=lineage)

    def commit(self, vector: Array) -> bytes:
        """Put ρ into a vector, and return this hospital's commitment to what the vector holds."""
        return self._layout.commit(vector, matrix_key(self._parameters, self._layout.proof), self._random)

    def model_for(self, round_number: int, terms: RoundTerms, basis: bytes, array: Array | None) -> Array:
        """Return the model that a round begins from, which follows from what this hospital knows.

        Args:
            round_number: of the request.
            terms: of the round; they name the model's hash and that of model and state.
            basis: what the model follows from, as the server says.
            array: what came beside the request.

        Raises:
            SecAggError: of the kinds in ``common/proved_sums/errors.py``, or the array is not what it must be.
            RunError: the basis cannot be read, the disk refuses, or the next model is not finite.
        """
        place = self._place(round_number, Phase.MASKED_INPUT)
        if not isinstance(terms, ProvedTerms):
            raise UnprovedModelError(place, "a round must name the model and the optimiser's state, got a model alone")
        held = self._next(Basis.decode(basis).evidence, terms, array, place)
        if hash_model(held.now.model) != terms.model_hash:
            raise ModelHashError(place, "the model must be the one that the round's terms name, got another")
        self._note_void_rounds(held.lineage)
        self._keep(held)
        return held.now.model

    def _note_void_rounds(self, lineage: Lineage) -> None:
        """Write into the audit chain which rounds are void, each once."""
        for number in sorted(set(lineage.void_rounds) - self._noted):
            self._record(PassedOver(run_id=self.run_id, round_number=number, of=lineage.most_void_rounds))
            self._noted.add(number)
            _LOG.warning(
                "run %s: the sum of round %d was opened, and no model was made of it", self.run_id[:12], number
            )

    def group(
        self, masked: MaskedState, views: tuple[secagg.SignedView, ...], survivors: tuple[str, ...], phase: Phase
    ) -> CommittedGroup:
        """Check, before a share is revealed, what the survivors signed of their commitments, and return it.

        Raises:
            CommitmentError: one of its kinds.
        """
        place = self._place(masked.round_number, phase)
        return committed_group(self._parameters, masked.view, views, survivors, place)

    def opened(self, terms: RoundTerms, cohort: tuple[str, ...], group: CommittedGroup) -> None:
        """Note on disk, before a share is out, that this hospital has helped to open a sum the model depends on.

        Raises:
            RunError: the disk refuses; nothing may be revealed then.
        """
        if self._held is None or not isinstance(terms, ProvedTerms) or not terms.reads_training_records:
            return
        opened = _Opened(self._description, terms, cohort, group)
        self._keep(replace(self._held, lineage=has_opened(self._held.lineage, group), opened=opened))

    def failed(self, round_number: int) -> None:
        """Note on disk, before this hospital shows its change of a round, that it has seen the round's sum fail.

        The round is void, whatever comes next: a server that shows a later sum first does not make it forgotten.

        Raises:
            UnprovedModelError: it is not the round that this hospital opened last.
            TooManyVoidRoundsError: the run allows no more rounds without a sum; nothing may be shown then.
            RunError: the disk refuses; likewise.
        """
        place = self._place(round_number, Phase.DISPUTE)
        if self._held is None:
            raise UnprovedModelError(place, "a sum must be one that this hospital opened")
        lineage = void(self._held.lineage, round_number, place)
        self._note_void_rounds(lineage)
        self._keep(replace(self._held, lineage=lineage, opened=None))

    def _place(self, round_number: int, phase: Phase) -> Place:
        return Place(self._hospital, round_number, phase)

    def _next(self, evidence: Evidence | None, terms: ProvedTerms, array: Array | None, place: Place) -> _Held:
        held = self._held
        if evidence is None:
            if held is None:
                self._require_newest(0, place)
                first = self._first()
                most = self._description.most_void_rounds
                begun = begin(self._parameters, self._hospital, most, first.hash, terms.state_hash)
                return _Held(replace(begun, void_rounds=self._remembered.void_rounds), 0, first)
            if held.followed:
                raise StaleModelError(
                    place, f"a run must go on from the sum of round {held.followed}, got the model of its seed"
                )
            return self._unchanged(held, terms, place)
        if held is not None and held.followed == evidence.round_number:
            return self._unchanged(held, terms, place)
        return self._follow(evidence, terms, array, place)

    def _first(self) -> ModelState:
        strategy = strategy_of(self._description, self._layout.parameters)
        return ModelState(seeded_model(self._description), strategy.state())

    def _unchanged(self, held: _Held, terms: ProvedTerms, place: Place) -> _Held:
        """Go on with the same model; a round that was opened since is void."""
        if held.opened is None:
            return replace(held, lineage=stay(held.lineage, terms.state_hash, place.round_number))
        passed = pass_over(held.lineage, held.opened.round_number, terms.state_hash, place.round_number)
        return replace(held, lineage=passed, opened=None)

    def _follow(self, evidence: Evidence, terms: ProvedTerms, array: Array | None, place: Place) -> _Held:
        held, read = self._held, evidence.read(self._parameters, place)
        words, sent = self._arrays(array, place)
        if held is not None and held.opened is not None and held.opened.round_number == evidence.round_number:
            lineage, opened, before = held.lineage, held.opened, held.now
        else:
            self._require_newest(evidence.round_number, place)
            before = self._before(sent, read.terms.state_hash, place)
            if cohort_hash(read.vouched.view.directory_hash, read.cohort) != read.vouched.view.cohort_hash:
                raise StaleModelError(place, "the cohort of a sum's round must be the one that hospitals signed")
            most = self._description.most_void_rounds
            known = self._remembered.void_rounds
            own = Lineage(self._parameters, self._hospital, most, bytes(32), known) if held is None else held.lineage
            lineage = join(own, read.vouched, read.survivors, place.round_number)
            if lineage.opened is None:
                raise StaleModelError(place, "a sum must have survivors, got none")
            opened = _Opened(self._description, read.terms, read.cohort, lineage.opened)
        layout = layout_of(opened.description)
        total = sum_in(words, layout.proof.length, layout.dtype, place)
        proved = verify_sum(opened.group, layout.proof, read.proof, total)
        summed = SummedRound(opened.terms.purpose, len(opened.cohort), len(proved.survivors))
        check_norm(opened.description, layout, summed, proved.total, place)
        after = next_model(opened.description, layout, before, summed, proved.total)
        followed = follow(lineage, proved, after.hash, terms.state_hash, place.round_number)
        return _Held(followed, evidence.round_number, after)

    def _require_newest(self, round_number: int, place: Place) -> None:
        """Refuse to go back behind a sum that this hospital followed, or helped to open."""
        held, newest = self._held, self._remembered.newest
        if held is not None:
            newest = max(held.followed, 0 if held.opened is None else held.opened.round_number)
        if round_number < newest:
            raise StaleModelError(
                place,
                f"a run must go on from round {newest} or a later one, got "
                + (f"round {round_number}" if round_number else "the model of its seed"),
            )

    def _arrays(self, array: Array | None, place: Place) -> tuple[Array, Array | None]:
        """Return the sum's words, and the model and state before it where they came."""
        length = words_for(self._layout.proof.length, self._layout.dtype)
        size = self._layout.parameters * (1 + len(self._state_names()))
        if array is None or array.dtype != np.float32 or array.shape not in ((length,), (size + length,)):
            got = "none" if array is None else f"{array.dtype} of shape {array.shape}"
            raise UnusableModelError(
                place, f"a sum of {length} words, or one behind {size} of model and state, must come; got {got}"
            )
        return array[-length:], array[:-length] if len(array) > length else None

    def _before(self, sent: Array | None, signed: bytes, place: Place) -> ModelState:
        """Return the model and state that a round began from in which this hospital had no part."""
        if self._held is not None and self._held.now.hash == signed:
            return self._held.now
        if sent is None:
            raise StaleModelError(place, "a late joiner must be given the model and state of before, got none")
        model, *arrays = np.split(sent, 1 + len(self._state_names()))
        before = ModelState(model.copy(), dict(zip(self._state_names(), map(np.copy, arrays), strict=True)))
        if before.hash != signed:
            raise StaleModelError(place, "a late joiner must be given the model and state that hospitals signed")
        return before

    def _state_names(self) -> list[str]:
        return sorted(strategy_of(self._description, 1).state())

    # On disk: what is held, and beside it the arrays, in a file that is named after their hash.

    def _file(self) -> Path:
        return self._folder / f"proved-{self.run_id}.json"

    def _arrays_file(self, state: bytes) -> Path:
        return self._folder / f"proved-{self.run_id}-{state.hex()[:16]}.model"

    def _keep(self, held: _Held) -> None:
        """Write down what is held, and hold it."""
        try:
            arrays = self._arrays_file(held.lineage.state)
            if not arrays.exists():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                # After a power failure this hospital joins late, which costs less than a wait for the disk each round.
                with whole_file(arrays, durable=False) as file:
                    for part in (held.now.model, *(held.now.state[name] for name in sorted(held.now.state))):
                        file.write(np.ascontiguousarray(part, "<f4").data)
            write_private(self._file(), json.dumps(self._written(held)).encode())
            for old in self._folder.glob(f"proved-{self.run_id}-*.model"):
                if old != arrays:
                    old.unlink(missing_ok=True)
            self._forget_old_models()
        except OSError as error:
            # Why is for this hospital's own operator.
            _LOG.error("the model of a run must be kept: %s; free space", error.strerror)
            raise RunError(f"{self._hospital} could not keep its model on disk; it does not answer") from error
        self._held = held

    def _forget_old_models(self) -> None:
        newest = sorted(self._folder.glob("proved-*.json"), key=lambda path: path.stat().st_mtime)[-_MODELS_KEPT:]
        runs = {path.stem for path in newest}
        for model in self._folder.glob("proved-*.model"):
            if model.stem.rpartition("-")[0] not in runs:
                model.unlink(missing_ok=True)

    def _written(self, held: _Held) -> dict[str, Any]:
        opened = held.opened
        return {
            "version": VERSION,
            "followed": held.followed,
            "state": held.lineage.state.hex(),
            "void_rounds": list(held.lineage.void_rounds),
            "opened": None
            if opened is None
            else {
                "description": opened.description.canonical_json().decode(),
                "roster": {name: key.hex() for name, key in opened.group.run.roster.items()},
                "min_hospitals": opened.group.run.min_hospitals,
                "consortium": opened.group.run.consortium,
                "terms": opened.terms.encode().hex(),
                "cohort": list(opened.cohort),
                "view": secagg.encode(opened.group.view).hex(),
                "hashes": {name: value.hex() for name, value in opened.group.hashes.items()},
            },
        }

    def _kept(self) -> _Held | None:
        """Read what this hospital held before it was restarted; None where that is not there or not whole."""
        try:
            told = json.loads(self._file().read_bytes())
            if told["version"] != VERSION:
                return None
            void_rounds = tuple(int(number) for number in told["void_rounds"])
            opened = None if told["opened"] is None else self._read_opened(told["opened"])
            newest = max(int(told["followed"]), 0 if opened is None else opened.round_number)
            self._remembered = _Remembered(newest, void_rounds)
            state = bytes.fromhex(told["state"])
            flat = np.frombuffer(self._arrays_file(state).read_bytes(), "<f4").astype(np.float32)
            names = self._state_names()
            model, *arrays = np.split(flat, 1 + len(names))
            now = ModelState(model, dict(zip(names, arrays, strict=True)))
            if now.hash != state:
                return None
            lineage = Lineage(
                self._parameters,
                self._hospital,
                self._description.most_void_rounds,
                state,
                void_rounds,
                None if opened is None else opened.group,
            )
            return _Held(lineage, int(told["followed"]), now, opened)
        except FileNotFoundError:
            return None
        except _NOT_WHOLE:
            _LOG.warning("the model that this hospital kept of run %s cannot be read; it joins anew", self.run_id[:12])
            return None

    def _read_opened(self, told: Mapping[str, Any]) -> _Opened:
        description = RunDescription.from_json(told["description"].encode())
        roster = {name: bytes.fromhex(key) for name, key in told["roster"].items()}
        parameters = protocol_parameters(description, roster, told["min_hospitals"], told["consortium"])
        terms = RoundTerms.decode(bytes.fromhex(told["terms"]))
        if not isinstance(terms, ProvedTerms):
            raise RunError("the terms of an opened round must name the optimiser's state")
        place = self._place(0, Phase.MASKED_INPUT)
        limits = secagg.Limits(hospitals=len(roster))
        view = secagg.decode(bytes.fromhex(told["view"]), secagg.MaskedInput, limits, place)
        hashes = {name: bytes.fromhex(value) for name, value in told["hashes"].items()}
        return _Opened(description, terms, tuple(told["cohort"]), CommittedGroup(parameters, view, hashes))
