"""One example of everything that lies on a disk or travels between releases, in the encoding of this release.

``python -m tests.support.released_formats`` writes them into ``tests/vectors/formats/VERSION``, once for each release;
afterwards the bytes never change. A later release keeps the folder and its readers. What is signed with keys that are
made anew, or holds random numbers, lies in the folder ``once`` there: it is read, and not compared.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from client.kept_runs import ReceivedRun
from client.last_standing import LastStanding
from client.ledger.ledger import LEDGER_FOLDER, Ledger
from client.status import HospitalStatus
from common.audit import entries
from common.canonical import canonical_json
from common.config import Config, PrivacyUnit, RunDescription
from common.identity import enrolment
from common.identity.certificates import certificate_pem
from common.identity.invitation import TOKEN_BYTES, Invitation
from common.identity.ledger_statement import LedgerStatement
from common.identity.members import MEMBERS_FILE
from common.models.first_model import FIRST_MODEL_FILE, FirstModel, FirstModelFacts
from common.privacy.accounting import MechanismEvent, MechanismKind
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.provenance import confide_version
from common.run import messages
from common.run.basis import Basis, Evidence
from common.run.delivery import NEEDED_FILES, Delivery, FileFact
from common.run.proposal import AnsweredEpsilon, Proposal, RunAnswer, RunState
from common.run.round_terms import ProvedTerms, Purpose, RoundTerms
from common.run.terms import describe
from common.settings import CHECKPOINTS_FOLDER, HospitalSettings, ServerSettings
from common.task import TaskKind
from common.telemetry import events as telemetry
from deploy.results.model_file import ModelCard, TensorShape
from deploy.results.preparation import Preparation
from server.checkpoints import Checkpoint, CheckpointStore
from server.members.versions import SaidVersions, SpokenVersions
from server.progress import RunProgress
from server.run_queue import KeptRun
from tests.support.proposed_run import Members

FOLDER = Path(__file__).parents[1] / "vectors" / "formats"
ONCE = "once"
"""The folder of what is read and not compared, in a release's folder."""

RUN_ID = "0123456789abcdef" * 2
HASH = "ab" * 32
NAMES = ("general", "st-anne", "st-mary")
BOOKING = Booking(
    Account.TRAINING,
    MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 1.0, 0.125, 8),
    PrivacyUnit.RECORD,
    None,
    1e-4,
)


def description() -> RunDescription:
    """Return a run's description whose certificates are words: what they hold is no part of the format."""
    roster = {name: f"the certificate of {name}" for name in NAMES}
    return describe(Config(), RUN_ID, ("normal", "pneumonia"), 1, roster, 25_842, "the member list")


def requests() -> tuple[messages.Request, ...]:
    """Return one request of each kind."""
    at: dict[str, Any] = {"run_id": RUN_ID, "round_number": 7}
    return (
        messages.KeysRequest(run_description=b"{}", round_number=7),
        messages.SharesRequest(**at, directory=b"keys"),
        messages.MaskRequest(**at, request=b"request", next_round=8),
        messages.ConsistencyRequest(**at, survivors=b"survivors", next_round=8, next_directory=b"keys"),
        messages.ProvedMaskRequest(**at, request=b"request", next_round=8, basis=b"basis"),
        messages.ProvedConsistencyRequest(
            **at, survivors=b"survivors", next_round=8, next_directory=b"keys", views=b"views"
        ),
        messages.UnmaskRequest(**at, request=b"request"),
        messages.UnmaskAllRequest(**at, request=b"request", next_round=8, next_directory=b"keys"),
        messages.DisputeRequest(**at, request=b"dispute"),
        messages.VerdictRequest(**at, opened=b"opened"),
        messages.MissedVerdictRequest(
            **at,
            terms=b"terms",
            directory=b"keys",
            cohort=("st-anne", "st-mary"),
            view=b"view",
            views=b"views",
            dispute=b"dispute",
            opened=b"opened",
        ),
        messages.PlainRequest(**at, run_description=b"{}", terms=b"terms"),
    )


def replies() -> tuple[messages.Reply, ...]:
    """Return one reply of each kind."""
    spent = messages.EpsilonReport(spent=1.5, budget=10.0)
    return (
        messages.KeysReply(hospital="st-mary", advertised=b"keys"),
        messages.SharesReply(shares=b"shares"),
        messages.MaskReply(masked=b"masked", advertised=b"keys", epsilon=spent),
        messages.ConsistencyReply(signature=b"signature", shares=b"shares"),
        messages.ProvedMaskReply(masked=b"masked", advertised=b"keys", epsilon=spent, sealed=b"sealed"),
        messages.UnmaskReply(revealed=b"revealed", shares=None),
        messages.DisputeReply(opened=b"opened"),
        messages.VerdictReply(named={"st-anne": "length"}),
        messages.PlainReply(epsilon=None),
        messages.RefusedReply(hospital="st-mary", code="policy", reason="not before May", is_attack=False),
    )


def of_enrolment() -> tuple[enrolment.Message, ...]:
    """Return one message of enrolment of each kind."""
    asks: dict[str, Any] = {"certificate": b"certificate", "request": b"request"}
    notice = enrolment.ProposalNotice(run_id=RUN_ID, digest=HASH, answered=True, state="agreed", reason="")
    lists: dict[str, Any] = {"certificate": b"certificate", "revocations": b"revocations", "members": b"members"}
    return (
        enrolment.JoinRequest(token=bytes(TOKEN_BYTES), request=b"request", supernode=b"key"),
        enrolment.JoinedReply(**lists, fleet_port=9092),
        enrolment.WaitingReply(),
        enrolment.StandingRequest(**asks),
        enrolment.StandingReply(**lists, revoked=False, proposals=(notice,)),
        enrolment.ProposalRequest(**asks, run_id=RUN_ID),
        enrolment.ProposalReply(proposal=b"proposal"),
        enrolment.AnswerRequest(**asks, answer=b"answer"),
        enrolment.AnswerReply(),
        enrolment.ResultsRequest(**asks),
        enrolment.ResultsReply(runs={RUN_ID: bytes(32)}),
        enrolment.PieceRequest(**asks, run_id=RUN_ID, name="model.json", offset=0),
        enrolment.PieceReply(content=b"piece"),
        enrolment.LedgerRequest(**asks, statement=b"statement"),
        enrolment.LedgerReply(statement=None),
    )


def bodies() -> tuple[entries.Body, ...]:
    """Return one entry of an audit chain of each kind."""
    return (
        entries.Identified(certificate="a certificate"),
        entries.AnsweredProposal(
            run_id=RUN_ID, proposal=HASH, terms=HASH, agreed=True, by="operator", code="", reason=""
        ),
        entries.JoinedRun(run_id=RUN_ID, config_hash=HASH),
        entries.Contributed(
            run_id=RUN_ID, round_number=7, train=True, model_hash=HASH, terms="ab", epsilon=1.5, budget=10.0,
            ledger=f"3:{HASH}", view="cd",
        ),
        entries.SignedSurvivors(run_id=RUN_ID, round_number=7, survivors=NAMES, signature="ab"),
        entries.OpenedSum(run_id=RUN_ID, round_number=7, cohort=NAMES),
        entries.PassedOver(run_id=RUN_ID, round_number=7, of=3),
        entries.ShownChange(run_id=RUN_ID, round_number=7),
        entries.Named(run_id=RUN_ID, round_number=7, hospital="st-anne", fault="length", evidence=HASH),
        entries.Proved(run_id=RUN_ID, round_number=7, evidence_hash=HASH, sum_hash=HASH),
        entries.Began(run_id=RUN_ID, description="{}", data_set="X-rays", step=0, model_hash=HASH),
        entries.Summed(
            run_id=RUN_ID, round_number=7, train=True, model_hash=HASH, terms="ab", survivors=NAMES,
            signatures={"st-mary": "ab"}, views={"st-mary": "cd"}, epsilon={"st-mary": 1.5},
        ),
        entries.Stepped(run_id=RUN_ID, round_number=7, step=5, model_hash=HASH),
        entries.Centred(run_id=RUN_ID, round_number=2, model_hash=HASH),
        entries.Told(run_id=RUN_ID, length_bytes=100, events_hash=HASH),
        entries.Refused(run_id=RUN_ID, round_number=7, hospital="st-mary", code="policy", reason="not before May"),
        entries.Finished(run_id=RUN_ID, reason="completed", steps=10, model_hash=HASH, threshold=0.5),
    )  # fmt: skip


def events() -> tuple[telemetry.Event, ...]:
    """Return one event of each kind; figures are powers of two, which every machine writes alike."""
    config, figures = Config(), dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc", "loss"), 0.75)
    at: dict[str, Any] = {"time": 2e9}
    return (
        telemetry.RunStarted(
            **at, run_id=RUN_ID, data_set="X-rays", task="pneumonia", rounds=10, hospitals=NAMES, config=config,
            config_hash=HASH, claims=("a claim",), evaluation_plan=("a plan",),
        ),
        telemetry.HospitalOnline(**at, hospital="st-mary"),
        telemetry.HospitalLost(**at, hospital="st-mary", left=True),
        telemetry.Exchange(**at, round=7, phase="masked_input", seconds=1.5, answered=NAMES, upload_bytes=9),
        telemetry.Refusal(**at, round=7, hospital="st-mary", reason="not before May", code="policy"),
        telemetry.Dropout(**at, round=7, hospital="st-mary", phase="masked_input"),
        telemetry.AttackRefused(**at, round=7, hospital="st-mary", code="swapped_key"),
        telemetry.RoundDone(
            **at, **figures, round=7, step=5, epsilon=1.5, epsilon_spent={"st-mary": 1.5}, hospitals=3, seconds=1.5,
            epsilon_budget={"st-mary": 10.0}, upload_bytes=9, part="validation", confusion=((3, 1), (1, 3)),
            roc=((0.0, 0.0), (1.0, 1.0)), intervals={"auc": (0.5, 1.0)}, scores=((-0.5, 4.0, 0.0), (0.5, 0.0, 4.0)),
        ),
        telemetry.Evaluated(
            **at, **figures, step=10, exact=False, records=64, threshold=0.5, intervals={"auc": (0.5, 1.0)},
            noise={"auc": 0.25}, epsilon=1.0, claim="a claim",
        ),
        telemetry.Counted(
            **at, tables={"sex": {"female": 32.0, "male": None}}, units=64, deviation=2.0, least=8.0, epsilon=0.5,
            claim="a claim",
        ),
        telemetry.Compared(
            **at, round=12, step=10, records=64, accuracy=0.125, interval=(-0.25, 0.5), noise=0.0625, disagree=0.25,
            recalls={"normal": 0.25, "pneumonia": None}, recall_intervals={"normal": (-0.5, 1.0)}, epsilon=1.0,
            epsilon_spent={"st-mary": 2.0}, claim="a claim",
        ),
        telemetry.SpreadTold(
            **at, round=13, step=10, hospitals=16, records=1024, counted=12.5, counted_interval=(8.0, 16.0),
            quartiles=(0.75, 0.875, 0.9375), intervals=((0.5, 0.875), (0.8125, 0.9375), (0.875, 1.0)),
            needed=8, epsilon=1.0, claim="a claim",
        ),
        telemetry.RunFinished(**at, reason="completed", rounds_done=10),
    )  # fmt: skip


def model_card() -> ModelCard:
    """Return what ``model.json`` says of a model."""
    preparation = Preparation(
        mode="L", fit="cut", image_size=28, scaling="scale", features=(), network="a network", scores="softmax",
        complete=True,
    )  # fmt: skip
    return ModelCard(
        architecture="cnn", classes=("normal", "pneumonia"), channels=1, image_size=28, threshold=0.5,
        kind=TaskKind.BINARY, positive=("pneumonia",), run_id=RUN_ID, task="pneumonia", data_set="X-rays",
        privacy={"mode": "local", "epsilon": 1.5}, preparation=preparation, sha256=HASH,
        tensors=(TensorShape(name="head.weight", shape=(2, 3)),),
    )  # fmt: skip


def of_a_hospital() -> dict[str, bytes]:
    """Return what a hospital keeps or states, by the names of its files."""
    answer = RunAnswer(
        run_id=RUN_ID, proposal=HASH, hospital="st-mary", agreed=True, by="operator", signature="ab" * 64,
        epsilon={"training": AnsweredEpsilon(after=3.0, budget=10.0)},
    )  # fmt: skip
    statement = LedgerStatement(
        hospital="st-mary", time=2_000_000_000, ledger=f"3:{HASH}", epsilon=1.5, certificate="a certificate",
        signature="ab",
    )  # fmt: skip
    received = ReceivedRun(
        run_id=RUN_ID, delivery=HASH, time=2e9, task="pneumonia", steps=10, rounds=11, last_step_seen=10
    )
    standing = LastStanding(2e9, None, 3, 3, "0.2.0", {RUN_ID: "running"})
    status = HospitalStatus(
        hospital="st-mary", time=2e9, run_id=RUN_ID, round=7, epsilon_spent=1.5, epsilon_budget=10.0, delta=0.001,
        unit="record", adversary="the server", accountant="prv", refusals={"policy": 1}, notes=("a note",),
    )  # fmt: skip
    settings = HospitalSettings(
        fleet_address="server:9092", logs=Path("logs"), data=Path("images"), config=Path("config.yaml")
    )
    return {
        "answer.json": answer.encode(),
        "ledger_statement.json": statement.encode(),
        "received.json": received.model_dump_json(indent=2).encode(),
        "standing.json": msgspec.json.encode(standing),
        "status.json": status.model_dump_json().encode(),
        "hospital.json": settings.model_dump_json(indent=2).encode(),
    }


def made_once(folder: Path) -> None:
    """Write what is signed with keys of its own, or has random numbers, as this release writes it."""
    folder.mkdir(parents=True)
    members = Members.made()
    members.chain("st-mary", folder).close()
    (folder / "ca.pem").write_bytes(certificate_pem(members.authority.certificate))
    (folder / MEMBERS_FILE).write_bytes(members.member_list.encode())
    ledger = Ledger.open(folder / LEDGER_FOLDER, bytes(32))
    ledger.record(RUN_ID, 7, BOOKING, BudgetPolicy(10.0, 1e-4))
    facts = FirstModelFacts(architecture="cnn", classes=2, channels=1, image_size=28, seed=1, tensors=("weight",))
    FirstModel(facts, ((2, 3),), np.arange(6, dtype=np.float32)).write(folder / FIRST_MODEL_FILE)
    CheckpointStore(folder / CHECKPOINTS_FOLDER).save(
        Checkpoint(RUN_ID, 2, 4, np.arange(6, dtype=np.float32), {}, 2, RunProgress(threshold=0.5))
    )
    for lock in folder.rglob("*.lock"):
        lock.unlink()


def formats() -> dict[str, bytes]:
    """Return each example by the name of its file."""
    proposal = Proposal(description=description(), data_set="X-rays", hospitals=NAMES, until=2_000_000_000)
    delivery = Delivery(
        run_id=RUN_ID, time=2_000_000_000, model_hash=HASH, chain_head=f"9:{HASH}", hospitals=NAMES,
        files={name: FileFact(length_bytes=9, sha256=HASH) for name in NEEDED_FILES}, certificate="a certificate",
        signature="ab",
    )  # fmt: skip
    kept = KeptRun(
        run_id=RUN_ID, number=1, state=RunState.AGREED, proposed=2e9, data_set="X-rays", channels=1,
        classes=("normal", "pneumonia"), hospitals=NAMES, until=2_000_000_000, terms=HASH,
    )  # fmt: skip
    terms = RoundTerms(purpose=Purpose.TRAIN, model_hash=bytes(32), fewest_survivors=3)
    evidence = Evidence(round_number=7, terms=b"terms", cohort=NAMES, view=b"view", views=b"views", proof=b"proof")
    spoken = SaidVersions({"st-mary": SpokenVersions(3, "0.2.0", 3)})
    invitation = Invitation("server", 9093, bytes(32), bytes(range(TOKEN_BYTES)), 2_000_000_000, "st-mary")
    settings = ServerSettings(
        config=Path("config.yaml"), run=Path("runs"), logs=Path("logs"), run_id=RUN_ID, data_set="X-rays", channels=1,
        classes=("normal", "pneumonia"),
    )  # fmt: skip
    said = {"software": "0.2.0"}
    return {
        "run_description.json": description().canonical_json(),
        "proposal.json": proposal.encode(),
        "delivery.json": delivery.encode(),
        "run.json": msgspec.json.encode(kept),
        "round_terms.msgpack": terms.encode(),
        "proved_terms.msgpack": ProvedTerms(**msgspec.structs.asdict(terms), state_hash=bytes(32)).encode(),
        "basis.msgpack": Basis(evidence=evidence).encode(),
        "versions.json": msgspec.json.encode(spoken),
        "server.json": settings.model_dump_json(indent=2).encode(),
        "invitation.txt": invitation.encode().encode() + b"\n",
        "model.json": model_card().model_dump_json(indent=2).encode(),
        "events.jsonl": "".join(event.to_line() for event in events()).encode(),
        **of_a_hospital(),
        **{f"request_{_tag(item)}.msgpack": messages.encode(item) for item in requests()},
        **{f"reply_{_tag(item)}.msgpack": messages.encode(item) for item in replies()},
        **{
            f"enrolment_{_tag(item)}.msgpack": enrolment.encode(msgspec.structs.replace(item, **said))
            for item in of_enrolment()
        },
        **{f"audit_{item.kind}.json": canonical_json(item.model_dump(mode="json")) for item in bodies()},
    }


def _tag(message: msgspec.Struct) -> str:
    return str(type(message).__struct_config__.tag)


def main() -> int:
    """Write the examples of this release, unless its folder is there already."""
    folder = FOLDER / confide_version()
    folder.mkdir(parents=True)
    for name, content in formats().items():
        (folder / name).write_bytes(content)
    made_once(folder / ONCE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
