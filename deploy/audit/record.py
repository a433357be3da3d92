"""What the server's audit chain says a run did, each entry checked against the ones before it."""

from dataclasses import dataclass, field

from cryptography import x509

from common.audit.chain import AuditEntry, Chain
from common.audit.entries import Began, Centred, Contributed, Finished, Stepped, Summed, Told
from common.audit.parties import SERVER_PARTY
from common.config import AggregationMode, RunDescription
from common.errors import AuditError, ConfideError, IdentityError, RunError
from common.identity.certificates import verify_roster
from common.identity.members import verify_members
from common.privacy.mechanism import mechanism_of
from common.run.flat_model import hash_model
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import protocol_parameters
from common.secagg import messages as secagg
from common.secagg.binding import cohort_hash, request_hash, survivors_hash
from common.secagg.consistency_check import signed_part
from common.secagg.errors import SERVER, Place, SecAggError
from common.secagg.keys import is_signed
from common.secagg.masked_input import verify_view
from common.secagg.parameters import Adversary, RunParameters
from common.secagg.phases import Phase
from server.initial_model import initial_model


@dataclass
class RunRecord:
    """A run as its server's chain records it.

    Attributes:
        description: what the hospitals agreed to last; earlier ones differ in the roster alone.
        parameters: the protocol's, with every hospital's verified key.
        terms: the parameters of every description, by its hash.
        descriptions: every one under which the run went on, by its hash in hexadecimal.
        data_set: its name.
        sums: round number to the round that gave a sum.
        models: step to the model's hash; 0 is the initial model.
        last_epsilon: what the survivors of the last training round had spent.
        finished: the last entry of a run that ended; None otherwise.
        told: what its events were, step by step.
        is_told_to_its_end: whether the last of these has the run's last event.
    """

    description: RunDescription
    parameters: RunParameters
    data_set: str
    terms: dict[bytes, RunParameters] = field(default_factory=dict)
    descriptions: dict[str, RunDescription] = field(default_factory=dict)
    sums: dict[int, Summed] = field(default_factory=dict)
    models: dict[int, str] = field(default_factory=dict)
    last_epsilon: dict[str, float] = field(default_factory=dict)
    finished: Finished | None = None
    told: list[Told] = field(default_factory=list)
    is_told_to_its_end: bool = False
    _step: int = 0
    _trained: Summed | None = None
    _told_mean: Summed | None = None
    _first: str = ""

    def __post_init__(self) -> None:
        """Remember the initial model, which a server that was killed before it kept the centre goes on from."""
        self._first = self.models.get(0, "")

    def follow(self, entry: AuditEntry, place: str) -> None:
        """Take in one entry of the server's chain, or raise :class:`AuditError` where it can't follow the others."""
        body = entry.body
        match body:
            case Began():
                is_made = self.models.get(body.step) == body.model_hash
                is_first = (body.step, body.model_hash) == (0, self._first)
                _require(is_made or is_first, place, "it continues from a model no step made")
                self.models[body.step] = body.model_hash
                self._step, self._trained, self._told_mean, self.finished = body.step, None, None, None
                self.is_told_to_its_end = False
            case Summed():
                self._follow_sum(body, place)
            case Stepped():
                trained = self._trained
                _require(trained is not None and trained.round_number == body.round_number, place, "no sum gave it")
                _require(body.step == self._step + 1, place, f"step {self._step + 1} must follow, got {body.step}")
                self._step, self._trained = body.step, None
                self.models[body.step] = body.model_hash
                self.last_epsilon = trained.epsilon if trained else {}
            case Centred():
                told = self._told_mean
                _require(told is not None and told.round_number == body.round_number, place, "no mean gave it")
                _require(self._step == 0, place, f"a centre must be there before step 1, got one after {self._step}")
                self._told_mean = None
                self.models[0] = body.model_hash
            case Finished():
                made = (body.steps, body.model_hash) == (self._step, self.models[self._step])
                _require(made, place, "it ends with another model than the last step made")
                self.finished = body
            case Told():
                self.told.append(body)
                self.is_told_to_its_end = self.finished is not None
            case _:
                pass

    def go_on_under(self, description: RunDescription, parameters: RunParameters, place: str) -> None:
        """Take up the terms that the run continues under: members may have changed, and nothing else."""
        _require(description.run_id == self.description.run_id, place, "one run's chain holds another run")
        members = {key: getattr(description, key) for key in ("roster", "member_list", "vector_length")}
        _require(self.description.model_copy(update=members) == description, place, "the terms changed")
        self.description, self.parameters = description, parameters
        self.terms[parameters.config_hash] = parameters
        self.descriptions[description.hash().hex()] = description

    def _follow_sum(self, body: Summed, place: str) -> None:
        _require(body.model_hash == self.models[self._step], place, "the hospitals were given another model")
        check_terms(body, place)
        _require(body.round_number not in self.sums, place, "its round gave a sum before")
        unknown = set(body.survivors) - set(self.description.roster)
        _require(not unknown, place, f"not on the roster: {', '.join(sorted(unknown))}")
        least = self.description.aggregation.min_hospitals
        _require(len(body.survivors) >= least, place, f"a sum over fewer than {least} hospitals")
        if self.is_signed and body.views:
            self._follow_views(body, place)
        elif self.is_signed:
            signed = {name: bytes.fromhex(encoded) for name, encoded in body.signatures.items()}
            for name, encoded in sorted(signed.items()):
                self.verify_signature(name, encoded, body.round_number, body.survivors, body.terms, place)
            needed = self.parameters.threshold(len(body.survivors))
            _require(len(signed) >= needed, place, f"{needed} survivors must have signed, got {len(signed)}")
        self.sums[body.round_number] = body
        if body.train:
            self._trained = body
        if RoundTerms.decode(bytes.fromhex(body.terms)).purpose is Purpose.MEAN:
            self._told_mean = body

    def _follow_views(self, body: Summed, place: str) -> None:
        """Check a round in which nobody was missing: all of the cohort signed one view, and the sum is over them."""
        _require(not body.signatures, place, "a sum is over the survivors who signed, or over everybody, not both")
        _require(set(body.views) == set(body.survivors), place, "everyone in the sum, and no other, must have signed")
        views = [
            self.verify_view(name, bytes.fromhex(encoded), body.round_number, body.terms, place)
            for name, encoded in sorted(body.views.items())
        ]
        first = views[0]
        for view in views[1:]:
            alike = secagg.SignedView.of(view).within(first)
            _require(alike == view, place, f"{view.hospital} signed another view than {first.hospital}")
        everybody = cohort_hash(first.directory_hash, body.survivors)
        _require(first.cohort_hash == everybody, place, "the sum must be over the cohort that everyone signed")

    def verify_view(
        self, hospital: str, encoded: bytes, round_number: int, terms: str, place: str
    ) -> secagg.MaskedInput:
        """Return a hospital's view of a round, or raise :class:`AuditError` unless it signed it, for these terms."""
        limits = secagg.Limits(hospitals=len(self.description.roster))
        where = Place(SERVER, round_number, Phase.MASKED_INPUT)
        try:
            view = secagg.decode(encoded, secagg.MaskedInput, limits, where, hospital)
        except SecAggError as error:
            raise AuditError(f"{place}: {error}") from None
        _require(
            (view.hospital, view.run_id, view.round_number, view.request_hash)
            == (hospital, self.description.run_id, round_number, request_hash(bytes.fromhex(terms)))
            and view.config_hash in self.terms,
            place,
            f"the view of round {round_number} must be that of {hospital}, of the terms recorded",
        )
        parameters = self.terms[view.config_hash]
        _require(hospital in parameters.roster, place, f"{hospital} signed terms whose roster lacks it")
        try:
            verify_view(parameters, view, where)
        except SecAggError as error:
            raise AuditError(f"{place}: {error}") from None
        return view

    @property
    def is_signed(self) -> bool:
        """Whether the survivors of each round sign that they are."""
        secure = self.description.aggregation.mode is AggregationMode.SECURE
        return secure and self.parameters.adversary is Adversary.ACTIVE

    @property
    def is_private(self) -> bool:
        """Whether the run has differential privacy."""
        return mechanism_of(self.description).is_private

    def verify_signature(
        self, hospital: str, encoded: bytes, round_number: int, survivors: tuple[str, ...], terms: str, place: str
    ) -> None:
        """Raise :class:`AuditError` unless ``encoded`` is the hospital's signature over this round as recorded."""
        limits = secagg.Limits(hospitals=len(self.description.roster))
        where = Place(SERVER, round_number, Phase.CONSISTENCY_CHECK)
        try:
            message = secagg.decode(encoded, secagg.SurvivorSignature, limits, where, hospital)
        except SecAggError as error:
            raise AuditError(f"{place}: {error}") from None
        _require(hospital in survivors and message.hospital == hospital, place, f"{hospital} is no survivor")
        _require(
            (message.run_id, message.round_number, message.request_hash)
            == (self.description.run_id, round_number, request_hash(bytes.fromhex(terms)))
            and message.config_hash in self.terms
            and message.survivors_hash == survivors_hash(survivors),
            place,
            f"{hospital} signed another view of round {round_number}",
        )
        parameters = self.terms[message.config_hash]
        _require(hospital in parameters.roster, place, f"{hospital} signed terms whose roster lacks it")
        genuine = is_signed(parameters.roster[hospital], message.signature, signed_part(parameters, message))
        _require(genuine, place, f"the signature must be that of {hospital}")


def read_record(chain: Chain, name: str, authority: x509.Certificate, first_model: str | None = None) -> RunRecord:
    """Follow the server's whole chain.

    Args:
        chain: verified.
        name: of its file, for messages.
        authority: the consortium's; every hospital on the roster must be certified by it when the run began.
        first_model: the hash of the model that the run begins with; by default that of the run's seed, which is made
            here and takes PyTorch.

    Raises:
        AuditError: an entry contradicts another or the terms; the message names its line.
    """
    if chain.party != SERVER_PARTY:
        raise AuditError(f"{name}: must be the server's chain, got that of {chain.party}")
    record: RunRecord | None = None
    for entry in chain.entries:
        place = f"{name}, line {entry.sequence}"
        if isinstance(entry.body, Began):
            description, parameters = _terms(entry.body, authority, place)
            if record is None:
                models = {0: first_model or _first_model(description, place)}
                record = RunRecord(description, parameters, entry.body.data_set, models=models)
            record.go_on_under(description, parameters, place)
        if record is not None:
            record.follow(entry, place)
    if record is None:
        raise AuditError(f"{name}: must record a run; it has not begun one")
    return record


def _terms(began: Began, authority: x509.Certificate, place: str) -> tuple[RunDescription, RunParameters]:
    try:
        description = RunDescription.from_json(began.description.encode())
        keys = verify_roster(description.roster, authority)
        listed = verify_members(description.member_list.encode(), authority)
        if any(listed.members.get(name) != key for name, key in keys.items()):
            raise IdentityError("every hospital on the roster must be on the authority's member list with its key")
        least = description.aggregation.min_hospitals
        return description, protocol_parameters(description, keys, least, len(listed.members))
    except ConfideError as error:
        raise AuditError(f"{place}: {error}") from None


def check_terms(body: Summed | Contributed, place: str) -> None:
    """Raise :class:`AuditError` unless an entry says of its round what the round's own terms say."""
    try:
        terms = RoundTerms.decode(bytes.fromhex(body.terms))
    except RunError as error:
        raise AuditError(f"{place}: {error}") from None
    said = (body.train, body.model_hash)
    _require(said == (terms.trains, terms.model_hash.hex()), place, "it contradicts the terms of its round")


def _first_model(description: RunDescription, place: str) -> str:
    try:
        return hash_model(initial_model(description)).hex()
    except (ConfideError, ValueError) as error:
        raise AuditError(f"{place}: {error}") from None


def _require(holds: bool, place: str, otherwise: str) -> None:
    if not holds:
        raise AuditError(f"{place}: {otherwise}")
