"""The hospital's side of every exchange: one request in, one reply out, and nothing that the protocol forbids.

The agent knows neither Flower nor a network, so that experiments and tests run the very code that is deployed.

**What a reply depends on.** The masked vector depends on the data. Everything else that leaves this hospital, refusals
and their words included, is a function of the run description, the hospital's policy, its bookkeeping of what was asked
before, and fresh randomness. One bit about the data leaves: whether its folder and images can be read
(:func:`_outward`). What a run's own terms find wrong in an image leaves that image out and nothing else
(``client/data/mistakes.py``). The time of a vector depends on how much data there is, unless the operator states
``hospital.answer_seconds``.
"""

import contextlib
import datetime
import logging
import math
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography import x509

from client.agreement import RunAgreements, check_time
from client.contribution import Contribution, Contributor
from client.data import DataContract, open_data
from client.data.hospital_data import UNUSABLE_DATA, HospitalData
from client.data.watch import GONE_FILE, held, hold, name_gone
from client.ledger.ledger import Ledger
from client.ledger.place import open_ledger
from client.ledger.remembered import STATED_FILE
from client.named import NAMED_FILE, NamedHospitals
from client.own_results import OWN_RESULTS_FILE, OwnResult, append
from client.policy import check_agreement
from client.proved_model import ProvedModel
from client.roster import check_roster
from client.round_state import AnsweredRoundsFile
from client.status import STATUS_FILE, StatusKeeper
from common.audit.chain import Record, discard
from common.audit.entries import (
    Contributed,
    JoinedRun,
    Named,
    OpenedSum,
    Refused,
    ShownChange,
    SignedSurvivors,
)
from common.config import AggregationMode, HospitalConfig, RunDescription
from common.errors import (
    AuditError,
    ConfideError,
    DataError,
    LedgerError,
    MissingNoiseError,
    OtherVersionError,
    PolicyError,
    RunError,
    StandingError,
)
from common.files import write_private
from common.identity.certificates import HospitalIdentity
from common.identity.ledger_statement import state_ledger
from common.identity.members import KeptMembers
from common.identity.revocation import Revocations
from common.privacy.accounting import Accountant, rounded_up
from common.privacy.budget import Account, BudgetPolicy
from common.privacy.mechanism import mechanism_of
from common.proved_sums.dispute import Fault, Rules, early_faults, evidence_hash, require_fault, verdict
from common.proved_sums.errors import UnprovedModelError
from common.proved_sums.proof import CommittedGroup, committed_group
from common.run import messages
from common.run.basis import sum_in
from common.run.flat_model import hash_model
from common.run.messages import (
    ConsistencyReply,
    ConsistencyRequest,
    DisputeReply,
    DisputeRequest,
    EpsilonReport,
    KeysReply,
    KeysRequest,
    MaskReply,
    MaskRequest,
    MissedVerdictRequest,
    PlainReply,
    PlainRequest,
    ProvedConsistencyRequest,
    ProvedMaskReply,
    ProvedMaskRequest,
    Reply,
    Request,
    SharesReply,
    SharesRequest,
    UnmaskAllRequest,
    UnmaskReply,
    UnmaskRequest,
    VerdictReply,
    VerdictRequest,
    phase_of,
)
from common.run.next_model import rules_of
from common.run.round_terms import RoundTerms
from common.run.terms import protocol_parameters
from common.secagg import (
    advertise_keys,
    consistency_check,
    disputes,
    full_unmasking,
    masked_input,
    share_keys,
    unmasking,
)
from common.secagg import messages as secagg
from common.secagg.binding import request_hash, require_place
from common.secagg.errors import (
    DisputeEvidenceError,
    ModelHashError,
    OmittedHospitalError,
    Place,
    SecAggError,
    UnknownPhaseError,
    UnusableModelError,
)
from common.secagg.masks import MaskApplier, apply_masks
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from common.telemetry.logs import with_facts

_LOG = logging.getLogger("confide.hospital")

_ROUNDS_KEPT = 2
"""The round in hand and the next one, whose keys ride on it; the secrets of older ones are erased."""

_LONGEST_REASON = 1000

_FAULT = "fault"
"""The code of a refusal for which this program has no name."""

Array = npt.NDArray[Any]
Answer = tuple[Reply, Array | None]


@dataclass(frozen=True)
class Surroundings:
    """What an agent takes from the machine it runs on, so that tests can replace it.

    Attributes:
        state: the hospital's own folder: ledger, answered rounds.
        data: the folder of its images.
        cache: a folder of its own for prepared images.
        random: source of fresh bytes.
        now: the current time.
        clock: seconds that only ever go up, for how long a reply takes.
        pause: waits for this many seconds.
        record: writes the hospital's audit chain; what cannot be recorded does not happen.
        apply_masks: puts the masks on.
        open_data: reads the hospital's data from its folder, for a contract, with the cache at hand; for a run that has
            begun, the data with the key that it began with.
        ledgers: this machine's list of ledgers; None where the data is not a hospital's own, as in a demo.
    """

    state: Path
    data: Path
    cache: Path
    random: Callable[[int], bytes] = field(repr=False)
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    record: Record = discard
    apply_masks: MaskApplier = apply_masks
    open_data: Callable[[Path, DataContract, Path, str], HospitalData] = open_data
    ledgers: Path | None = None


@dataclass
class _Disputable:
    """A round whose sum this hospital has helped to open, until the next round or the verdict of a dispute."""

    terms: RoundTerms
    kept: disputes.Disputable
    asked: secagg.Dispute | None = None
    shown: disputes.ShownDispute | None = None
    """What the server has shown, once this hospital has answered."""
    own: secagg.OpenedChange | None = None
    """What this hospital has shown, if it had to."""

    def erase(self) -> None:
        self.kept.erase()


@dataclass
class _Run:
    """One run's agreed terms, its work, and the secrets of the rounds in hand, in memory only."""

    description: RunDescription
    parameters: RunParameters
    contributor: Contributor
    certificates: Mapping[str, x509.Certificate]
    until: int | None
    """When this hospital's agreement ends, in Unix seconds."""
    keys: dict[int, advertise_keys.RoundKeys] = field(default_factory=dict, repr=False)
    shared: dict[int, share_keys.SharedKeys] = field(default_factory=dict, repr=False)
    masked: dict[int, masked_input.MaskedState] = field(default_factory=dict, repr=False)
    signed: dict[int, consistency_check.SignedState] = field(default_factory=dict, repr=False)
    fewest: dict[int, int] = field(default_factory=dict)
    """Round to the number of vectors that its sum must hold for its noise to be enough."""
    proved: ProvedModel | None = None
    """In a run that proves its sums, the model that this hospital computes itself."""
    terms: dict[int, RoundTerms] = field(default_factory=dict)
    groups: dict[int, CommittedGroup] = field(default_factory=dict)
    """Round to whose commitments its sum must be of, where this hospital has signed the survivors."""
    views: dict[int, tuple[secagg.SignedView, ...]] = field(default_factory=dict)
    """Round to what the survivors signed, likewise."""
    disputable: dict[int, _Disputable] = field(default_factory=dict, repr=False)

    def forget(self, round_number: int) -> None:
        """Erase the secrets of one round."""
        for told in (self.fewest, self.terms, self.groups, self.views):
            told.pop(round_number, None)
        for states in (self.keys, self.shared, self.masked, self.signed, self.disputable):
            state = states.pop(round_number, None)
            if state is not None:
                state.erase()

    def rounds(self) -> set[int]:
        """Return the rounds whose secrets are held."""
        return {*self.keys, *self.shared, *self.masked, *self.signed, *self.disputable}


class HospitalAgent:
    """Answers the server's requests on behalf of one hospital."""

    def __init__(
        self,
        identity: HospitalIdentity,
        authority: x509.Certificate,
        policy: HospitalConfig,
        surroundings: Surroundings,
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._here = surroundings
        self._answered = AnsweredRoundsFile(surroundings.state / "answered-rounds.json", identity.name)
        self._named = NamedHospitals(surroundings.state / NAMED_FILE, identity.name)
        self._status = StatusKeeper(
            surroundings.state / STATUS_FILE, identity.name, policy, lambda: self._here.now().timestamp()
        )
        self._data: tuple[str, DataContract, HospitalData] | None = None
        self._ledger: Ledger | None = None
        self._agreements = RunAgreements(surroundings.state)
        self._revocations = Revocations(surroundings.state, authority)
        self._members = KeptMembers(surroundings.state, authority)
        self._run: _Run | None = None
        self._proved: ProvedModel | None = None
        self._last_refusal: Refused | None = None
        self._told_gone: tuple[tuple[str, str], ...] | None = None

    def close(self) -> None:
        """Erase the secrets of the rounds in hand; the hospital takes part again when it has joined again."""
        if self._run is not None:
            for round_number in self._run.rounds():
                self._run.forget(round_number)
        self._run = None

    def answer(self, request: Request, array: Array | None) -> Answer:
        """Do one step of the protocol.

        Returns:
            The reply, with the vector beside it; :class:`~common.run.messages.RefusedReply` with the reason when
            the request breaks a rule, the hospital's policy or its budget.
        """
        reply, vector = self._answer_or_refuse(request, array)
        return messages.in_version(reply, request.version), vector

    def _answer_or_refuse(self, request: Request, array: Array | None) -> Answer:
        try:
            return self._answer(request, array)
        except ConfideError as error:
            _LOG.warning("refused: %s", error)
            self._status.refused(error.code)
            self._record_refusal(request, error)
            is_attack = isinstance(error, SecAggError)
            reason = _outward(error)[:_LONGEST_REASON]
            return messages.RefusedReply(
                hospital=self._identity.name, code=error.code, reason=reason, is_attack=is_attack
            ), None
        except Exception as error:  # noqa: BLE001 - a defect of ours must not become words that leave this hospital
            # Its own words may hold the name of a file, which may be a patient's; where it happened does not.
            where = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("a fault of this program, please report it: %s\n%s", type(error).__name__, where)
            self._status.refused(_FAULT)
            reason = "this hospital could not answer; its operator knows why"
            return messages.RefusedReply(
                hospital=self._identity.name, code=_FAULT, reason=reason, is_attack=False
            ), None

    def _answer(self, request: Request, array: Array | None) -> Answer:  # noqa: C901, PLR0911 - one for each request
        match request:
            case KeysRequest():
                run = self._join(request.run_description, request.version)
                return KeysReply(
                    hospital=self._identity.name, advertised=self._advertise(run, request.round_number)
                ), None
            case SharesRequest():
                run = self._known_run(request)
                return SharesReply(shares=self._share(run, request.round_number, request.directory)), None
            case MaskRequest():
                return self._mask(self._known_run(request), request, array)
            case ConsistencyRequest():
                return self._check_consistency(self._known_run(request), request), None
            case UnmaskRequest():
                return self._unmask(self._known_run(request), request), None
            case UnmaskAllRequest():
                return self._unmask_all(self._known_run(request), request), None
            case DisputeRequest():
                return self._dispute(self._known_run(request), request, array), None
            case VerdictRequest():
                return self._verdict(self._known_run(request), request), None
            case MissedVerdictRequest():
                return self._missed_verdict(self._known_run(request), request, array), None
            case PlainRequest():
                return self._plain(request, array)

    def _join(self, encoded: bytes, version: int) -> _Run:
        """Take part in a run: agree to its terms, verify who else may, and prepare the data."""
        description = RunDescription.from_json(encoded)
        _require_version(description, version)
        if self._run is not None and self._run.description == description:
            return self._run
        check_agreement(self._policy, description, self._identity)
        # Of a run that nobody has proposed, nobody has judged the cost.
        until = self._agreements.check_run(description, self._policy.consent_to(math.inf), self._here.now())
        checked = check_roster(
            description.roster,
            description.member_list.encode(),
            self._members,
            self._revocations,
            self._policy,
            self._here.now(),
        )
        least = max(description.aggregation.min_hospitals, self._policy.min_hospitals)
        parameters = protocol_parameters(description, checked.keys, least, checked.consortium)
        run = _Run(description, parameters, self._prepare(description), checked.certificates, until)
        run.contributor.check_planned_end()
        run.proved = self._proved_model(run)
        self._agreements.hold_to(description)
        self._here.record(JoinedRun(run_id=description.run_id, config_hash=parameters.config_hash.hex()))
        self.close()
        self._run = run
        self._status.joined(description)
        _LOG.info("joined run %s", description.run_id)
        return run

    def _proved_model(self, run: _Run) -> ProvedModel | None:
        """Return this hospital's own model, in a run that proves its sums; the one it has, where the run goes on."""
        description, parameters, layout = run.description, run.parameters, run.contributor.layout
        if not description.aggregation.proved_sums:
            return None
        if self._proved is not None and self._proved.run_id == description.run_id:
            self._proved.go_on_under(description, parameters, layout)
        else:
            self._proved = ProvedModel(
                description,
                parameters,
                layout,
                self._identity.name,
                self._here.state,
                self._here.random,
                self._here.record,
            )
        return self._proved

    def _prepare(self, description: RunDescription) -> Contributor:
        contract, cache, run_id = DataContract.of_run(description), self._here.cache, description.run_id
        # Anew for each run: the folder may hold other data by now, and it is the ledger that says whose that is.
        if self._data is None or self._data[:2] != (run_id, contract):
            began_with = held(self._here.state, run_id)
            self._data = (run_id, contract, self._here.open_data(self._here.data, contract, cache, began_with))
            self._ledger = None
        data = self._data[2]
        if data.key:
            hold(self._here.state, run_id, data.key)
        ledger = None
        if mechanism_of(description).is_private or not description.evaluation.exact:
            state, ledgers = self._here.state, self._here.ledgers
            self._ledger = self._ledger or open_ledger(state, data.fingerprint, data.images, ledgers)
            ledger = self._ledger
            self._state_ledger(ledger, None)
        return Contributor(description, data, ledger, self._policy, self._here.random, cache)

    def _state_ledger(self, ledger: Ledger, spent: float | None) -> None:
        """Write down, signed, how far the ledger is, for the process that keeps this hospital's membership.

        Args:
            ledger: open.
            spent: on training, by the PRV accountant; None to have it composed.
        """
        if self._here.ledgers is None:
            return
        if spent is None:
            spent = rounded_up(ledger.spent(Account.TRAINING, BudgetPolicy.of(self._policy, Account.TRAINING)))
        statement = state_ledger(self._identity, str(ledger.head()), spent, self._here.now())
        try:
            write_private(self._here.state / STATED_FILE, statement.encode())
        except OSError as error:
            _LOG.warning("%s must be writable: %s", STATED_FILE, error.strerror)

    def _known_run(
        self,
        request: SharesRequest
        | MaskRequest
        | ConsistencyRequest
        | UnmaskRequest
        | UnmaskAllRequest
        | DisputeRequest
        | VerdictRequest
        | MissedVerdictRequest,
    ) -> _Run:
        if self._run is None or self._run.description.run_id != request.run_id:
            raise RunError(
                f"round {request.round_number}, {phase_of(request)}: {self._identity.name} has not joined this run, "
                "or was restarted since; it joins again"
            )
        _require_version(self._run.description, request.version)
        return self._run

    def _advertise(self, run: _Run, round_number: int) -> bytes:
        self._answered.advance(run.parameters.run_id, round_number, Phase.ADVERTISE_KEYS)
        for old in run.rounds():
            if old <= round_number - _ROUNDS_KEPT:
                run.forget(old)
        run.keys[round_number], message = advertise_keys.advertise(
            run.parameters, round_number, self._identity.name, self._identity.key, self._here.random
        )
        return secagg.encode(message)

    def _share(self, run: _Run, round_number: int, encoded: bytes) -> bytes:
        self._answered.check(run.parameters.run_id, round_number, Phase.SHARE_KEYS)
        keys = _state(run.keys, round_number, self._identity.name)
        directory = self._decode(
            run, round_number, Phase.SHARE_KEYS, encoded, advertise_keys.directory_type(run.parameters)
        )
        self._check_standing(run, [entry.hospital for entry in directory.keys])
        self._answered.advance(run.parameters.run_id, round_number, Phase.SHARE_KEYS)
        try:
            run.shared[round_number], message = share_keys.share(keys, directory, self._here.random)
        except SecAggError:
            run.forget(round_number)
            raise
        del run.keys[round_number]  # They are part of what is shared now, and are erased with it.
        return secagg.encode(message)

    def _mask(self, run: _Run, request: MaskRequest, array: Array | None) -> Answer:
        round_number = request.round_number
        self._answered.check(run.parameters.run_id, round_number, Phase.MASKED_INPUT)
        shared = _state(run.shared, round_number, self._identity.name)
        asked = self._decode(run, round_number, Phase.MASKED_INPUT, request.request, secagg.MaskedInputRequest)
        self._check_standing(run, asked.cohort)
        place = Place(self._identity.name, round_number, Phase.MASKED_INPUT)
        self._named.check(run.parameters.run_id, asked.cohort, place)
        check_time(run.description.run_id, run.until, self._here.now())
        terms = RoundTerms.decode(asked.terms)
        model = self._model(run, request, terms, array)
        started = self._here.clock()
        with contextlib.ExitStack() as at_the_end:
            # A bad share is refused here, before training has cost any privacy.
            accepted = masked_input.accept(shared, asked)
            at_the_end.callback(accepted.erase)
            for over in [number for number in run.disputable if number < round_number]:
                run.disputable.pop(over).erase()
            run.contributor.check(terms, len(asked.cohort))
            self._answered.advance(run.parameters.run_id, round_number, Phase.MASKED_INPUT)
            # Whatever happens from here on, nobody masks with these keys again.
            at_the_end.callback(run.shared.pop(round_number).erase)
            contribution = run.contributor.contribute(round_number, terms, model, cohort=len(asked.cohort))
            self._note(run, round_number, contribution)
            commitment = b"" if run.proved is None else run.proved.commit(contribution.vector)
            masked_state, message, vector = masked_input.mask_accepted(
                accepted, self._identity.key, contribution.vector, self._here.apply_masks, commitment
            )
            run.masked[round_number] = masked_state
            run.fewest[round_number] = terms.fewest_survivors
            run.terms[round_number] = terms
        # What others see bears its time, and is written when the stated time is over: the chain's line, the ledger's
        # head. The view that was signed is evidence; neither it nor the vector leaves unless it is in the chain.
        self._keep_time(started)
        self._record_contribution(run, round_number, terms, contribution.epsilon, secagg.encode(message))
        advertised = None if request.next_round is None else self._advertise(run, request.next_round)
        told: dict[str, Any] = {
            "masked": secagg.encode(message),
            "advertised": advertised,
            "epsilon": contribution.epsilon,
        }
        if masked_state.sealed is None:
            return MaskReply(**told), vector
        return ProvedMaskReply(**told, sealed=secagg.encode(masked_state.sealed)), vector

    def _model(
        self, run: _Run, request: MaskRequest, terms: RoundTerms, array: Array | None
    ) -> npt.NDArray[np.float32]:
        """Return the model that a round begins from: the one that came, or in a run that proves its sums our own."""
        place = Place(self._identity.name, request.round_number, Phase.MASKED_INPUT)
        if isinstance(request, ProvedMaskRequest) != (run.proved is not None):
            raise UnprovedModelError(
                place, "a request must say what its model follows from in a run that proves its sums, and in no other"
            )
        if run.proved is None or not isinstance(request, ProvedMaskRequest):
            return _checked_model(array, terms, run, place)
        return run.proved.model_for(request.round_number, terms, request.basis, array)

    def _keep_time(self, started: float) -> None:
        """Let no vector out before the time that the operator has stated, which shows nothing about the data."""
        stated = self._policy.answer_seconds
        if not stated:
            return
        left = started + stated - self._here.clock()
        if left < 0:
            _LOG.warning("a vector took %.1f s longer than hospital.answer_seconds = %g states", -left, stated)
        else:
            self._here.pause(left)

    def _note(self, run: _Run, round_number: int, contribution: Contribution) -> None:
        """Write down, for the hospital's own staff alone, what the round cost and how good its model is here."""
        self._status.contributed(
            round_number,
            spent=None if contribution.epsilon is None else contribution.epsilon.spent,
            evaluation_spent=contribution.evaluation_epsilon,
            records_per_second=contribution.records_per_second,
            notes=contribution.notes,
        )
        run_id, epsilon = run.description.run_id[:12], contribution.epsilon
        spent_so_far = "" if epsilon is None else f"; ε {epsilon.spent:g} of {epsilon.budget:g} is spent on training"
        facts = {} if epsilon is None else {"epsilon": epsilon.spent, "budget": epsilon.budget}
        _LOG.info(
            "run %s, round %d: this hospital's vector is made%s", run_id, round_number, spent_so_far,
            extra=with_facts(run=run_id, round=round_number, **facts),
        )  # fmt: skip
        self._tell_what_is_gone(contribution.gone)
        if contribution.own is not None:
            spent = math.nan if contribution.epsilon is None else contribution.epsilon.spent
            now = self._here.now().timestamp()
            result = OwnResult.of(
                now,
                run.description.run_id,
                round_number,
                contribution.own,
                contribution.groups,
                spent,
                contribution.alone,
            )
            append(self._here.state / OWN_RESULTS_FILE, result)

    def _tell_what_is_gone(self, gone: tuple[tuple[str, str], ...]) -> None:
        """Name the images that no longer count in a file for the hospital's operator; a log must not name them."""
        if gone == self._told_gone:
            return
        try:
            name_gone(self._here.state, gone)
        except OSError as error:
            _LOG.warning("%s must be writable: %s", GONE_FILE, error.strerror)
        self._told_gone = gone

    def _check_consistency(self, run: _Run, request: ConsistencyRequest) -> Reply:
        round_number = request.round_number
        self._answered.check(run.parameters.run_id, round_number, Phase.CONSISTENCY_CHECK)
        masked = _state(run.masked, round_number, self._identity.name)
        survivors = self._decode(run, round_number, Phase.CONSISTENCY_CHECK, request.survivors, secagg.SurvivorList)
        _require_noise(run, round_number, len(survivors.survivors))
        if run.proved is not None:
            run.groups[round_number] = self._group_to_sign(run, run.proved, request, survivors)
        self._answered.advance(run.parameters.run_id, round_number, Phase.CONSISTENCY_CHECK)
        run.signed[round_number], signature = consistency_check.sign_survivors(masked, self._identity.key, survivors)
        encoded = secagg.encode(signature)
        self._here.record(
            SignedSurvivors(
                run_id=run.parameters.run_id,
                round_number=round_number,
                survivors=survivors.survivors,
                signature=encoded.hex(),
            )
        )
        return ConsistencyReply(signature=encoded, shares=self._share_next(run, request))

    def _group_to_sign(
        self, run: _Run, proved: ProvedModel, request: ConsistencyRequest, survivors: secagg.SurvivorList
    ) -> CommittedGroup:
        """Return the survivors' commitments, as they are shown before this hospital signs that they survived."""
        masked = _state(run.masked, request.round_number, self._identity.name)
        phase = Phase.CONSISTENCY_CHECK
        encoded = request.views if isinstance(request, ProvedConsistencyRequest) else b""
        shown = self._decode(run, request.round_number, phase, encoded, secagg.FullUnmaskingRequest)
        run.views[request.round_number] = shown.views
        return proved.group(masked, shown.views, survivors.survivors, phase)

    def _unmask(self, run: _Run, request: UnmaskRequest) -> Reply:
        round_number = request.round_number
        self._answered.check(run.parameters.run_id, round_number, Phase.UNMASKING)
        signed = run.signed.get(round_number)
        masked = signed.masked if signed else _state(run.masked, round_number, self._identity.name)
        asked = self._decode(run, round_number, Phase.UNMASKING, request.request, secagg.UnmaskingRequest)
        _require_noise(run, round_number, len(asked.survivors))
        self._answered.advance(run.parameters.run_id, round_number, Phase.UNMASKING)
        kept = None
        try:
            revealed = secagg.encode(unmasking.reveal(signed or masked, asked))
            if run.proved is not None:  # Before a share is out, so that its sum cannot be passed over in silence.
                run.proved.opened(run.terms[round_number], masked.cohort, run.groups[round_number])
                kept = _for_a_dispute(run, masked, run.views[round_number])
        finally:
            run.forget(round_number)
        if kept is not None:
            run.disputable[round_number] = kept
        return UnmaskReply(revealed=revealed, shares=self._share_next(run, request))

    def _unmask_all(self, run: _Run, request: UnmaskAllRequest) -> Reply:
        round_number = request.round_number
        self._answered.check(run.parameters.run_id, round_number, Phase.FULL_UNMASKING)
        masked: masked_input.MaskedState = _state(run.masked, round_number, self._identity.name)
        asked = self._decode(run, round_number, Phase.FULL_UNMASKING, request.request, secagg.FullUnmaskingRequest)
        _require_noise(run, round_number, len(masked.cohort))
        self._answered.advance(run.parameters.run_id, round_number, Phase.FULL_UNMASKING)
        kept = None
        try:
            group = None
            if run.proved is not None:
                group = run.proved.group(masked, asked.views, masked.cohort, Phase.FULL_UNMASKING)
            revealed = secagg.encode(full_unmasking.reveal_all(masked, asked))
            if run.proved is not None and group is not None:  # As in the other ending, before a share is out.
                run.proved.opened(run.terms[round_number], masked.cohort, group)
            self._here.record(OpenedSum(run_id=run.parameters.run_id, round_number=round_number, cohort=masked.cohort))
            kept = _for_a_dispute(run, masked, asked.views)
        finally:
            run.forget(round_number)
        if kept is not None:
            run.disputable[round_number] = kept
        return UnmaskReply(revealed=revealed, shares=self._share_next(run, request))

    def _dispute(self, run: _Run, request: DisputeRequest, array: Array | None) -> DisputeReply:
        """Show this hospital's change if the sum fails here, too; its counts are shown to nobody."""
        round_number, run_id = request.round_number, run.parameters.run_id
        place = Place(self._identity.name, round_number, Phase.DISPUTE)
        if not run.parameters.disputes:
            raise UnknownPhaseError(place, "a change must be asked for in runs that have disputes alone")
        self._answered.check(run_id, round_number, Phase.DISPUTE)
        disputed: _Disputable = _state(run.disputable, round_number, self._identity.name)
        asked = self._decode(run, round_number, Phase.DISPUTE, request.request, secagg.Dispute)
        rules, shown = self._shown(run, disputed.kept.round, disputed.terms, asked, array, place)
        self._answered.advance(run_id, round_number, Phase.DISPUTE)
        try:
            if run.proved is not None:  # A run that has disputes proves its sums.
                run.proved.failed(round_number)
            if not early_faults(rules, shown):
                self._here.record(ShownChange(run_id=run_id, round_number=round_number))
                disputed.own = disputes.open_change(disputed.kept, self._identity.key)
        finally:
            disputed.erase()
        disputed.asked, disputed.shown = asked, shown
        return DisputeReply(opened=None if disputed.own is None else secagg.encode(disputed.own))

    def _shown(
        self,
        run: _Run,
        of: disputes.DisputedRound,
        terms: RoundTerms,
        asked: secagg.Dispute,
        array: Array | None,
        place: Place,
    ) -> tuple[Rules, disputes.ShownDispute]:
        """Return what a dispute shows, once it is seen that the sum fails, with the rules that it breaks."""
        words = np.zeros(0, np.float32) if array is None else array
        changes = sum_in(words, len(of.survivors) * of.change_length, run.parameters.dtype, place)
        shown = disputes.check(of, asked, changes, place, self._here.apply_masks)
        rules = rules_of(run.description, run.contributor.layout, terms.purpose)
        require_fault(rules, shown, place)
        return rules, shown

    def _verdict(self, run: _Run, request: VerdictRequest) -> VerdictReply:
        """Find who has cheated from what everybody showed, and take part in no round with them any more."""
        round_number, run_id = request.round_number, run.parameters.run_id
        place = Place(self._identity.name, round_number, Phase.VERDICT)
        disputed: _Disputable = _state(run.disputable, round_number, self._identity.name)
        asked = self._decode(run, round_number, Phase.VERDICT, request.opened, secagg.OpenedChanges)
        require_place(run.parameters, round_number, asked, place)
        if disputed.asked is None or disputed.shown is None:
            raise UnknownPhaseError(place, "a verdict must follow a dispute that this hospital has answered")
        if disputed.own is not None and disputed.own not in asked.opened:
            raise OmittedHospitalError(
                place, "a verdict must be from all that was shown, got it without this hospital's"
            )
        run.forget(round_number)
        rules = rules_of(run.description, run.contributor.layout, disputed.terms.purpose)
        found = verdict(rules, disputed.shown, asked.opened, self._here.apply_masks)
        return self._name(run_id, round_number, found, evidence_hash(disputed.asked, asked))

    def _missed_verdict(self, run: _Run, request: MissedVerdictRequest, array: Array | None) -> VerdictReply:
        """Find who has cheated in a round from signed bytes alone; what this hospital saw of it itself is not needed.

        Who merely showed nothing is not named: of that there is no evidence, and this hospital has not asked for it.
        """
        round_number, run_id = request.round_number, run.parameters.run_id
        place, phase = Place(self._identity.name, round_number, Phase.VERDICT), Phase.VERDICT
        if not run.parameters.disputes:
            raise UnknownPhaseError(place, "a verdict must be told in runs that have disputes alone")
        view = self._decode(run, round_number, phase, request.view, secagg.MaskedInput)
        views = self._decode(run, round_number, phase, request.views, secagg.FullUnmaskingRequest).views
        directory_type = advertise_keys.directory_type(run.parameters)
        directory = self._decode(run, round_number, phase, request.directory, directory_type)
        asked = self._decode(run, round_number, phase, request.dispute, secagg.Dispute)
        opened = self._decode(run, round_number, phase, request.opened, secagg.OpenedChanges)
        require_place(run.parameters, round_number, opened, place)
        of = disputes.signed_round(run.parameters, directory, request.cohort, view, views, place)
        committed_group(run.parameters, view, views, of.survivors, place)
        if request_hash(request.terms) != view.request_hash:
            raise DisputeEvidenceError(place, "the terms of a round must be those that its survivors signed")
        rules, shown = self._shown(run, of, RoundTerms.decode(request.terms), asked, array, place)
        found = verdict(rules, shown, opened.opened, self._here.apply_masks)
        proven = {hospital: fault for hospital, fault in found.items() if fault is not Fault.NOT_OPENED}
        return self._name(run_id, round_number, proven, evidence_hash(asked, opened))

    def _name(self, run_id: str, round_number: int, found: Mapping[str, Fault], evidence: str) -> VerdictReply:
        """Note who has cheated, each once in a run, however often this hospital is told."""
        new = {hospital: fault for hospital, fault in found.items() if not self._named.knows(run_id, hospital)}
        self._named.add(run_id, new)
        for hospital, fault in new.items():
            self._here.record(
                Named(run_id=run_id, round_number=round_number, hospital=hospital, fault=fault, evidence=evidence)
            )
            _LOG.warning("run %s, round %d: %s has cheated (%s)", run_id[:12], round_number, hospital, fault)
        return VerdictReply(named={hospital: fault.value for hospital, fault in found.items()})

    def _share_next(self, run: _Run, request: ConsistencyRequest | UnmaskRequest | UnmaskAllRequest) -> bytes | None:
        """Share the keys of the next round where the request brings everybody's, and this hospital's are among them."""
        if request.next_round is None or request.next_directory is None or request.next_round not in run.keys:
            return None
        try:
            return self._share(run, request.next_round, request.next_directory)
        except StandingError as error:
            # The round in hand ends with those who were members when it began; the next needs a new roster.
            _LOG.warning("no shares for round %d: %s", request.next_round, error)
            return None

    def _check_standing(self, run: _Run, names: Collection[str]) -> None:
        """Refuse revoked and outdated members among ``names``; names that the roster lacks are refused elsewhere."""
        self._revocations.check(run.certificates, run.certificates.keys() & set(names), self._here.now())

    def _plain(self, request: PlainRequest, array: Array | None) -> Answer:
        run = self._join(request.run_description, request.version)
        if run.description.aggregation.mode is not AggregationMode.PLAIN:
            raise PolicyError("a bare vector was asked for in a run of masked ones; this hospital sends none")
        self._check_standing(run, [self._identity.name])
        check_time(run.description.run_id, run.until, self._here.now())
        terms = RoundTerms.decode(request.terms)
        model = _checked_model(array, terms, run, Place(self._identity.name, request.round_number, Phase.MASKED_INPUT))
        cohort = len(run.description.roster)
        run.contributor.check(terms, cohort)
        self._answered.advance(run.parameters.run_id, request.round_number, Phase.MASKED_INPUT)
        started = self._here.clock()
        contribution = run.contributor.contribute(request.round_number, terms, model, cohort=cohort)
        self._note(run, request.round_number, contribution)
        self._keep_time(started)
        self._record_contribution(run, request.round_number, terms, contribution.epsilon, None)
        return PlainReply(epsilon=contribution.epsilon), contribution.vector

    def _record_contribution(
        self, run: _Run, round_number: int, terms: RoundTerms, epsilon: EpsilonReport | None, view: bytes | None
    ) -> None:
        ledger = None if self._ledger is None else str(self._ledger.head())
        if self._ledger is not None:
            is_prv = Accountant(run.description.privacy.accountant) is Accountant.PRV
            self._state_ledger(self._ledger, epsilon.spent if epsilon is not None and is_prv else None)
        self._here.record(
            Contributed(
                run_id=run.parameters.run_id,
                round_number=round_number,
                train=terms.trains,
                model_hash=terms.model_hash.hex(),
                terms=terms.encode().hex(),
                epsilon=None if epsilon is None else epsilon.spent,
                budget=None if epsilon is None else epsilon.budget,
                ledger=ledger,
                view=None if view is None else view.hex(),
            )
        )

    def _record_refusal(self, request: Request, error: ConfideError) -> None:
        """Record a refusal, once in a row: a server must not be able to fill this hospital's disk by asking again."""
        refusal = Refused(
            run_id=getattr(request, "run_id", None),
            round_number=request.round_number,
            hospital=self._identity.name,
            code=error.code,
            reason=_outward(error)[:_LONGEST_REASON],  # Others read this chain when a run is verified.
        )
        if refusal == self._last_refusal:
            return
        self._last_refusal = refusal
        try:
            self._here.record(refusal)
        except AuditError as unwritten:
            _LOG.error("%s", unwritten)  # A refusal is right even when it cannot be recorded.

    def _decode(
        self, run: _Run, round_number: int, phase: Phase, encoded: bytes, message_type: type[secagg.M]
    ) -> secagg.M:
        place = Place(self._identity.name, round_number, phase)
        limits = secagg.Limits(hospitals=len(run.parameters.roster))
        return secagg.decode(encoded, message_type, limits, place)


def _for_a_dispute(
    run: _Run, masked: masked_input.MaskedState, views: tuple[secagg.SignedView, ...]
) -> _Disputable | None:
    """Return what is kept of a round whose sum is about to be opened, where its sum may be disputed."""
    terms = run.terms[masked.round_number]
    kept = disputes.keep(masked, views) if terms.reads_training_records else None
    return None if kept is None else _Disputable(terms, kept)


def _require_version(run: RunDescription, version: int) -> None:
    """Refuse a request of another version than its run's, which the run's hash binds."""
    if version != run.protocol_version:
        raise OtherVersionError(
            f"a request must be of its run's version of the protocol, {run.protocol_version}, got version {version}"
        )


def _state(states: dict[int, Any], round_number: int, hospital: str) -> Any:  # noqa: ANN401 - as the caller's dict
    state = states.get(round_number)
    if state is None:
        raise RunError(
            f"{hospital} holds no secrets for this step of round {round_number}: "
            "it was restarted, or has answered it already; it takes part again from the next round"
        )
    return state


def _outward(error: ConfideError) -> str:
    """Return the words of a refusal that leave this hospital.

    What is wrong with its data, its ledger or its chain is for its own operator, who finds it in the log.
    """
    if isinstance(error, DataError):
        return UNUSABLE_DATA
    if isinstance(error, LedgerError | AuditError):
        return "this hospital's records do not let it take part; its operator knows why"
    return str(error)


def _require_noise(run: _Run, round_number: int, vectors: int) -> None:
    """Refuse to help unmask a sum of so many vectors, with fewer shares of the noise than its ε is claimed for."""
    fewest = run.fewest.get(round_number, 0)
    if vectors < fewest:
        raise MissingNoiseError(
            f"round {round_number}: the noise of at least {fewest} hospitals must be in the sum, got "
            f"{vectors}; raise privacy.tolerated_dropouts where more than "
            f"{run.description.privacy.tolerated_dropouts} may drop out"
        )


def _checked_model(array: Array | None, terms: RoundTerms, run: _Run, place: Place) -> npt.NDArray[np.float32]:
    """Return the model that came with a request, which must be the one that its terms name."""
    length = run.contributor.layout.parameters
    if array is None or array.dtype != np.float32 or array.shape != (length,):
        got = "none" if array is None else f"{array.dtype} of shape {array.shape}"
        raise UnusableModelError(place, f"a model of {length} float32 parameters must come with a request, got {got}")
    model = np.ascontiguousarray(array)
    if not np.isfinite(model).all():
        raise UnusableModelError(place, "a model must be finite, got infinite or undefined parameters")
    if hash_model(model) != terms.model_hash:
        raise ModelHashError(place, "the model must be the one that the round's terms name, got another")
    return model
