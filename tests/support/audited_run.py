"""A run of three hospitals and two steps as its audit chains tell it, with the model it made; nothing is trained."""

import datetime
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.entries import (
    Began,
    Centred,
    Contributed,
    Finished,
    JoinedRun,
    OpenedSum,
    Refused,
    SignedSurvivors,
    Stepped,
    Summed,
)
from common.audit.parties import Writer
from common.config import Config, RunDescription
from common.config import replace as replaced
from common.files import write_private
from common.identity.certificates import (
    CertificateAuthority,
    HospitalIdentity,
    certificate_pem,
    make_authority,
    make_tls_certificate,
    request_hospital_certificate,
    sign_hospital_certificate,
    verify_roster,
)
from common.identity.members import sign_members
from common.run.flat_model import hash_model
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import describe, evaluation_claim, protocol_parameters
from common.secagg import consistency_check, masked_input
from common.secagg import messages as secagg
from common.secagg.binding import cohort_hash, request_hash, survivors_hash
from common.secagg.messages import MaskedInput, SurvivorSignature
from common.secagg.parameters import RunParameters
from common.telemetry.events import EVENTS_FILE, Evaluated, Event, RoundDone, RunFinished, RunStarted
from deploy.audit.record import RunRecord
from deploy.audit.verify import expected_facts
from deploy.results.history import RunHistory
from deploy.results.model_file import save_model
from deploy.results.outputs import METRICS_FILE, SUMMARY_FILE, RunOutputs, summary
from server.audit import recording_events
from server.events import EventLog
from server.initial_model import initial_model

NAMES = ("hospital-1", "hospital-2", "hospital-3")
RUN_ID = "0123456789abcdef0123456789abcdef"
EPSILON, BUDGET = 1.5, 10.0


@dataclass(frozen=True)
class AuditedRun:
    """Where the files of a whole run lie, and the open chains, for tests that lie in one."""

    folder: Path
    authority: CertificateAuthority
    server: AuditChain
    hospitals: dict[str, AuditChain]
    description: RunDescription
    sign: dict[str, Ed25519PrivateKey]

    @property
    def authority_file(self) -> Path:
        return self.folder / "consortium" / "server" / "ca.pem"

    def chain_file(self, name: str) -> Path:
        return self.folder / "consortium" / name / AUDIT_FILE

    def files(self) -> list[Path]:
        """Return every file that the verification covers."""
        hospitals = [self.chain_file(name) for name in NAMES]
        others = ("model.safetensors", "model.json", EVENTS_FILE, METRICS_FILE, SUMMARY_FILE)
        return [self.folder / AUDIT_FILE, *hospitals, self.authority_file, *(self.folder / name for name in others)]

    def signature(self, name: str, round_number: int, terms: RoundTerms, survivors: tuple[str, ...]) -> bytes:
        """Return a hospital's signature over a round, as it travels."""
        parameters = self.parameters
        unsigned = SurvivorSignature(
            RUN_ID,
            round_number,
            name,
            parameters.config_hash,
            request_hash(terms.encode()),
            bytes(32),
            survivors_hash(survivors),
            b"",
        )
        signed = self.sign[name].sign(consistency_check.signed_part(parameters, unsigned))
        return secagg.encode(replace(unsigned, signature=signed))

    @property
    def parameters(self) -> RunParameters:
        """Return the run as the protocol sees it."""
        keys = {hospital: key.public_key().public_bytes_raw() for hospital, key in self.sign.items()}
        return protocol_parameters(self.description, keys, 3)

    def view(
        self,
        name: str,
        round_number: int,
        terms: RoundTerms,
        cohort: tuple[str, ...] = NAMES,
        directory_hash: bytes = bytes(32),
        vector: bytes = b"",
    ) -> bytes:
        """Return a hospital's signed view of a round, as it travels."""
        parameters = self.parameters
        unsigned = MaskedInput(
            RUN_ID,
            round_number,
            name,
            parameters.config_hash,
            directory_hash,
            cohort_hash(directory_hash, cohort),
            request_hash(terms.encode()),
            parameters.modulus_bits,
            parameters.vector_length,
            (vector or name.encode()).ljust(32),
            b"",
            b"",
        )
        signed = self.sign[name].sign(masked_input.signed_part(parameters, unsigned))
        return secagg.encode(replace(unsigned, signature=signed))

    def sum_up(
        self,
        round_number: int,
        model: bytes,
        *,
        train: bool,
        record_it: bool = True,
        full: bool = True,
        terms: RoundTerms | None = None,
        epsilon: float = EPSILON,
    ) -> None:
        """Write what one round leaves in everybody's chain; ``full`` where nobody was missing."""
        signatures, views, terms = {}, {}, terms or terms_of(model, train=train)
        for name, chain in self.hospitals.items():
            chain.append(
                Contributed(
                    run_id=RUN_ID, round_number=round_number, train=train, model_hash=model.hex(),
                    terms=terms.encode().hex(), epsilon=epsilon, budget=BUDGET, ledger=f"{round_number}:{'0' * 64}",
                    view=self.view(name, round_number, terms).hex(),
                )
            )  # fmt: skip
            if full:
                views[name] = self.view(name, round_number, terms).hex()
                chain.append(OpenedSum(run_id=RUN_ID, round_number=round_number, cohort=NAMES))
                continue
            signatures[name] = self.signature(name, round_number, terms, NAMES).hex()
            chain.append(
                SignedSurvivors(run_id=RUN_ID, round_number=round_number, survivors=NAMES, signature=signatures[name])
            )
        if record_it:
            self.server.append(
                Summed(
                    run_id=RUN_ID, round_number=round_number, train=train, model_hash=model.hex(),
                    terms=terms.encode().hex(), survivors=NAMES, signatures=signatures, views=views,
                    epsilon=dict.fromkeys(NAMES, epsilon),
                )
            )  # fmt: skip


def terms_of(model: bytes, *, train: bool = True) -> RoundTerms:
    """Return the terms of a round that begins from a model with this hash."""
    purpose = Purpose.TRAIN if train else Purpose.EVALUATE
    return RoundTerms(purpose=purpose, model_hash=model, fewest_survivors=0)


def server_writer(authority: CertificateAuthority, now: datetime.datetime) -> Writer:
    """Return a server that writes with a TLS key certified by ``authority``."""
    return Writer(*make_tls_certificate(authority, ("localhost",), now, datetime.timedelta(days=1)))


def audited_run(folder: Path, config: Config | None = None, *, authority_on_server: bool = False) -> AuditedRun:
    """Write the run into ``folder``."""
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("Test consortium", now)
    identities = {name: _identity(authority, name, now) for name in NAMES}
    roster = {name: certificate_pem(identity.certificate).decode() for name, identity in identities.items()}
    members = sign_members(authority, verify_roster(roster, authority.certificate), 1, now)
    config = replaced(config or Config(), experiment={"num_clients": 3, "rounds": 2})
    description = describe(config, RUN_ID, ("normal", "pneumonia"), 1, roster, member_list=members.decode())
    run = AuditedRun(
        folder,
        authority,
        AuditChain(folder / AUDIT_FILE, server_writer(authority, now)),
        {
            name: AuditChain(
                folder / "consortium" / name / AUDIT_FILE, Writer(identities[name].certificate, identities[name].key)
            )
            for name in NAMES
        },
        description,
        {name: identity.key for name, identity in identities.items()},
    )
    write_private(run.authority_file, certificate_pem(authority.certificate))
    _tell(run, authority_on_server)
    return run


def _tell(run: AuditedRun, authority_on_server: bool) -> None:
    model = initial_model(run.description)
    run.server.append(
        Began(
            run_id=RUN_ID, description=run.description.canonical_json().decode(), data_set="a test", step=0,
            model_hash=hash_model(model).hex(),
        )
    )  # fmt: skip
    for chain in run.hospitals.values():
        chain.append(JoinedRun(run_id=RUN_ID, config_hash=run.description.hash().hex()))
    numbers = itertools.count(1)
    if run.description.privacy.mean_share:
        model = _centred(run, model, next(numbers))
    for step in (1, 2):
        number = next(numbers)
        run.sum_up(number, hash_model(model), train=True, full=step == 1)
        model = model + np.float32(0.01)
        run.server.append(Stepped(run_id=RUN_ID, round_number=number, step=step, model_hash=hash_model(model).hex()))
    run.sum_up(next(numbers), hash_model(model), train=False)
    run.hospitals[NAMES[0]].append(
        Refused(
            run_id=RUN_ID, round_number=next(numbers), hospital=NAMES[0], code="budget_exceeded",
            reason="nothing is left",
        )
    )  # fmt: skip
    _tell_figures(
        run,
        Finished(run_id=RUN_ID, reason="completed", steps=2, model_hash=hash_model(model).hex(), threshold=0.5),
        authority_on_server,
    )
    keys = {name: key.public_key().public_bytes_raw() for name, key in run.sign.items()}
    record = RunRecord(run.description, protocol_parameters(run.description, keys, 3), "a test")
    record.last_epsilon = dict.fromkeys(NAMES, EPSILON)
    facts = expected_facts(record, None, authority_on_server=authority_on_server)
    save_model(run.folder, model, facts.model_copy(update={"threshold": 0.5}))


def _centred(run: AuditedRun, model: npt.NDArray[np.float32], number: int) -> npt.NDArray[np.float32]:
    """Write the round that asks for the mean of features; returns the model with its centre."""
    terms = RoundTerms(purpose=Purpose.MEAN, model_hash=hash_model(model), fewest_survivors=0)
    run.sum_up(number, hash_model(model), train=False, terms=terms)
    model = model + np.float32(0.001)
    run.server.append(Centred(run_id=RUN_ID, round_number=number, model_hash=hash_model(model).hex()))
    return model


def _tell_figures(run: AuditedRun, finished: Finished, authority_on_server: bool) -> None:
    """Write the run's events as the server does, and what the command makes of them."""
    terms, before = run.description, int(run.description.privacy.mean_share > 0)
    config = Config(
        experiment=terms.experiment, model=terms.model, training=terms.training, aggregation=terms.aggregation,
        graph=terms.graph, privacy=terms.privacy, evaluation=terms.evaluation,
    )  # fmt: skip
    started = RunStarted(
        time=1.0, run_id=RUN_ID, data_set="a test", task=terms.experiment.task, rounds=2, hospitals=NAMES,
        config=config, config_hash=terms.hash().hex(), terms=terms.task, authority_on_server=authority_on_server,
    )  # fmt: skip
    steps = [
        RoundDone(
            time=1.0 + step, round=step + before, step=step,
            accuracy=0.75, precision=0.75, recall=0.75, f1=0.75, auc=0.8, loss=0.5, epsilon=EPSILON,
            epsilon_spent=dict.fromkeys(NAMES, EPSILON),
            epsilon_budget=dict.fromkeys(NAMES, BUDGET), hospitals=3, seconds=1.0, upload_bytes=300,
            part="validation", intervals={"accuracy": (0.5, 0.9), "auc": (0.6, 0.95)}, evaluation_epsilon=0.5 * step,
        )
        for step in (1, 2)
    ]  # fmt: skip
    tested = Evaluated(
        time=3.5, step=2, exact=False, records=8, accuracy=0.75, precision=0.75, recall=0.75, f1=0.75, auc=0.8,
        loss=0.5, threshold=0.5, confusion=((3, 1), (1, 3)),
        intervals={"accuracy": (0.5, 0.9)}, noise={"accuracy": 0.01},
        epsilon=1.0, claim=evaluation_claim(terms, 1.0),
    )  # fmt: skip
    events: list[Event] = [started, *steps, tested, RunFinished(time=4.0, reason="completed", rounds_done=2)]
    outputs = RunOutputs(run.folder)
    with EventLog(run.folder) as log:
        tell = recording_events(log, run.server.append, RUN_ID)
        for event in events:
            if isinstance(event, RunFinished):
                run.server.append(finished)
            tell(event)
            outputs.add(event)
    content = json.dumps(summary(RunHistory.of(events)), indent=2, allow_nan=False) + "\n"
    (run.folder / SUMMARY_FILE).write_text(content, encoding="utf-8")


def _identity(authority: CertificateAuthority, name: str, now: datetime.datetime) -> HospitalIdentity:
    key = Ed25519PrivateKey.generate()
    request = request_hospital_certificate(name, key)
    return HospitalIdentity(
        name, sign_hospital_certificate(authority, request, name, now, datetime.timedelta(days=1)), key
    )
