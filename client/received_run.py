"""Whether a finished run that a server hands over is the run that this hospital took part in, by its own audit chain.

What is checked, each against what the hospital wrote down itself and what the authority certified:

1. Every file is the one that the server signed (``common/run/delivery.py``).
2. The server's chain is whole, is the server's, and ends in the line that was signed.
3. It records one run, on whose roster this hospital was, under terms that include all that this hospital agreed to.
4. Each step begins from the model of the step before, and the run ends with the last step's model.
5. Each round whose sum holds this hospital's vector is in its own chain, with the same terms, model, ε and signed view.
6. The model in the file is the one with which the run ends.
7. ``model.json`` says of it what the chain does: classes, thresholds, temperature, ε and the rest of
   :mod:`common.run.model_facts`. Its words on preparing an image are left to ``confide audit verify``, which builds the
   network for that; nothing here is computed from them.
8. The run's events, from which ``confide report`` is made, are those that the chain has the hash of, and say what it
   says (:mod:`common.run.told_run`). How good the model is, they alone say.

What it cannot check alone: rounds in which it did not take part. There the other hospitals' signatures count, which
``confide audit verify`` checks with the rest.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from common.audit.chain import AUDIT_FILE, Chain, read_chain
from common.audit.entries import Began, Centred, Contributed, Finished, Hash, JoinedRun, Stepped, Summed, Told
from common.audit.parties import SERVER_PARTY
from common.complaints import complaint
from common.config import RunDescription
from common.errors import AuditError, ConfigError, RunError
from common.run.delivery import MODEL_FILES, Delivery, chain_head, file_fact
from common.run.model_facts import ModelFacts, expected_facts, require_same
from common.run.round_terms import Purpose, RoundTerms
from common.run.told_run import Chained, check_told
from common.telemetry.events import EVENTS_FILE

_FLOAT_BYTES = 4
_MOST_HEAD_BYTES = 4 * 2**20
"""The most that names and shapes of tensors take in a file of them."""

_FLOAT32 = "F32"
"""The name that safetensors gives float32."""


@dataclass(frozen=True)
class Checked:
    """What was found to hold of a received run.

    Attributes:
        task: of the run.
        steps: of training.
        rounds: sums that hold this hospital's vector; each is in its own chain.
        last_step_seen: the newest step whose model this hospital was given in a round.
    """

    task: str
    steps: int
    rounds: int
    last_step_seen: int


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str


class _Card(BaseModel):
    """What of ``model.json`` says in which order the tensors make the flat model; the rest is for other readers."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    tensors: Annotated[tuple[_Tensor, ...], Field(min_length=1)]


class ReceivedFacts(ModelFacts):
    """What ``model.json`` says of the model, without its words for other readers; ``sha256`` is of its tensors."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sha256: Hash


@dataclass
class _Run:
    """The server's record of a run, as far as it has been followed."""

    descriptions: dict[str, RunDescription] = field(default_factory=dict)
    sums: dict[int, Summed] = field(default_factory=dict)
    models: dict[int, str] = field(default_factory=dict)
    first: str = ""
    """The initial model, from which a server that was killed before it kept the centre goes on."""
    step: int = 0
    trained: Summed | None = None
    finished: Finished | None = None
    description: RunDescription | None = None
    data_set: str = ""
    last_epsilon: dict[str, float] = field(default_factory=dict)
    summed: Summed | None = None
    told: Told | None = None
    task: str = ""
    rounds: int = 0


def check_received(folder: Path, delivery: Delivery, own: Chain, authority: x509.Certificate) -> Checked:
    """Check what lies in a folder; see the module.

    Args:
        folder: with the files that the delivery names.
        delivery: verified by :func:`common.run.delivery.read_delivery`.
        own: this hospital's chain, verified.
        authority: the consortium's.

    Raises:
        AuditError: something does not hold; the message says what, and with which line of which chain.
        OSError: a file cannot be read.
    """
    for name, fact in delivery.files.items():
        if file_fact(folder / name) != fact:
            raise AuditError(f"{name}: must be the file that the server signed, got another")
    content = (folder / AUDIT_FILE).read_bytes()
    server = read_chain(content, f"the server's {AUDIT_FILE}", authority)
    if server.party != SERVER_PARTY or chain_head(content) != delivery.chain_head:
        raise AuditError("the server's chain must be the server's and end in the line that was signed")
    run = _follow(server, own, delivery.run_id)
    if run.finished is None or run.finished.model_hash != delivery.model_hash:
        raise AuditError("the server's chain must end the run with the model that was signed")
    _require_size(delivery, run)
    if model_hash_of(folder) != delivery.model_hash:
        raise AuditError(f"{MODEL_FILES[0]}: must hold the model with which the run ended, got another")
    told = run.told
    if told is None or (told.length_bytes, told.events_hash) != _length_and_hash(delivery, EVENTS_FILE):
        raise AuditError(f"{EVENTS_FILE}: must hold what the server's chain has the hash of, got something else")
    chained = Chained(run.descriptions, run.data_set, run.sums, run.finished.steps)
    on_server = check_told(folder / EVENTS_FILE, chained)
    _check_card(folder, delivery, run, authority_on_server=on_server)
    given = {body.model_hash for body in _contributions(own, delivery.run_id)}
    seen = max((step for step, model in run.models.items() if model in given), default=0)
    return Checked(run.task, run.finished.steps, run.rounds, seen)


def _require_size(delivery: Delivery, run: _Run) -> None:
    """Refuse a model that is larger than the vectors that carried it; a tensor of it is read in one piece."""
    numbers = 0 if run.description is None else run.description.vector_length
    most, length = numbers * _FLOAT_BYTES + _MOST_HEAD_BYTES, delivery.files[MODEL_FILES[0]].length_bytes
    if length > most:
        raise AuditError(f"{MODEL_FILES[0]}: must have at most {most} bytes by the run's terms, got {length}")


def model_hash_of(folder: Path) -> str:
    """Return the hash of the model in a folder as audit chains have it, in hexadecimal; a tensor at a time.

    Raises:
        AuditError: the files are no model.
    """
    tensors, card = (folder / name for name in MODEL_FILES)
    digest = hashlib.sha256()
    try:
        order = _Card.model_validate_json(card.read_bytes()).tensors
        with safe_open(tensors, framework="np") as file:
            if set(file.keys()) != {tensor.name for tensor in order} or len(file.keys()) != len(order):
                raise AuditError(f"{MODEL_FILES[0]}: must hold the tensors that {MODEL_FILES[1]} lists, each once")
            for tensor in order:
                if file.get_slice(tensor.name).get_dtype() != _FLOAT32:
                    raise AuditError(f"{MODEL_FILES[0]}: must hold float32 tensors")
                digest.update(file.get_tensor(tensor.name).data)
    except (ValidationError, SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        raise AuditError(f"{MODEL_FILES[0]} and {MODEL_FILES[1]} must be a model, got {type(error).__name__}") from None
    return digest.hexdigest()


def facts_of(folder: Path) -> ReceivedFacts:
    """Return what ``model.json`` in a folder says of the model.

    Raises:
        AuditError: it does not say what a model is.
    """
    name = MODEL_FILES[1]
    try:
        return ReceivedFacts.model_validate_json((folder / name).read_bytes())
    except ValidationError as error:
        raise AuditError(f"{name}: must say what the model is; {complaint(error, 'the file')}") from None


def _check_card(folder: Path, delivery: Delivery, run: _Run, *, authority_on_server: bool) -> None:
    """Compare what ``model.json`` says of the model with what the chain records of the run."""
    name, card = MODEL_FILES[1], facts_of(folder)
    if card.sha256 != delivery.files[MODEL_FILES[0]].sha256:
        raise AuditError(f"{name}: must be of the {MODEL_FILES[0]} that came with it, got the SHA-256 of another")
    if run.description is None:
        raise AuditError(f"the server's {AUDIT_FILE} must record how the run began")
    expected = expected_facts(
        run.description,
        run.data_set,
        run.last_epsilon,
        run.finished,
        None,
        authority_on_server=authority_on_server,
    )
    require_same(card, expected, name)


def _length_and_hash(delivery: Delivery, name: str) -> tuple[int, str]:
    fact = delivery.files[name]
    return fact.length_bytes, fact.sha256


def _follow(server: Chain, own: Chain, run_id: str) -> _Run:
    """Follow the server's chain beside this hospital's own."""
    run, mine = _Run(), {body.round_number: body for body in _contributions(own, run_id)}
    for entry in server.entries:
        body, place = entry.body, f"the server's {AUDIT_FILE}, line {entry.sequence}"
        match body:
            case Began():
                _begin(run, body, own.party, run_id, place)
            case Summed():
                _require(body.run_id == run_id, place, "it must record one run, got another")
                _sum(run, body, own.party, mine, place)
            case Stepped():
                _step(run, body, place)
            case Centred():
                _centre(run, body, place)
            case Told():
                run.told = body
            case Finished():
                ends = (body.steps, body.model_hash) == (run.step, run.models.get(run.step))
                _require(ends, place, "the run must end with the model of its last step")
                run.finished = body
            case _:
                pass
    for entry in own.entries:
        if isinstance(entry.body, JoinedRun) and entry.body.run_id == run_id:
            place = f"this hospital's {AUDIT_FILE}, line {entry.sequence}"
            known = entry.body.config_hash in run.descriptions
            _require(known, place, "this hospital agreed to terms that the server lacks")
    return run


def _sum(run: _Run, body: Summed, hospital: str, mine: dict[int, Contributed], place: str) -> None:
    _require(body.model_hash == run.models.get(run.step), place, "the hospitals were given another model")
    _require(body.round_number not in run.sums, place, "its round gave a sum before")
    run.sums[body.round_number] = body
    if hospital in body.survivors:
        _check_own(body, mine.get(body.round_number), hospital, place)
        run.rounds += 1
    run.trained = body if body.train else run.trained
    run.summed = body


def _centre(run: _Run, body: Centred, place: str) -> None:
    """Take up the model that a mean of features is the centre of, which is the one that step 1 begins from."""
    mean = run.summed
    made = mean is not None and mean.round_number == body.round_number and _purpose(mean, place) is Purpose.MEAN
    _require(made and run.step == 0, place, "a centre must follow the sum that gave it, before step 1")
    run.models[0], run.summed = body.model_hash, None


def _purpose(summed: Summed, place: str) -> Purpose:
    try:
        return RoundTerms.decode(bytes.fromhex(summed.terms)).purpose
    except RunError as error:
        raise AuditError(f"{place}: {error}") from None


def _step(run: _Run, body: Stepped, place: str) -> None:
    made = run.trained is not None and run.trained.round_number == body.round_number
    _require(made and body.step == run.step + 1, place, "a step must follow the sum that gave it")
    run.last_epsilon = run.trained.epsilon if run.trained is not None else {}
    run.step, run.trained = body.step, None
    run.models[body.step] = body.model_hash


def _begin(run: _Run, body: Began, hospital: str, run_id: str, place: str) -> None:
    try:
        description = RunDescription.from_json(body.description.encode())
    except ConfigError as error:
        raise AuditError(f"{place}: {error}") from None
    _require(body.run_id == description.run_id == run_id, place, "it must record one run, got another")
    if run.description is not None:
        members = {key: getattr(description, key) for key in ("roster", "member_list", "vector_length")}
        same = run.description.model_copy(update=members) == description
        _require(same, place, "a run must go on under its own terms, got others")
        made = run.models.get(body.step) == body.model_hash or (body.step, body.model_hash) == (0, run.first)
        _require(made, place, "it goes on from a model that no step made")
    else:
        _require(body.step == 0, place, "a run must begin with step 0")
        run.first, run.data_set = body.model_hash, body.data_set
    run.models[body.step] = body.model_hash
    run.description = description
    if hospital in description.roster:
        run.task = description.experiment.task
    run.descriptions[description.hash().hex()] = description
    run.step, run.trained, run.summed, run.finished = body.step, None, None, None


def _check_own(summed: Summed, mine: Contributed | None, hospital: str, place: str) -> None:
    _require(mine is not None, place, f"{hospital} is in a sum for which it has sent no vector")
    if mine is None:
        return
    same = (mine.terms, mine.model_hash, mine.train) == (summed.terms, summed.model_hash, summed.train)
    _require(same, place, f"{hospital} was asked for something else in round {summed.round_number}")
    _require(mine.epsilon == summed.epsilon.get(hospital), place, f"another ε is recorded than {hospital} reported")
    view = summed.views.get(hospital)
    _require(view is None or view == mine.view, place, f"another view is recorded than {hospital} signed")


def _contributions(own: Chain, run_id: str) -> Iterator[Contributed]:
    for entry in own.entries:
        if isinstance(entry.body, Contributed) and entry.body.run_id == run_id:
            yield entry.body


def _require(holds: bool, place: str, otherwise: str) -> None:
    if not holds:
        raise AuditError(f"{place}: {otherwise}")
