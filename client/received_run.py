"""Whether a finished run that a server hands over is the run that this hospital took part in, by its own audit chain.

What is checked, each against what the hospital wrote down itself and what the authority certified:

1. Every file is the one that the server signed (``common/run/delivery.py``).
2. The server's chain is whole, is the server's, and ends in the line that was signed.
3. It records one run, on whose roster this hospital was, under terms that include all that this hospital agreed to.
4. Each step begins from the model of the step before, and the run ends with the last step's model.
5. Each round whose sum holds this hospital's vector is in its own chain, with the same terms, model, ε and signed view.
6. The model in the file is the one with which the run ends.

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
from common.audit.entries import Began, Centred, Contributed, Finished, JoinedRun, Stepped, Summed
from common.audit.parties import SERVER_PARTY
from common.config import RunDescription
from common.errors import AuditError, ConfigError
from common.run.delivery import MODEL_FILES, Delivery, chain_head, file_fact

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


@dataclass
class _Run:
    """The server's record of a run, as far as it has been followed."""

    terms: set[str] = field(default_factory=set)
    models: dict[int, str] = field(default_factory=dict)
    step: int = 0
    trained: Summed | None = None
    summed: Summed | None = None
    finished: Finished | None = None
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
    if model_hash_of(folder) != delivery.model_hash:
        raise AuditError(f"{MODEL_FILES[0]}: must hold the model with which the run ended, got another")
    given = {body.model_hash for body in _contributions(own, delivery.run_id)}
    seen = max((step for step, model in run.models.items() if model in given), default=0)
    return Checked(run.task, run.finished.steps, run.rounds, seen)


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
                _require(body.model_hash == run.models.get(run.step), place, "the hospitals were given another model")
                if own.party in body.survivors:
                    _check_own(body, mine.get(body.round_number), own.party, place)
                    run.rounds += 1
                run.trained = body if body.train else run.trained
                run.summed = body
            case Centred():
                _centre(run, body, place)
            case Stepped():
                _step(run, body, place)
            case Finished():
                ends = (body.steps, body.model_hash) == (run.step, run.models.get(run.step))
                _require(ends, place, "the run must end with the model of its last step")
                run.finished = body
            case _:
                pass
    for entry in own.entries:
        if isinstance(entry.body, JoinedRun) and entry.body.run_id == run_id:
            place = f"this hospital's {AUDIT_FILE}, line {entry.sequence}"
            _require(entry.body.config_hash in run.terms, place, "this hospital agreed to terms that the server lacks")
    return run


def _centre(run: _Run, body: Centred, place: str) -> None:
    """Take up the model that a mean of features is the centre of, which is the one that step 1 begins from."""
    made = run.summed is not None and run.summed.round_number == body.round_number
    _require(made and run.step == 0, place, "a centre must follow the sum that gave it, before step 1")
    run.models[0] = body.model_hash


def _step(run: _Run, body: Stepped, place: str) -> None:
    made = run.trained is not None and run.trained.round_number == body.round_number
    _require(made and body.step == run.step + 1, place, "a step must follow the sum that gave it")
    run.step, run.trained = body.step, None
    run.models[body.step] = body.model_hash


def _begin(run: _Run, body: Began, hospital: str, run_id: str, place: str) -> None:
    try:
        description = RunDescription.from_json(body.description.encode())
    except ConfigError as error:
        raise AuditError(f"{place}: {error}") from None
    _require(body.run_id == description.run_id == run_id, place, "it must record one run, got another")
    if run.terms:
        _require(run.models.get(body.step) == body.model_hash, place, "it goes on from a model that no step made")
    else:
        _require(body.step == 0, place, "a run must begin with step 0")
        run.models[0] = body.model_hash
    if hospital in description.roster:
        run.task = description.experiment.task
    run.terms.add(description.hash().hex())
    run.step, run.trained, run.finished = body.step, None, None


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
