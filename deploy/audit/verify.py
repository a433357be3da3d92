"""``confide audit verify RUN``: check offline that the audit chains agree, and that the model is the one they made.

Trusted is one file, the consortium authority's certificate. From it follow the writers' keys, from those the chains,
and from the chains the model: each step begins where the one before it ended, each sum has the signatures of at least t
survivors over its list of survivors, or those of everyone in the cohort where nobody was missing, and each survivor's
own chain records the same round with the same model. The run's
events are those that the server's chain has the hash of, and its figures what they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from numpy.typing import NDArray

from common.audit.chain import AUDIT_FILE, Chain, read_chain
from common.audit.entries import Contributed, JoinedRun, Named, OpenedSum, PassedOver, Refused, SignedSurvivors, Summed
from common.errors import AuditError, IdentityError, RunError
from common.identity.certificates import certificate_pem, fingerprint, load_certificate
from common.models.first_model import FIRST_MODEL_FILE, FirstModel
from common.run.delivery import AUTHORITY_FILE as CERTIFICATE_FILE
from common.run.flat_model import hash_model
from common.run.model_facts import ModelFacts, require_same
from common.run.model_facts import expected_facts as facts_by_chain
from common.run.words import AUTHORITY_ON_SERVER
from common.secagg.binding import cohort_hash
from common.telemetry.events import EVENTS_FILE
from deploy.audit.figures import check_figures
from deploy.audit.record import RunRecord, check_terms, read_record
from deploy.audit.sums import Commitments, check_sums
from deploy.command import FILE, authority_option, chain_option, command
from deploy.results.history import RunHistory
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, load_model
from deploy.results.outputs import METRICS_FILE, SUMMARY_FILE
from deploy.results.preparation import preparation_of
from server.initial_model import has_pytorch, initial_model

AUTHORITY_FILE = Path("consortium") / "server" / "ca.pem"
"""Where the authority's certificate lies inside a demo's folder."""


@dataclass(frozen=True)
class Verdict:
    """What was found to hold.

    Attributes:
        authority: fingerprint of the certificate that all trust comes from.
        hospitals: whose chains were there and agree.
        without_chain: hospitals on the roster whose chain was not given.
        steps: that the chains account for.
        sums: rounds that gave one.
        refusals: entries of either side.
        unfinished: rounds whose survivors a hospital signed, or whose sum it helped to open, and the server has no sum
            for.
        has_model: whether a model was there to check.
        has_figures: whether the run's events were there to check, with the files that are made of them.
        is_complete: whether the run ended.
        made_first_model: whether the first model was made again from the run's seed; else it is taken as the run's
            folder has it.
        proved: how many sums were found to be what hospitals committed to; None in a run that does not prove them.
        passed: sums that a hospital helped to open, and was given no model of.
        named: who was found to have cheated, in which round and how, and by whom; one line each.
    """

    authority: str
    hospitals: tuple[str, ...]
    without_chain: tuple[str, ...]
    steps: int
    sums: int
    refusals: int
    unfinished: tuple[int, ...]
    has_model: bool
    has_figures: bool
    is_complete: bool
    made_first_model: bool = True
    proved: int | None = None
    passed: int = 0
    named: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """Return the verdict for a person."""
        told = [
            f"authority         {self.authority}",
            f"server            {self.sums} sums, {self.steps} steps, {'ended' if self.is_complete else 'NOT ENDED'}",
            f"hospitals         {', '.join(self.hospitals) or 'none'}: each chain agrees with the server's",
            f"refusals          {self.refusals}",
            f"model             {'the one the rounds produced' if self.has_model else 'none here to check'}",
        ]
        if self.has_figures:
            told.append(f"figures           {EVENTS_FILE}, {METRICS_FILE} and {SUMMARY_FILE} match the server's chain")
        else:
            told.append("figures           not checked: no events here, or the server's chain does not cover them")
        if self.proved is not None:
            passed = f"; {self.passed} times a hospital opened a sum that no model was made of" if self.passed else ""
            told.append(f"proved sums       {self.proved}: each model follows from what hospitals committed to{passed}")
        told += [f"cheated           {line}" for line in self.named]
        if not self.made_first_model:
            told.append("first model       as the run's folder has it; not made again from its seed, without PyTorch")
        if self.without_chain:
            told.append(f"not checked       {', '.join(self.without_chain)}: no chain given (--chain FILE)")
        if self.unfinished:
            rounds = ", ".join(map(str, self.unfinished))
            told.append(f"without a sum     rounds {rounds}: signed or opened by hospitals, none on the server's side")
        whole = self.is_complete and self.has_model and self.has_figures
        whole = whole and self.made_first_model and not self.without_chain and not self.unfinished
        return (*told, "verified" if whole else "verified as far as it goes: see above")


@command(
    "verify",
    "Check offline that the audit chains agree, and that the model is the one they made. Trusted is one file, the "
    "consortium authority's certificate.\n\nRUN is the run's folder, with the server's chain and the model.",
    "./confide audit verify runs/0123456789ab",
)
@click.argument("run", type=FILE)
@chain_option()
@authority_option()
def main(run: Path, chain: tuple[Path, ...], authority: Path | None) -> int:
    """Verify; returns 0 when everything agrees."""
    for line in verify(run, chain or find_chains(run), authority or find_authority(run)).lines():
        print(line)
    return 0


def find_chains(run: Path) -> list[Path]:
    """Return the chains of a demo's hospitals; or the hospital's own, of a run that a hospital has been given."""
    own = run.absolute().parent.parent / AUDIT_FILE
    return sorted((run / "consortium").glob(f"*/{AUDIT_FILE}")) or ([own] if own.exists() else [])


def find_authority(run: Path) -> Path:
    """Return the authority's certificate: that of the state folder around the run, a demo's, or that beside the run.

    What a hospital already trusts goes before what came with a run.
    """
    around = run.absolute().parent.parent / CERTIFICATE_FILE
    return next((path for path in (around, run / AUTHORITY_FILE) if path.exists()), run / CERTIFICATE_FILE)


def verify(run: Path, chains: Sequence[Path], authority_file: Path) -> Verdict:
    """Check the server's chain, the hospitals' and the model against each other.

    Args:
        run: folder with the server's chain and, if the run made one, the model.
        chains: of hospitals.
        authority_file: the one file that is trusted.

    Raises:
        AuditError: something does not hold; the message names the file and the line.
    """
    authority = _authority(authority_file)
    first_model = None if has_pytorch() else _kept_first_model(run)
    server = _chain(run / AUDIT_FILE, authority)
    record = read_record(server, AUDIT_FILE, authority, None if first_model is None else hash_model(first_model).hex())
    commitments = _commitments(run, server, record, first_model)
    hospitals, unfinished, refusals, passed = [], set[int](), 0, 0
    read: list[Chain] = []
    for path in chains:
        chain, name = _chain(path, authority), f"{path.parent.name}/{path.name}"
        if path.parent.name in record.description.roster and path.parent.name != chain.party:
            raise AuditError(f"{name}: must be the chain of {path.parent.name}, got that of {chain.party}")
        if chain.party in hospitals:
            raise AuditError(f"{name}: must be another hospital's chain, got that of {chain.party} twice")
        unfinished |= _agree(chain, name, record)
        passed += _check_commitments(chain, name, record, commitments or {})
        refusals += sum(isinstance(entry.body, Refused) for entry in chain.entries)
        hospitals.append(chain.party)
        read.append(chain)
    has_figures = (run / EVENTS_FILE).exists() and bool(record.told)
    if has_figures:
        check_figures(run, record)
    has_model = (run / CARD_FILE).exists() or (run / TENSORS_FILE).exists()
    if has_model:
        _check_model(run, record)
    return Verdict(
        authority=fingerprint(authority),
        hospitals=tuple(hospitals),
        without_chain=tuple(sorted(set(record.description.roster) - set(hospitals))),
        steps=max(record.models),
        sums=len(record.sums),
        refusals=refusals,
        unfinished=tuple(sorted(unfinished)),
        has_model=has_model,
        has_figures=has_figures,
        is_complete=record.finished is not None and (record.is_told_to_its_end or not record.told),
        made_first_model=first_model is None,
        proved=None if commitments is None else len(commitments),
        passed=passed,
        named=_named([server, *read], record.description.run_id),
    )


def _named(chains: Sequence[Chain], run_id: str) -> tuple[str, ...]:
    """Return who was found to have cheated; whoever was shown the same must have found the same.

    Raises:
        AuditError: two parties found something else in the same evidence.
    """
    found: dict[tuple[int, str], dict[str, set[tuple[str, str]]]] = {}
    for chain in chains:
        for entry in chain.entries:
            body = entry.body
            if isinstance(body, Named) and body.run_id == run_id:
                by_party = found.setdefault((body.round_number, body.evidence), {})
                by_party.setdefault(chain.party, set()).add((body.hospital, body.fault))
    lines = []
    for (number, _), by_party in sorted(found.items()):
        verdicts = list(by_party.values())
        if any(verdict != verdicts[0] for verdict in verdicts):
            parties = ", ".join(sorted(by_party))
            raise AuditError(
                f"round {number}: {parties} must name the same hospitals from the same evidence, and do not"
            )
        for hospital, fault in sorted(verdicts[0]):
            lines.append(f"{hospital}, in round {number} ({fault}): found by {', '.join(sorted(by_party))}")
    return tuple(lines)


def _commitments(run: Path, server: Chain, record: RunRecord, kept: NDArray[np.float32] | None) -> Commitments | None:
    """Return what the hospitals in each proved sum committed to; None in a run that does not prove its sums."""
    if not record.description.aggregation.proved_sums:
        return None
    first = initial_model(record.description) if kept is None else kept
    return check_sums(run, server.entries, AUDIT_FILE, record, first)


def _check_commitments(chain: Chain, name: str, record: RunRecord, commitments: Commitments) -> int:
    """Compare what a hospital signed with what is in the proved sums; returns how many sums it passed over."""
    passed = 0
    for entry in chain.entries:
        body, place = entry.body, f"{name}, line {entry.sequence}"
        if getattr(body, "run_id", None) != record.description.run_id:
            continue
        if isinstance(body, PassedOver):
            passed += 1
        if isinstance(body, Contributed) and body.view is not None:
            shown = commitments.get(body.round_number, {}).get(chain.party)
            view = record.verify_view(chain.party, bytes.fromhex(body.view), body.round_number, body.terms, place)
            if shown is not None and shown != view.commitment:
                raise AuditError(f"{place}: {chain.party} committed to something else than the proved sum holds")
    return passed


def _kept_first_model(run: Path) -> NDArray[np.float32]:
    """Return the first model in a run's folder, where none can be made without PyTorch."""
    try:
        return FirstModel.read(run / FIRST_MODEL_FILE).flat
    except RunError as error:
        raise AuditError(
            f"PyTorch must be installed to make the run's first model again, or {FIRST_MODEL_FILE} must lie in the "
            f"run's folder: {error}"
        ) from None


def _authority(path: Path) -> x509.Certificate:
    try:
        certificate = load_certificate(path)
        certificate.verify_directly_issued_by(certificate)
    except (IdentityError, InvalidSignature, TypeError, ValueError) as error:
        raise AuditError(f"{path.name}: must be the consortium authority's own certificate; {error}") from None
    if certificate_pem(certificate) != path.read_bytes():
        raise AuditError(f"{path.name}: must be a certificate in canonical PEM and nothing else")
    # The signature does not cover how many bits of itself are unused, and one that ends in zeros reads the same.
    if not certificate.public_bytes(Encoding.DER).endswith(b"\x00" + certificate.signature):
        raise AuditError(f"{path.name}: must be a certificate in canonical DER; it was changed")
    return certificate


def _chain(path: Path, authority: x509.Certificate) -> Chain:
    name = f"{path.parent.name}/{path.name}"
    try:
        return read_chain(path.read_bytes(), name, authority)
    except OSError as error:
        raise AuditError(f"{name}: must be readable: {error.strerror}") from None


def _agree(chain: Chain, name: str, record: RunRecord) -> set[int]:
    """Compare a hospital's chain with the server's record; returns the rounds it signed or opened that gave no sum."""
    hospital, run_id = chain.party, record.description.run_id
    keys = [key.public_bytes_raw() for key in chain.keys if isinstance(key, Ed25519PublicKey)]
    if not any(terms.roster.get(hospital) in keys for terms in record.terms.values()):
        raise AuditError(f"{name}: must be of a hospital on the run's roster and signed by its key there")
    contributed: dict[int, Contributed] = {}
    signed: dict[int, SignedSurvivors] = {}
    opened: set[int] = set()
    for entry in chain.entries:
        body, place = entry.body, f"{name}, line {entry.sequence}"
        if getattr(body, "run_id", None) != run_id:
            continue
        if isinstance(body, JoinedRun) and bytes.fromhex(body.config_hash) not in record.terms:
            raise AuditError(f"{place}: {hospital} agreed to other terms than the server recorded")
        match body:
            case Contributed():
                _check_contribution(body, contributed, place, record, hospital)
            case SignedSurvivors():
                _check_signed(body, contributed, place, record, hospital)
                signed[body.round_number] = body
            case OpenedSum():
                _check_opened(body, contributed, place, record, hospital)
                opened.add(body.round_number)
    _require_one_ending(signed.keys() & opened, name)
    for number, summed in record.sums.items():
        if hospital in summed.survivors:
            _check_survivor(hospital, summed, contributed.get(number), signed.get(number), name)
    return (signed.keys() | opened) - record.sums.keys()


def _require_one_ending(both: set[int], name: str) -> None:
    for number in sorted(both):
        raise AuditError(f"{name}: survivors of round {number} were signed, and its sum over everybody was opened")


def _check_contribution(
    body: Contributed, contributed: dict[int, Contributed], place: str, record: RunRecord, hospital: str
) -> None:
    if body.round_number in contributed:
        raise AuditError(f"{place}: a second vector for round {body.round_number}")
    check_terms(body, place)
    if body.view is not None:
        record.verify_view(hospital, bytes.fromhex(body.view), body.round_number, body.terms, place)
    if record.is_private:
        if body.epsilon is None or body.budget is None or body.ledger is None:
            raise AuditError(f"{place}: a private run's vector must come with ε, budget and ledger line")
        if body.train and body.epsilon > body.budget:
            raise AuditError(f"{place}: ε {body.epsilon:g} is above the budget {body.budget:g}")
    contributed[body.round_number] = body


def _check_signed(
    body: SignedSurvivors, contributed: dict[int, Contributed], place: str, record: RunRecord, hospital: str
) -> None:
    own = contributed.get(body.round_number)
    if own is None:
        raise AuditError(f"{place}: {hospital} signed round {body.round_number} without having sent a vector")
    encoded = bytes.fromhex(body.signature)
    record.verify_signature(hospital, encoded, body.round_number, body.survivors, own.terms, place)
    summed = record.sums.get(body.round_number)
    if summed is not None and summed.survivors != body.survivors:
        raise AuditError(f"{place}: {hospital} signed other survivors than the server recorded")


def _check_opened(
    body: OpenedSum, contributed: dict[int, Contributed], place: str, record: RunRecord, hospital: str
) -> None:
    number, own = body.round_number, contributed.get(body.round_number)
    if own is None or own.view is None:
        raise AuditError(f"{place}: {hospital} opened round {number} without having sent a masked vector")
    view = record.verify_view(hospital, bytes.fromhex(own.view), number, own.terms, place)
    if view.cohort_hash != cohort_hash(view.directory_hash, body.cohort):
        raise AuditError(f"{place}: {hospital} opened round {number} for another cohort than it masked for")
    summed = record.sums.get(number)
    if summed is not None and (summed.survivors != body.cohort or not summed.views):
        raise AuditError(f"{place}: {hospital} opened the sum over everybody, the server recorded another")


def _check_survivor(
    hospital: str, summed: Summed, own: Contributed | None, signed: SignedSurvivors | None, name: str
) -> None:
    number = summed.round_number
    if own is None:
        raise AuditError(f"{name}: must record round {number}, whose sum holds its vector; it was cut short")
    if own.terms != summed.terms:
        raise AuditError(f"{name}: round {number} asked for something else than the server recorded")
    if own.epsilon != summed.epsilon.get(hospital):
        raise AuditError(f"{name}: round {number}: ε differs from what the server recorded")
    view = summed.views.get(hospital)
    if view is not None and own.view != view:
        raise AuditError(f"{name}: round {number}: the server holds a signed view that is not in this chain")
    sent = summed.signatures.get(hospital)  # A hospital that vanished after its vector was summed has none.
    if sent is not None and (signed is None or signed.signature != sent):
        raise AuditError(f"{name}: round {number}: the server holds a signature that is not in this chain")


def _check_model(run: Path, record: RunRecord) -> None:
    try:
        model, card = load_model(run)
    except RunError as error:
        raise AuditError(str(error)) from None
    if (card.model_dump_json(indent=2) + "\n").encode() != (run / CARD_FILE).read_bytes():
        raise AuditError(f"{CARD_FILE}: must be in canonical form; it was changed")
    if hash_model(model).hex() != record.models[max(record.models)]:
        raise AuditError(f"{TENSORS_FILE}: must hold the model that the last step made, got another")
    # Where the authority's key lies is in the events alone, which were compared with the chain before this.
    told = (run / EVENTS_FILE).exists() and bool(record.told)
    on_server = RunHistory.read(run).started.authority_on_server if told else AUTHORITY_ON_SERVER in card.caveats
    require_same(card, expected_facts(record, card, authority_on_server=on_server), CARD_FILE)
    if not has_pytorch():
        return  # What is done around a network takes the network to tell; the verdict says what was not made here.
    prepared = preparation_of(card.architecture, len(card.classes), card.channels, card.image_size)
    # Where this machine lacks the weights of a model's features, it cannot tell what they are.
    is_known = prepared.complete or not card.preparation.complete
    if is_known and card.preparation != prepared:
        raise AuditError(f"{CARD_FILE}: preparation must be what is done around {card.architecture}; it was changed")


def expected_facts(record: RunRecord, card: ModelFacts | None, *, authority_on_server: bool = False) -> ModelFacts:
    """Return what ``model.json`` must say of the record's last model.

    Args:
        record: of the run.
        card: what decides in a run that has not ended: only the end is recorded with thresholds and a calibration.
        authority_on_server: as the run's events say.
    """
    return facts_by_chain(
        record.description,
        record.data_set,
        record.last_epsilon,
        record.finished,
        card,
        authority_on_server=authority_on_server,
    )
