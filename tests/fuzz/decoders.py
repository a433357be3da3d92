"""Every decoder of bytes that come from outside, in one table, so that each can be fed with what nobody should send.

A decoder takes the bytes, or refuses them with its typed error; anything else it raises is a defect. Fuzzed by the fast
tests (``tests/fuzz``, with Hypothesis) and, guided by coverage, by ``confide dev fuzz``.
"""

import datetime
import hashlib
import io
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import safetensors.numpy
from cryptography import x509
from flwr.proto import message_pb2 as flower
from google.protobuf.message import DecodeError
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from client import app, handover, own_results
from client.agreement import PROPOSALS_FOLDER, RunAgreements
from client.data.archives import Archives, UnusableArchiveError
from client.data.cache import PreparedCache
from client.data.catalogue import ACCEPTED_NAME, FETCHED_NAME, read_catalogue
from client.data.pixels import UnusableImageError
from client.data.readers import dicom, npz
from client.data.readers.raster import read_raster
from client.data.watch import HELD_FILE, held
from client.flower import supernode
from client.kept_runs import RECEIVED_FILE, REFUSED_FILE, RUNS_FOLDER, read_received, refused_runs
from client.last_standing import STANDING_FILE, read_last_standing
from client.ledger.chain import Anchor
from client.ledger.held import newest_entry
from client.ledger.ledger import FINGERPRINT_BYTES, LEDGER_FOLDER, accept, verify
from client.ledger.place import (
    DIGEST_BYTES,
    IMAGES_FILE,
    PLACE_FILE,
    REGISTRY_FILE,
    STATES_FILE,
    ledger_folder,
    open_ledger,
)
from client.ledger.remembered import REMEMBERED_FILE, remembered
from client.metrics import HospitalMetrics
from client.named import NAMED_FILE, NamedHospitals
from client.own_results import OWN_RESULTS_FILE
from client.received_run import facts_of, model_hash_of
from client.round_state import AnsweredRoundsFile
from common import shards
from common.audit.chain import AUDIT_FILE, AuditEntry, Chain, read_chain
from common.audit.entries import Summed
from common.audit.parties import SERVER_PARTY
from common.config import Config, RunConsent, RunDescription, load_config
from common.errors import AuditError, ConfideError, ConfigError, DataError, IdentityError, LedgerError, RunError
from common.evaluation.state import EvaluationState
from common.flower.carried import LONGEST_WHOLE_BYTES, part_of
from common.identity import certificates as identity
from common.identity import enrolment
from common.identity.invitation import TOKEN_BYTES, Invitation
from common.identity.ledger_statement import read_statement
from common.identity.members import verify_members
from common.identity.revocation import verify_revocations
from common.models import onnx_rules
from common.models.first_model import FIRST_MODEL_FILE, FirstModel
from common.models.onnx_rules import BackboneRefusedError
from common.run import messages
from common.run.basis import Basis
from common.run.delivery import read_delivery
from common.run.model_facts import expected_facts, require_same
from common.run.proposal import Proposal, RunAnswer
from common.run.round_terms import RoundTerms
from common.run.told_run import Chained, check_told
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place, SecAggError
from common.secagg.phases import Phase
from common.settings import ROSTER_FILE, HospitalSettings, ServerSettings
from common.task import implied
from common.telemetry.events import EVENTS_FILE, EventFile, RoundDone, RunStarted
from deploy.audit.record import read_record
from deploy.containers.between import DATA_SET_FILE, dealt_data_set
from deploy.datasets.image_tree import read_tree
from deploy.datasets.own_data import propose
from deploy.demo.dealt_shard import unpack
from deploy.hospital.list_images import Key, read_labels
from deploy.hospital.pacs.access import read_access
from deploy.hospital.pacs.accounts import Accounts
from deploy.hospital.pacs.dicomweb import read_matches
from deploy.hospital.pacs.studies import PacsError
from deploy.hospital.report import table_of
from deploy.results import stored_answers
from deploy.results.history import RunHistory
from deploy.results.live_table import LiveTable
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, ModelCard, TensorShape, load_model
from deploy.results.outputs import SUMMARY_FILE, summary
from deploy.results.preparation import Preparation
from deploy.results.report import REPORT_MARKDOWN, pages
from deploy.results.report_facts import RunFacts
from server.checkpoints import CheckpointStore
from server.flower.grid import incoming_of
from server.members.authority import REGISTER_FILE, Authority
from server.members.roster import INVITATIONS_FOLDER, Membership
from server.metrics import RunMetrics
from server.operator_socket import read_request
from server.run_queue import RunQueue

REFUSALS = (ConfideError, UnusableImageError)
"""How a decoder refuses; the second is how a reader of images reports to the examination of a hospital's data."""

RUN_ID = "0123456789abcdef0123456789abcdef"
"""The run of the checkpoints in the corpus."""

_TENSORS = safetensors.numpy.save({"weight": np.arange(6, dtype=np.float32).reshape(2, 3)})
"""A model file, for cards."""

_NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

_STARTED = RunStarted(
    time=1.0, run_id=RUN_ID, data_set="phantom", task="pneumonia", rounds=1, hospitals=("a", "b", "c"),
    config=Config(), config_hash="ab" * 32,
)  # fmt: skip
_DONE = RoundDone(
    time=2.0, round=1, step=1, accuracy=0.9, precision=0.9, recall=0.9, f1=0.9, auc=0.9, loss=0.1, epsilon=1.0,
    hospitals=3, seconds=1.0, upload_bytes=1, confusion=((1, 0), (0, 1)),
)  # fmt: skip
"""A run of one round, for summaries."""


DESCRIPTION = RunDescription.of(
    Config(), run_id=RUN_ID, classes=("normal", "pneumonia"), channels=1, vector_length=100, roster={"a": "PEM"}
)
"""A run whose terms a hospital has kept."""

SUMMED = Summed(
    run_id=RUN_ID, round_number=1, train=True, model_hash="ab" * 32, terms="", survivors=("a",), signatures={},
    views={}, epsilon={"a": 1.0},
)  # fmt: skip
"""A round of that run."""

_ENTRY: TypeAdapter[AuditEntry] = TypeAdapter(AuditEntry)

_PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)


@dataclass(frozen=True)
class Decoder:
    """One of them.

    Attributes:
        name: of its folder in the corpus.
        decode: takes the bytes, or raises one of ``REFUSALS``.
    """

    name: str
    decode: Callable[[bytes], object]


@contextmanager
def _file(name: str, content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="confide-bytes-") as folder:
        path = Path(folder) / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(content)
        yield path


def _secagg(content: bytes) -> object:
    """Decode as whichever of the protocol's messages it is."""
    refusal: SecAggError | None = None
    for message_type in get_args(secagg.Message):
        try:
            return secagg.decode(content, message_type, secagg.Limits(), _PLACE)
        except SecAggError as error:
            refusal = error
    raise refusal or LookupError("there are no messages")


def _enrolment(content: bytes) -> object:
    refusal: ConfideError | None = None
    for message_type in (
        enrolment.JoinRequest, enrolment.StandingRequest, enrolment.StandingReply, enrolment.ProposalRequest,
        enrolment.ProposalReply, enrolment.AnswerRequest, enrolment.AnswerReply, enrolment.ResultsRequest,
        enrolment.ResultsReply, enrolment.PieceRequest, enrolment.PieceReply,
    ):  # fmt: skip
        try:
            return enrolment.decode(content, message_type)
        except ConfideError as error:
            refusal = error
    try:
        return enrolment.decode_join_reply(content)
    except ConfideError:
        raise refusal or LookupError("there are no messages") from None


def _certificate(content: bytes) -> object:
    """Read as any certificate, then as a hospital's, with every extension that is looked at."""
    certificate = identity.read_certificate(content)
    with suppress(IdentityError):
        identity.verify_issued_to_hospital(certificate, "st-mary", certificate)
    with suppress(IdentityError):
        identity.common_name(certificate)
    return certificate


def _config(content: bytes) -> object:
    with _file("config.yaml", content) as path:
        return load_config(path)


def _manifest(content: bytes) -> object:
    with _file(shards.MANIFEST_NAME, content) as path:
        return shards.read_manifest(path.parent)


def _shard_description(content: bytes) -> object:
    with _file(shards.DESCRIPTION_NAME, content) as path:
        return shards.read_description(path.parent)


def _dicom(content: bytes) -> object:
    with dicom.quiet():
        return dicom.read_dicom(content, 1)


def _npz(content: bytes) -> object:
    with _file("data.npz", content) as path:
        deque(npz.image_blocks(path, "train"), maxlen=1)
        return npz.describe(path, "train"), npz.labels(path, "train")


def _ledger(content: bytes) -> object:
    """Read as a ledger's database, and where that is refused as one whose operator goes on with what it holds."""
    with _file(f"{LEDGER_FOLDER}/ledger.sqlite", content) as path:
        try:
            return verify(path.parent)
        except LedgerError:
            return accept(path.parent, "what is known to be spent stays spent", bytes(FINGERPRINT_BYTES))


def _ledger_held(content: bytes) -> object:
    """Read as the hospital's own audit chain, for the newest line of the ledger that it knows."""
    with _file(AUDIT_FILE, content) as path:
        return newest_entry(path)


def _ledger_anchor(content: bytes) -> object:
    """Read as the anchor beside a database that is lost."""
    with _file(f"{LEDGER_FOLDER}/ledger.anchor", content) as path:
        path.with_name("ledger.sqlite").write_bytes(b"")
        return accept(path.parent, "what is known to be spent stays spent", bytes(FINGERPRINT_BYTES))


def _anchor(content: bytes) -> object:
    return Anchor.from_text(content.decode("utf-8", "replace"))


def _answered_rounds(content: bytes) -> object:
    with _file("answered-rounds.json", content) as path:
        return AnsweredRoundsFile(path, "hospital")


def _named_hospitals(content: bytes) -> object:
    with _file(NAMED_FILE, content) as path:
        return NamedHospitals(path, "hospital")


PREPARATION = Preparation(
    mode="L", fit="", image_size=28, scaling="", features=(), network="", scores="", complete=True
)


def _checkpoint(content: bytes) -> object:
    with _file("step-00000001-round-000000000001.safetensors", content) as path:
        found = CheckpointStore(path.parent).latest(RUN_ID)
        return None if found is None else found.model[:]


def _model(content: bytes) -> object:
    """Read as a model file whose card was written for just these bytes, as whoever replaces one replaces both."""
    card = ModelCard(
        architecture="cnn",
        classes=("normal", "pneumonia"),
        channels=1,
        image_size=28,
        threshold=0.5,
        run_id=RUN_ID,
        task="pneumonia",
        data_set="phantom",
        privacy={},
        preparation=PREPARATION,
        sha256=hashlib.sha256(content).hexdigest(),
        tensors=(TensorShape(name="weight", shape=(2, 3)),),
    )
    with _file(TENSORS_FILE, content) as path:
        path.with_name(CARD_FILE).write_text(card.model_dump_json(), encoding="utf-8")
        return load_model(path.parent)


def _model_card(content: bytes) -> object:
    with _file(CARD_FILE, content) as path:
        path.with_name(TENSORS_FILE).write_bytes(_TENSORS)
        return load_model(path.parent)


def _events(content: bytes) -> object:
    """Read and tell as each of those does that read them: exporter, table, summary and report, without its plots."""
    with _file(EVENTS_FILE, content) as path:
        _exposed(RunMetrics(path.parent))
        events = EventFile(path).read_new()
        table = LiveTable(Console(file=io.StringIO()))
        for event in events:
            table.show(event)
        history = RunHistory.of(events)
        table.finish(())
        return summary(history), _told(RunFacts(path.parent, history, {}, None))


def _summary(content: bytes) -> object:
    """Read as the summary beside a run's events."""
    with _file(SUMMARY_FILE, content) as path:
        path.with_name(EVENTS_FILE).write_text("".join(event.to_line() for event in (_STARTED, _DONE)))
        return _told(RunFacts.read(path.parent))


def _told(facts: RunFacts) -> str:
    return pages([facts], {})[REPORT_MARKDOWN] if facts.history.rounds else ""


def _exposed(collector: Collector) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


def _own_results(content: bytes) -> object:
    with _file(OWN_RESULTS_FILE, content) as path:
        results = own_results.read(path)
        return table_of(results) if results else results


def _array(content: bytes) -> object:
    """Read one array whole, as a hospital does, and in pieces, as a server does."""
    with suppress(ConfideError):
        messages.join_array((content[:100], content[100:]), len(content))
    return messages.read_array(content)


def _flower_message(content: bytes) -> flower.Message:
    """Read as gRPC reads a message of Flower's."""
    message = flower.Message()
    try:
        message.ParseFromString(content)
    except DecodeError:
        raise RunError("gRPC hands on messages alone") from None
    return message


def _flower_reply(content: bytes) -> object:
    """Read as a ServerApp does; the name of each piece of an array is its content."""
    incoming = incoming_of(1, _flower_message(content), 100, lambda name: part_of(bytes.fromhex(name)))
    if incoming.fault is not None:
        raise RunError(incoming.fault)
    return incoming


def _flower_request(content: bytes) -> object:
    """Read as relay and agent do."""
    try:
        message, array, _ = supernode.read_request(_flower_message(content))
    except ValueError as error:
        raise RunError("the message is answered with an error") from error
    return app.read(message, len(array), iter([memoryview(array)]), LONGEST_WHOLE_BYTES)


def _handover(content: bytes) -> object:
    """Read as an agent reads what its relay sends."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.settimeout(10.0)
            theirs.send(content[:10_000])
        try:
            frame = handover.receive(ours)
            return frame, b"".join(handover.stretches(ours, frame.array_bytes))
        except EOFError as error:
            raise RunError("the relay is gone") from error


def _status(content: bytes) -> object:
    """Read as the exporter does."""
    with _file("status.json", content) as path:
        return _exposed(HospitalMetrics(path))


def _settings(content: bytes) -> object:
    with _file("role.json", content) as path, suppress(ConfigError):
        return ServerSettings.read(path)
    with _file("role.json", content) as path:
        return HospitalSettings.read(path)


def _with_authority(content: bytes) -> tuple[x509.Certificate, bytes]:
    """Read as an authority's certificate with something behind it that it must have signed."""
    pem, end, rest = content.partition(b"-----END CERTIFICATE-----\n")
    return identity.read_certificate(pem + end), rest


def _revocations(content: bytes) -> object:
    authority, encoded = _with_authority(content)
    return verify_revocations(encoded, authority)


def _members(content: bytes) -> object:
    authority, encoded = _with_authority(content)
    return verify_members(encoded, authority)


def _delivery(content: bytes) -> object:
    authority, encoded = _with_authority(content)
    return read_delivery(encoded, authority)


def _ledger_statement(content: bytes) -> object:
    """Read as what a hospital states, as what another member of its name has stated, and as what was kept of that."""
    with _file(REMEMBERED_FILE, content.partition(b"-----END CERTIFICATE-----\n")[2]) as path:
        remembered(path.parent)
    authority, encoded = _with_authority(content)
    return read_statement(encoded, authority)


def _ledger_place(content: bytes) -> object:
    """Read as each of the files by which a ledger is found."""
    with _file(f"machine/{REGISTRY_FILE}", content) as path, suppress(LedgerError):
        open_ledger(path.parents[1] / "state", bytes(32), bytes(DIGEST_BYTES), path.parent)
    with _file(f"ledger/{STATES_FILE}", content) as path, suppress(LedgerError):
        open_ledger(path.parents[1], bytes(32), bytes(DIGEST_BYTES), None)
    with _file(f"ledger/{IMAGES_FILE}", content) as path, suppress(LedgerError):
        open_ledger(path.parents[1], bytes(32), bytes(DIGEST_BYTES), None)
    with _file(PLACE_FILE, content) as path:
        return ledger_folder(path.parent)


def _first_model(content: bytes) -> object:
    with _file(FIRST_MODEL_FILE, content) as path:
        return FirstModel.read(path)


def _received_model(content: bytes) -> object:
    """Read as the card of a model that a server hands over."""
    with _file(CARD_FILE, content) as path:
        path.with_name(TENSORS_FILE).write_bytes(_TENSORS)
        return model_hash_of(path.parent)


def _received_facts(content: bytes) -> object:
    """Read what a server says of a model that it hands over, and compare it with what its chain says."""
    with _file(CARD_FILE, content) as path:
        facts = facts_of(path.parent)
    expected = expected_facts(DESCRIPTION, facts.data_set, {"a": 1.0}, None, facts)
    with suppress(AuditError):
        require_same(facts, expected, CARD_FILE)
    return facts


def _received_events(content: bytes) -> object:
    """Compare events that a server hands over with what its chain says."""
    with _file(EVENTS_FILE, content) as path:
        return check_told(path, Chained({DESCRIPTION.hash().hex(): DESCRIPTION}, "phantom", {1: SUMMED}, 1))


def _received_tensors(content: bytes) -> object:
    with _file(TENSORS_FILE, content) as path:
        path.with_name(CARD_FILE).write_text('{"tensors": [{"name": "weight"}]}')
        return model_hash_of(path.parent)


def _received_run(content: bytes) -> object:
    with _file(f"{RUNS_FOLDER}/{REFUSED_FILE}", content) as path:
        refused = refused_runs(path.parents[1])
    with _file(RECEIVED_FILE, content) as path:
        return read_received(path.parent), refused


def _audit_chain(content: bytes) -> object:
    authority, encoded = _with_authority(content)
    chain = read_chain(encoded, "audit.jsonl", authority)
    return read_record(chain, "audit.jsonl", authority) if chain.party == SERVER_PARTY else chain


def _audit_entries(content: bytes) -> object:
    """Read as what a server that lies has signed: its entries alone, without the signatures."""
    authority, encoded = _with_authority(content)
    try:
        entries = tuple(_ENTRY.validate_json(line) for line in encoded.splitlines())
    except ValidationError:
        raise AuditError("there are no entries") from None
    return read_record(Chain(SERVER_PARTY, (), entries), "audit.jsonl", authority)


def _roster(content: bytes) -> object:
    authority, encoded = _with_authority(content)
    with _file(ROSTER_FILE, encoded) as path:
        return identity.verify_roster(Membership(path.parent).roster(), authority)


def _invited(content: bytes) -> object:
    token = bytes(TOKEN_BYTES)
    with _file(f"{INVITATIONS_FOLDER}/{hashlib.sha256(token).hexdigest()}.json", content) as path:
        return Membership(path.parents[1]).take(token, "ab" * 32, _NOW)


def _register(content: bytes) -> object:
    with _file(REGISTER_FILE, content) as path:
        return Authority.make(path.parent, "Confide", _NOW).sign_lists(_NOW, datetime.timedelta(days=1))


def _private_keys(content: bytes) -> object:
    for load in (identity.load_signing_key, identity.load_server_key):
        with _file("a.key", content) as path, suppress(IdentityError):
            return load(path)
    with _file("a.key", content) as path:
        return identity.load_supernode_key(path)


def _standing(content: bytes) -> object:
    with _file(STANDING_FILE, content) as path:
        return read_last_standing(path.parent)


def _agreed_terms(content: bytes) -> object:
    """Read what a hospital has kept of a run that nobody proposed."""
    with _file(f"{PROPOSALS_FOLDER}/{RUN_ID}.terms", content) as path:
        return RunAgreements(path.parents[1]).check_run(DESCRIPTION, RunConsent.ASK, _NOW)


def _kept_run(content: bytes) -> object:
    with tempfile.TemporaryDirectory(prefix="confide-bytes-") as folder:
        place = RunQueue(Path(folder)).folder(RUN_ID)
        place.mkdir(parents=True)
        (place / "run.json").write_bytes(content)
        return RunQueue(Path(folder)).settle(_NOW), RunQueue(Path(folder)).due()


def _prepared(content: bytes) -> object:
    """Read as what a cache without an image says of itself."""
    with tempfile.TemporaryDirectory(prefix="confide-bytes-") as folder:
        cache = PreparedCache(Path(folder))
        with cache.build("key", 0, (1, 8, 8)) as writer:
            writer.commit(b"")
        (Path(folder) / "prepared-key" / "index.json").write_bytes(content)
        return cache.find("key")


def _began_with(content: bytes) -> object:
    """Read as the note of the prepared images that a run began with."""
    with _file(HELD_FILE, content) as path:
        return held(path.parent, RUN_ID)


def _catalogue(content: bytes) -> object:
    """Read as the list of a hospital's images, with those it has accepted beside it."""
    with _file(shards.MANIFEST_NAME, content) as path:
        path.with_name(ACCEPTED_NAME).write_bytes(content)
        return read_catalogue(path.parent, implied("pneumonia", ("normal", "pneumonia")))


def _labels(content: bytes) -> object:
    with _file("labels.csv", content) as path:
        return read_labels(path, Key.ACCESSION_NUMBER)


def _archive(content: bytes) -> object:
    """Read as a zip archive of images, every file of it."""
    with _file("export.zip", content) as path, Archives(path.parent) as archives:
        try:
            return [archives.read(path.name, name, 2**16) for name in archives.names(path.name)]
        except UnusableArchiveError as refused:
            raise DataError(str(refused)) from None


def _pacs_access(content: bytes) -> object:
    with _file("pacs.yaml", content) as path:
        path.chmod(0o600)
        return read_access(path)


def _pacs_matches(content: bytes) -> object:
    try:
        return read_matches(content)
    except PacsError as refused:
        raise DataError(str(refused)) from None


def _fetched(content: bytes) -> object:
    with _file(FETCHED_NAME, content) as path:
        return dict(Accounts(path.parent).counts())


def _image_tree(content: bytes) -> object:
    with _file("images.tar", content) as path:
        return deque(read_tree(path, ("normal", "pneumonia"), 28, 1), maxlen=1)


def _own_data(content: bytes) -> object:
    """Read as a person's own images in a tar, whose task is to be proposed."""
    with _file("images.tar", content) as path:
        return propose(path)


def _known_table(content: bytes) -> object:
    """Read as a public set's table that lies beside its images."""
    with _file("Data_Entry_2017.csv", content) as path:
        Image.new("L", (28, 28)).save(path.parent / "1.png")
        return propose(path.parent)


def _onnx(content: bytes) -> object:
    try:
        return onnx_rules.read(content)
    except BackboneRefusedError as error:
        raise ConfigError(str(error)) from None


def _dealt_shard(content: bytes) -> None:
    with _file("shard.zip", content) as path, path.open("rb") as archive:
        unpack(archive, path.parent / "shard")


def _dealt_data_set(content: bytes) -> object:
    with _file(DATA_SET_FILE, content) as path:
        return dealt_data_set(path.parent, identity.make_authority("Confide", _NOW).certificate)


def _stored_answers(content: bytes) -> object:
    with _file("trial.jsonl", content) as path:
        return stored_answers.read(path)


DECODERS = (
    Decoder("flower-request", _flower_request),
    Decoder("flower-reply", _flower_reply),
    Decoder("handover", _handover),
    Decoder("request", messages.decode_request),
    Decoder("reply", messages.decode_reply),
    Decoder("array", _array),
    Decoder("secagg", _secagg),
    Decoder("round-terms", RoundTerms.decode),
    Decoder("evaluation-state", EvaluationState.from_json),
    Decoder("run-description", RunDescription.from_json),
    Decoder("enrolment", _enrolment),
    Decoder("invitation", lambda content: Invitation.decode(content.decode("utf-8", "replace"))),
    Decoder("certificate", _certificate),
    Decoder("hospital-request", identity.HospitalSigningRequest.read),
    Decoder("server-request", identity.ServerSigningRequest.read),
    Decoder("supernode-key", identity.check_supernode_key),
    Decoder("config", _config),
    Decoder("manifest", _manifest),
    Decoder("shard-description", _shard_description),
    Decoder("shard-image", lambda content: shards.decode_image(content, "image 1", 28, 1)),
    Decoder("raster", read_raster),
    Decoder("dicom", _dicom),
    Decoder("npz", _npz),
    Decoder("ledger", _ledger),
    Decoder("ledger-anchor", _ledger_anchor),
    Decoder("ledger-held", _ledger_held),
    Decoder("anchor", _anchor),
    Decoder("answered-rounds", _answered_rounds),
    Decoder("named-hospitals", _named_hospitals),
    Decoder("checkpoint", _checkpoint),
    Decoder("model", _model),
    Decoder("model-card", _model_card),
    Decoder("events", _events),
    Decoder("summary", _summary),
    Decoder("status", _status),
    Decoder("own-results", _own_results),
    Decoder("settings", _settings),
    Decoder("revocations", _revocations),
    Decoder("members", _members),
    Decoder("delivery", _delivery),
    Decoder("ledger-statement", _ledger_statement),
    Decoder("ledger-place", _ledger_place),
    Decoder("received-model", _received_model),
    Decoder("received-tensors", _received_tensors),
    Decoder("received-facts", _received_facts),
    Decoder("received-events", _received_events),
    Decoder("received-run", _received_run),
    Decoder("audit-chain", _audit_chain),
    Decoder("audit-entries", _audit_entries),
    Decoder("roster", _roster),
    Decoder("invited", _invited),
    Decoder("register", _register),
    Decoder("private-keys", _private_keys),
    Decoder("standing", _standing),
    Decoder("proposal", Proposal.decode),
    Decoder("run-answer", RunAnswer.decode),
    Decoder("agreed-terms", _agreed_terms),
    Decoder("kept-run", _kept_run),
    Decoder("operator-request", read_request),
    Decoder("prepared", _prepared),
    Decoder("began-with", _began_with),
    Decoder("catalogue", _catalogue),
    Decoder("labels", _labels),
    Decoder("stored-answers", _stored_answers),
    Decoder("archive", _archive),
    Decoder("pacs-access", _pacs_access),
    Decoder("pacs-matches", _pacs_matches),
    Decoder("fetched", _fetched),
    Decoder("image-tree", _image_tree),
    Decoder("own-data", _own_data),
    Decoder("known-table", _known_table),
    Decoder("onnx", _onnx),
    Decoder("dealt-shard", _dealt_shard),
    Decoder("first-model", _first_model),
    Decoder("basis", Basis.decode),
    Decoder("dealt-data-set", _dealt_data_set),
)


def feed(decoder: Decoder, content: bytes) -> bool:
    """Return whether the decoder takes the bytes; whatever it raises beside a refusal goes through."""
    try:
        decoder.decode(content)
    except REFUSALS:
        return False
    return True
