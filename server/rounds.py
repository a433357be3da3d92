"""One round of aggregation, exchange by exchange: what is asked of the hospitals, and the sum that comes out.

``SecureAggregation`` runs Bonawitz et al. 2017 with the keys of the next round riding on this one, in two
exchanges when nobody is missing. ``PlainAggregation`` asks for the bare vectors and exists for baselines.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from common.config import RunDescription
from common.evaluation.question import Question
from common.proved_sums.dispute import Fault, evidence_hash, require_fault, verdict
from common.proved_sums.errors import CommitmentError, SumError
from common.proved_sums.proof import CommittedGroup, prove, verify_sum
from common.run import messages
from common.run.basis import Evidence, words_of
from common.run.flat_model import FlatModel, hash_model
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
    SharesReply,
    SharesRequest,
    UnmaskAllRequest,
    UnmaskReply,
    UnmaskRequest,
    VerdictReply,
    VerdictRequest,
)
from common.run.next_model import SummedRound, check_norm, rules_of
from common.run.round_terms import ProvedTerms, Purpose, RoundTerms
from common.run.terms import fewest_survivors, layout_of
from common.run.vector import WeightRangeError
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
from common.secagg.errors import (
    SERVER,
    DisputeError,
    ImplausibleSumError,
    Place,
    SecAggError,
    ThresholdError,
    TooFewHospitalsError,
)
from common.secagg.masks import MaskApplier
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from server.conversation import Answer, Conversation
from server.transport import Outgoing

M = TypeVar("M", bound=secagg.Message)


@dataclass(frozen=True)
class Asked:
    """What a round is for; the cohort, once it is known, makes :class:`~common.run.round_terms.RoundTerms` of it.

    Attributes:
        purpose: train, evaluate alone, or tell the mean of features.
        question: the release of the evaluation plan that is asked for, if any.
    """

    purpose: Purpose
    question: Question | None = None

    @property
    def reads_training_records(self) -> bool:
        """Return whether hospitals need a budget for training to answer."""
        return self.purpose is not Purpose.EVALUATE

    def terms(
        self, description: RunDescription, model: FlatModel, cohort: int, following: "Following | None" = None
    ) -> RoundTerms:
        """Return the round's terms for a cohort of ``cohort`` hospitals."""
        fewest = fewest_survivors(
            description, cohort, trains=self.reads_training_records, measures=self.question is not None
        )
        terms = RoundTerms(
            purpose=self.purpose, model_hash=hash_model(model), fewest_survivors=fewest, question=self.question
        )
        if following is None:
            return terms
        return ProvedTerms(**msgspec.structs.asdict(terms), state_hash=following.state_hash)


@dataclass(frozen=True)
class Following:
    """What a round's model follows from, in a run that proves its sums; hospitals get this and no model.

    Attributes:
        state_hash: of the model and the optimiser's state that the round begins from.
        basis: a :class:`~common.run.basis.Basis`, encoded.
        total: the sum that the model follows from, as it travels; None for the model of the run's seed.
        whole: the same behind the model and state of before, for who lacks them.
        knowing: who needs the sum alone.
    """

    state_hash: bytes
    basis: bytes
    total: FlatModel | None = None
    whole: FlatModel | None = None
    knowing: frozenset[str] = frozenset()

    def array_for(self, hospital: str) -> FlatModel | None:
        """Return what goes to a hospital beside its request."""
        return self.total if hospital in self.knowing else self.whole


@dataclass
class RoundSum:
    """The sum over a round's survivors, and what they said about themselves beside it.

    Attributes:
        total: (vector length,) of the ring.
        terms: what the round asked for.
        cohort: how many hospitals were asked.
        survivors: whose vectors are in the sum, sorted.
        signatures: the survivors' signatures over that list as they arrived; none where nobody was missing, and in a
            semi-honest or plain round.
        views: everyone's signed view of the round as it arrived, where nobody was missing; none otherwise.
        epsilon: what each survivor's ledger says; none in mode ``none``.
        training_seconds: until the last vector had arrived, by the server's clock.
        answered: who sent a vector.
        evidence: what proves the sum, where it changes the model of a run that proves its sums.
    """

    total: npt.NDArray[Any]
    terms: RoundTerms
    cohort: int
    survivors: tuple[str, ...] = ()
    signatures: dict[str, bytes] = field(default_factory=dict)
    views: dict[str, bytes] = field(default_factory=dict)
    epsilon: dict[str, EpsilonReport] = field(default_factory=dict)
    training_seconds: float = 0.0
    answered: frozenset[str] = frozenset()
    evidence: Evidence | None = None
    spoilt: SecAggError | None = None
    """Why the sum is of no use, although everybody kept to the protocol as far as anybody can see."""
    named: Mapping[str, Fault] = field(default_factory=dict)
    """Who has cheated in it, and how, as a dispute has found."""
    dispute_evidence: str = ""
    """The hash of what was shown in the dispute."""


class Aggregation(Protocol):
    """Turns a model into the sum of the hospitals' vectors for it."""

    def aggregate(
        self,
        round_number: int,
        hospitals: Collection[str],
        model: FlatModel,
        asked: Asked,
        *,
        next_round: int | None,
        following: Following | None = None,
    ) -> RoundSum:
        """Run one round.

        Args:
            round_number: higher than any before in this run.
            hospitals: those that may take part, if they are online.
            model: d parameters.
            asked: what the round is for.
            next_round: the number of the round that will follow, for which keys may ride along.
            following: what the model follows from, in a run that proves its sums.

        Raises:
            SecAggError: too few hospitals are left, or they contradict each other; nothing was learnt.
        """


class SecureAggregation:
    """The masked sum; remembers between two rounds only who has shared keys for the next."""

    def __init__(
        self, description: RunDescription, parameters: RunParameters, conversation: Conversation, apply: MaskApplier
    ) -> None:
        self._description = description
        self._encoded = description.canonical_json()
        self._run = parameters
        self._conversation = conversation
        self._apply = apply
        self._limits = secagg.Limits(hospitals=len(description.roster))
        self._prepared: share_keys.Routed | None = None
        self._joined: set[str] = set()
        self._verdicts: list[_Verdict] = []

    def aggregate(
        self,
        round_number: int,
        hospitals: Collection[str],
        model: FlatModel,
        asked: Asked,
        *,
        next_round: int | None,
        following: Following | None = None,
    ) -> RoundSum:
        """See :meth:`Aggregation.aggregate`."""
        routed = self._take_prepared(round_number) or self._prepare(round_number, hospitals)
        riding = _Riding(next_round, frozenset(hospitals) - set(routed.cohort))
        self._tell_verdicts(routed.cohort)
        masked, result = self._collect_vectors(routed, model, riding, asked, following)
        result.answered = masked.submitted
        self._require_enough(masked, result.terms)
        next_directory = self._open_directory(riding)
        shares: dict[str, secagg.EncryptedShares] = {}
        if full_unmasking.is_full(masked):
            opening = full_unmasking.request_all(masked)
            revealed = self._collect_revealed(masked, opening, next_directory, shares)
            result.views = {hospital: secagg.encode(view) for hospital, view in masked.views.items()}
        elif consistency_check.needs_agreement(self._run):
            request = self._collect_signatures(masked, next_directory, shares)
            revealed = self._collect_revealed(masked, request, None, shares)
            result.signatures = {signature.hospital: secagg.encode(signature) for signature in request.signatures}
        else:
            request = consistency_check.unmasking_request(masked)
            revealed = self._collect_revealed(masked, request, next_directory, shares)
        self._route(next_directory, shares)
        unmasked = unmasking.unmask(masked, revealed, self._apply)
        self._conversation.refused_by_server(unmasked.refusals)
        result.total, result.survivors = unmasked.total, unmasked.survivors
        try:
            if following is not None and asked.reads_training_records:
                self._judge(masked, unmasked, result)
        finally:
            unmasked.erase()
        return result

    def _judge(self, masked: masked_input.MaskedSum, unmasked: unmasking.Unmasked, result: RoundSum) -> None:
        """Prove a sum, or say why it cannot be, and where a run has disputes, who is at fault."""
        try:
            result.evidence = self._prove(masked, unmasked, result.terms)
        except (SumError, CommitmentError) as error:
            result.spoilt = error
        except WeightRangeError as error:
            place = Place(SERVER, masked.routed.directory.round_number, Phase.UNMASKING)
            result.spoilt = ImplausibleSumError(place, str(error))
        if result.spoilt is not None and self._run.disputes:
            self._dispute(masked, unmasked, result)

    def _dispute(self, masked: masked_input.MaskedSum, unmasked: unmasking.Unmasked, result: RoundSum) -> None:
        """Have the survivors show their changes of a spoilt sum, and find who has spoilt it, as each of them does."""
        of, round_number = disputes.disputed_round(masked), masked.routed.directory.round_number
        place = Place(SERVER, round_number, Phase.DISPUTE)
        asked, changes = disputes.dispute(masked, unmasked)
        rules = rules_of(self._description, layout_of(self._description), result.terms.purpose)
        try:
            shown = disputes.check(of, asked, changes, place, self._apply)
            require_fault(rules, shown, place)
        except DisputeError as error:  # Nobody would answer.
            self._conversation.refused_by_server((error,))
            return
        at: dict[str, Any] = {"run_id": self._run.run_id, "round_number": round_number}
        request = Outgoing(DisputeRequest(**at, request=secagg.encode(asked)), words_of(changes))
        opened: dict[str, secagg.OpenedChange] = {}
        for answer in self._ask(
            round_number, Phase.DISPUTE, dict.fromkeys(masked.survivors, request), len(masked.survivors)
        ):
            if isinstance(answer.reply, DisputeReply) and answer.reply.opened is not None:
                self._take(answer, Phase.DISPUTE, round_number, answer.reply.opened, opened.__setitem__,
                           secagg.OpenedChange)  # fmt: skip
        genuine = {
            name: each for name, each in opened.items() if name == each.hospital and disputes.is_genuine(of, each)
        }
        everything = secagg.OpenedChanges(**at, opened=tuple(each for _, each in sorted(genuine.items())))
        telling = Outgoing(VerdictRequest(**at, opened=secagg.encode(everything)))
        told = {
            answer.hospital
            for answer in self._ask(
                round_number, Phase.VERDICT, dict.fromkeys(masked.survivors, telling), len(masked.survivors)
            )
            if isinstance(answer.reply, VerdictReply)  # What each of them finds is for itself; it is the same.
        }
        result.named = verdict(rules, shown, everything.opened, self._apply)
        missed = MissedVerdictRequest(
            **at,
            terms=result.terms.encode(),
            directory=secagg.encode(masked.routed.directory),
            cohort=masked.routed.cohort,
            view=secagg.encode(of.view),
            views=secagg.encode(
                secagg.FullUnmaskingRequest(
                    self._run.run_id, round_number, tuple(of.views[name] for name in of.survivors)
                )
            ),
            dispute=secagg.encode(asked),
            opened=secagg.encode(everything),
        )
        untold = set(self._run.roster) - told - set(result.named)
        self._verdicts.append(_Verdict(Outgoing(missed, request.model), untold))
        result.dispute_evidence = evidence_hash(asked, everything)

    def _tell_verdicts(self, hospitals: Collection[str]) -> None:
        """Hand the evidence of earlier disputes to those who have not found the cheat yet, before they mask again.

        Who refuses it by a rule of the protocol is not asked again; who does not answer is, in the next round.
        """
        for each in self._verdicts:
            asked = dict.fromkeys(each.untold.intersection(hospitals), each.request)
            if not asked:
                continue
            round_number = each.request.request.round_number
            for answer in self._ask(round_number, Phase.VERDICT, asked, len(asked)):
                if isinstance(answer.reply, VerdictReply):
                    each.untold.discard(answer.hospital)
            refused = self._conversation.tally.refused
            each.untold.difference_update([name for name in asked if name in refused and refused[name].is_attack])
        self._verdicts = [each for each in self._verdicts if each.untold]

    def _prove(self, masked: masked_input.MaskedSum, unmasked: unmasking.Unmasked, terms: RoundTerms) -> Evidence:
        """Return what proves the sum, as every hospital will check it.

        Raises:
            SumError: it cannot be proved, because a hospital's vector is not what it committed to, or its change is
                longer than the run allows; the round is void, and nobody takes a step.
            CommitmentError: a hospital's commitment is none, or it was not what the hospital signed.
            WeightRangeError: no honest hospitals have such a total weight, in a run that has disputes.
        """
        round_number = masked.routed.directory.round_number
        layout, first = layout_of(self._description), masked.views[unmasked.survivors[0]]
        proof = prove(self._run, round_number, unmasked.commitments)
        hashes = {name: masked.views[name].commitment for name in unmasked.survivors}
        total = layout.proved_part(unmasked.total)
        proved = verify_sum(CommittedGroup(self._run, first, hashes), layout.proof, proof, total)
        of = SummedRound(terms.purpose, len(masked.routed.cohort), len(unmasked.survivors))
        check_norm(self._description, layout, of, proved.total, Place(SERVER, round_number, Phase.UNMASKING))
        if self._run.disputes:
            layout.check_proved_weight(proved.total, len(unmasked.survivors))
        return Evidence(
            round_number=round_number,
            terms=terms.encode(),
            cohort=masked.routed.cohort,
            view=secagg.encode(first),
            views=secagg.encode(_views(masked)),
            proof=secagg.encode(proof),
        )

    def _take_prepared(self, round_number: int) -> share_keys.Routed | None:
        prepared, self._prepared = self._prepared, None
        return prepared if prepared is not None and prepared.directory.round_number == round_number else None

    def _prepare(self, round_number: int, hospitals: Collection[str]) -> share_keys.Routed:
        """Exchange keys and shares with everyone who is there, before a round that none rode along for."""
        online = self._conversation.online().intersection(hospitals)
        request = Outgoing(KeysRequest(run_description=self._encoded, round_number=round_number))
        keys: dict[str, secagg.AdvertisedKeys] = {}
        requests, newcomers = dict.fromkeys(online, request), online - self._joined
        for answer in self._ask(round_number, Phase.ADVERTISE_KEYS, requests, len(online), preparing=bool(newcomers)):
            self._joined.add(answer.hospital)
            if isinstance(answer.reply, KeysReply):
                self._take(answer, Phase.ADVERTISE_KEYS, round_number, answer.reply.advertised, keys.__setitem__,
                           advertise_keys.keys_type(self._run))  # fmt: skip
        collected = advertise_keys.collect(self._run, round_number, keys)
        self._conversation.refused_by_server(collected.refusals)
        share_requests = {
            entry.hospital: self._share_request(collected.directory) for entry in collected.directory.keys
        }
        shares: dict[str, secagg.EncryptedShares] = {}
        for answer in self._ask(round_number, Phase.SHARE_KEYS, share_requests, len(share_requests)):
            self._take_shares(answer, round_number, shares)
        routed = share_keys.route(self._run, collected.directory, shares)
        self._conversation.refused_by_server(routed.refusals)
        return routed

    def _collect_vectors(
        self,
        routed: share_keys.Routed,
        model: FlatModel,
        riding: "_Riding",
        asked: Asked,
        following: Following | None,
    ) -> tuple[masked_input.MaskedSum, RoundSum]:
        round_number = routed.directory.round_number
        terms = asked.terms(self._description, model, len(routed.cohort), following)
        encoded = terms.encode()
        masked = masked_input.MaskedSum(routed, encoded)
        result = RoundSum(masked.total, terms, len(routed.cohort))
        started = self._conversation.tally.seconds
        requests = {
            hospital: self._mask_request(
                hospital, model, following,
                run_id=self._run.run_id,
                round_number=round_number,
                request=secagg.encode(routed.request_for(hospital, encoded)),
                next_round=riding.round_number,
            )
            for hospital in routed.cohort
        }  # fmt: skip
        joining = self._joining(riding)
        for answer in self._ask(
            round_number, Phase.MASKED_INPUT, requests, _fewest(routed, terms), joining, masked.total.nbytes
        ):
            if isinstance(answer.reply, MaskReply):
                self._add_vector(answer, answer.reply, masked, result, riding)
            elif isinstance(answer.reply, KeysReply):
                self._take_next_keys(answer, answer.reply.advertised, riding)
            del answer  # And its vector with it, before the next one comes.
        result.training_seconds = self._conversation.tally.seconds - started
        return masked, result

    @staticmethod
    def _mask_request(
        hospital: str,
        model: FlatModel,
        following: Following | None,
        **asked: Any,  # noqa: ANN401 - the fields of a MaskRequest
    ) -> Outgoing:
        if following is None:
            return Outgoing(MaskRequest(**asked), model)
        return Outgoing(ProvedMaskRequest(**asked, basis=following.basis), following.array_for(hospital))

    def _require_enough(self, masked: masked_input.MaskedSum, terms: RoundTerms) -> None:
        """End a round that hospitals would refuse to unmask."""
        fewest = _fewest(masked.routed, terms)
        if len(masked.submitted) < fewest:
            raise TooFewHospitalsError(
                Place(SERVER, masked.routed.directory.round_number, Phase.MASKED_INPUT),
                f"at least {fewest} hospitals must submit a vector, got {len(masked.submitted)}",
            )

    def _add_vector(
        self, answer: Answer, reply: MaskReply, masked: masked_input.MaskedSum, result: RoundSum, riding: "_Riding"
    ) -> None:
        place = Place(SERVER, masked.routed.directory.round_number, Phase.MASKED_INPUT)
        try:
            message = secagg.decode(reply.masked, secagg.MaskedInput, self._limits, place, answer.hospital)
            vector = np.zeros(0, self._run.dtype) if answer.array is None else answer.array
            sealed = None
            if isinstance(reply, ProvedMaskReply):
                sealed = secagg.decode(reply.sealed, secagg.SealedCommitment, self._limits, place, answer.hospital)
            masked.add(answer.hospital, message, vector, sealed)
        except SecAggError as error:
            self._conversation.refused_by_server((error,))
            return
        if reply.epsilon is not None:
            result.epsilon[answer.hospital] = reply.epsilon
        if reply.advertised is not None:
            self._take_next_keys(answer, reply.advertised, riding)

    def _open_directory(self, riding: "_Riding") -> secagg.KeyDirectory | None:
        """Return the keys that rode along for the next round, None if they are too few to begin it with."""
        if riding.round_number is None:
            return None
        try:
            collected = advertise_keys.collect(self._run, riding.round_number, riding.keys)
        except ThresholdError:
            return None
        self._conversation.refused_by_server(collected.refusals)
        return collected.directory

    def _collect_signatures(
        self,
        masked: masked_input.MaskedSum,
        directory: secagg.KeyDirectory | None,
        shares: dict[str, secagg.EncryptedShares],
    ) -> secagg.UnmaskingRequest:
        survivor_list = masked.close()
        round_number = survivor_list.round_number
        told: dict[str, Any] = {
            "run_id": self._run.run_id,
            "round_number": round_number,
            "survivors": secagg.encode(survivor_list),
            "next_round": None if directory is None else directory.round_number,
            "next_directory": None if directory is None else secagg.encode(directory),
        }
        request = Outgoing(
            ProvedConsistencyRequest(**told, views=secagg.encode(_views(masked)))
            if self._run.proves_sums
            else ConsistencyRequest(**told)
        )
        signatures: dict[str, secagg.SurvivorSignature] = {}
        for answer in self._ask(
            round_number,
            Phase.CONSISTENCY_CHECK,
            dict.fromkeys(survivor_list.survivors, request),
            masked.routed.directory.threshold,
            self._sharing(directory, survivor_list.survivors),
        ):
            if isinstance(answer.reply, ConsistencyReply):
                self._take(answer, Phase.CONSISTENCY_CHECK, round_number, answer.reply.signature,
                           signatures.__setitem__, secagg.SurvivorSignature)  # fmt: skip
            self._take_next_shares(answer, directory, shares)
        signed = consistency_check.collect(masked, signatures)
        self._conversation.refused_by_server(signed.refusals)
        return signed.request

    def _collect_revealed(
        self,
        masked: masked_input.MaskedSum,
        asked: secagg.UnmaskingRequest | secagg.FullUnmaskingRequest,
        directory: secagg.KeyDirectory | None,
        shares: dict[str, secagg.EncryptedShares],
    ) -> dict[str, secagg.UnmaskingShares]:
        is_full = isinstance(asked, secagg.FullUnmaskingRequest)
        phase = Phase.FULL_UNMASKING if is_full else Phase.UNMASKING
        request = (UnmaskAllRequest if is_full else UnmaskRequest)(
            run_id=self._run.run_id,
            round_number=asked.round_number,
            request=secagg.encode(asked),
            next_round=None if directory is None else directory.round_number,
            next_directory=None if directory is None else secagg.encode(directory),
        )
        revealed: dict[str, secagg.UnmaskingShares] = {}
        for answer in self._ask(
            request.round_number,
            phase,
            dict.fromkeys(masked.survivors, Outgoing(request)),
            masked.routed.directory.threshold,
            self._sharing(directory, masked.survivors),
        ):
            if isinstance(answer.reply, UnmaskReply):
                self._take(answer, phase, request.round_number, answer.reply.revealed,
                           revealed.__setitem__, secagg.UnmaskingShares)  # fmt: skip
            self._take_next_shares(answer, directory, shares)
        return revealed

    def _route(self, directory: secagg.KeyDirectory | None, shares: Mapping[str, secagg.EncryptedShares]) -> None:
        """Keep who has shared for the next round; when they are too few, that round begins with explicit keys."""
        if directory is None:
            return
        try:
            self._prepared = share_keys.route(self._run, directory, shares)
        except ThresholdError:
            return
        self._conversation.refused_by_server(self._prepared.refusals)

    def _joining(self, riding: "_Riding") -> dict[str, Outgoing]:
        if riding.round_number is None:
            return {}
        request = Outgoing(KeysRequest(run_description=self._encoded, round_number=riding.round_number))
        return dict.fromkeys(self._conversation.online() & riding.newcomers, request)

    def _sharing(self, directory: secagg.KeyDirectory | None, survivors: Collection[str]) -> dict[str, Outgoing]:
        if directory is None:
            return {}
        newcomers = {entry.hospital for entry in directory.keys}.difference(survivors)
        return dict.fromkeys(newcomers, self._share_request(directory))

    def _share_request(self, directory: secagg.KeyDirectory) -> Outgoing:
        return Outgoing(
            SharesRequest(
                run_id=self._run.run_id, round_number=directory.round_number, directory=secagg.encode(directory)
            )
        )

    def _take_next_keys(self, answer: Answer, advertised: bytes, riding: "_Riding") -> None:
        if riding.round_number is not None:
            self._take(answer, Phase.ADVERTISE_KEYS, riding.round_number, advertised, riding.keys.__setitem__,
                       advertise_keys.keys_type(self._run))  # fmt: skip

    def _take_next_shares(
        self, answer: Answer, directory: secagg.KeyDirectory | None, shares: dict[str, secagg.EncryptedShares]
    ) -> None:
        if directory is not None:
            self._take_shares(answer, directory.round_number, shares)

    def _take_shares(self, answer: Answer, round_number: int, shares: dict[str, secagg.EncryptedShares]) -> None:
        if not isinstance(answer.reply, SharesReply | ConsistencyReply | UnmaskReply):
            return
        if answer.reply.shares is not None:
            self._take(answer, Phase.SHARE_KEYS, round_number, answer.reply.shares, shares.__setitem__,
                       secagg.EncryptedShares)  # fmt: skip

    def _take(
        self,
        answer: Answer,
        phase: Phase,
        round_number: int,
        encoded: bytes,
        keep: Callable[[str, M], None],
        message_type: type[M],
    ) -> None:
        """Decode what a hospital sent and keep it under the hospital's name; report what is not a message."""
        place = Place(SERVER, round_number, phase)
        try:
            keep(answer.hospital, secagg.decode(encoded, message_type, self._limits, place, answer.hospital))
        except SecAggError as error:
            self._conversation.refused_by_server((error,))

    def _ask(
        self,
        round_number: int,
        phase: Phase,
        requests: Mapping[str, Outgoing],
        enough: int,
        joining: Mapping[str, Outgoing] | None = None,
        reply_array_bytes: int = 0,
        *,
        preparing: bool = False,
    ) -> Iterator[Answer]:
        return self._conversation.ask(
            round_number,
            phase,
            requests,
            enough=enough,
            joining=joining,
            reply_array_bytes=reply_array_bytes,
            preparing=preparing,
        )


def _views(masked: masked_input.MaskedSum) -> secagg.FullUnmaskingRequest:
    """Return the signed views of everybody whose vector has arrived."""
    views = (masked.views[hospital] for hospital in sorted(masked.views))
    return secagg.FullUnmaskingRequest(
        masked.routed.run.run_id,
        masked.routed.directory.round_number,
        tuple(secagg.SignedView.of(view) for view in views),
    )


def _fewest(routed: share_keys.Routed, terms: RoundTerms) -> int:
    """Return how many vectors make a sum: the threshold, and enough for the noise."""
    return max(routed.directory.threshold, terms.fewest_survivors)


@dataclass
class _Verdict:
    """The evidence of a dispute, and who has not heard of it; forgotten with the process."""

    request: Outgoing
    untold: set[str]


@dataclass
class _Riding:
    """The keys for the next round that arrive during this one."""

    round_number: int | None
    newcomers: frozenset[str]
    keys: dict[str, secagg.AdvertisedKeys] = field(default_factory=dict)


class PlainAggregation:
    """The sum of bare vectors: no masks, no secrecy; a baseline that every output names as such."""

    def __init__(self, description: RunDescription, parameters: RunParameters, conversation: Conversation) -> None:
        self._description = description
        self._encoded = description.canonical_json()
        self._run = parameters
        self._conversation = conversation
        self._joined: set[str] = set()

    def aggregate(
        self,
        round_number: int,
        hospitals: Collection[str],
        model: FlatModel,
        asked: Asked,
        *,
        next_round: int | None,  # noqa: ARG002 - nothing rides along
        following: Following | None = None,  # noqa: ARG002 - a sum of bare vectors is not proved
    ) -> RoundSum:
        """See :meth:`Aggregation.aggregate`."""
        terms = asked.terms(self._description, model, len(self._description.roster))
        request = Outgoing(
            PlainRequest(
                run_id=self._run.run_id,
                run_description=self._encoded,
                round_number=round_number,
                terms=terms.encode(),
            ),
            model,
        )
        result = RoundSum(np.zeros(self._run.vector_length, self._run.dtype), terms, len(self._description.roster))
        started = self._conversation.tally.seconds
        online = self._conversation.online().intersection(hospitals)
        summed: list[str] = []
        for answer in self._conversation.ask(
            round_number,
            messages.phase_of(request.request),
            dict.fromkeys(online, request),
            enough=self._run.min_hospitals if online <= self._joined else len(online),
            reply_array_bytes=result.total.nbytes,
            preparing=not online <= self._joined,
        ):
            self._joined.add(answer.hospital)
            if self._add_vector(answer, result):
                summed.append(answer.hospital)
            del answer  # And its vector with it, before the next one comes.
        result.training_seconds = self._conversation.tally.seconds - started
        if len(summed) < self._run.min_hospitals:
            raise TooFewHospitalsError(
                Place(SERVER, round_number, Phase.MASKED_INPUT),
                f"at least {self._run.min_hospitals} hospitals must submit a vector, got {len(summed)}",
            )
        result.survivors = tuple(sorted(summed))
        return result

    def _add_vector(self, answer: Answer, result: RoundSum) -> bool:
        """Add what a hospital sent, if that is a vector of this run; says whether it is."""
        vector = answer.array
        if not isinstance(answer.reply, PlainReply) or vector is None:
            return False
        if vector.dtype != self._run.dtype or vector.shape != result.total.shape:
            return False
        self._run.add(result.total, vector)
        if answer.reply.epsilon is not None:
            result.epsilon[answer.hospital] = answer.reply.epsilon
        return True
