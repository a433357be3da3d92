"""Writes the seeds of the corpus: for each decoder a few files that it takes. ``python -m tests.fuzz.make_corpus``."""

import datetime
import hashlib
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openpyxl
import pydicom
import safetensors.numpy
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict, StringList
from PIL import Image
from pydantic import TypeAdapter
from pydicom.data import get_testdata_file

from client.data.cache import PreparedCache
from client.data.watch import HELD_FILE, hold
from client.kept_runs import ReceivedRun
from client.ledger.ledger import Ledger
from client.named import NAMED_FILE, NamedHospitals
from client.own_results import OwnResult
from client.round_state import AnsweredRoundsFile
from client.status import HospitalStatus
from common import shards
from common.audit.chain import AUDIT_FILE, AuditEntry, read_chain
from common.audit.parties import Writer
from common.config import Config, PrivacyUnit, RunDescription
from common.evaluation.question import Question
from common.evaluation.state import FIRST, EvaluationState
from common.flower.carried import Piece, array_head
from common.identity import certificates as identity
from common.identity import enrolment
from common.identity.invitation import TOKEN_BYTES, Invitation
from common.identity.ledger_statement import state_ledger
from common.identity.members import sign_members
from common.identity.revocation import sign_revocations
from common.models.first_model import FIRST_MODEL_FILE
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.run import messages
from common.run.basis import Basis
from common.run.delivery import NEEDED_FILES, FileFact, sign
from common.run.model_facts import ModelFacts, expected_facts
from common.run.proposal import AnsweredEpsilon, Proposal, RunAnswer, RunState, terms_hash
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import evaluation_claim, statistics_claim
from common.secagg import messages as secagg
from common.secagg.phases import Phase
from common.settings import HospitalSettings, ServerSettings
from common.telemetry.events import Counted, Evaluated, RoundDone, RunFinished, RunStarted
from deploy.results.history import RunHistory
from deploy.results.model_file import ModelCard, TensorShape
from deploy.results.outputs import summary
from deploy.results.stored_answers import StoredAnswer
from server.checkpoints import Checkpoint, CheckpointStore
from server.operator_socket import ChangeRun, Propose, ShowRuns
from server.progress import RunProgress
from server.run_queue import KeptRun
from tests.fuzz.decoders import DECODERS, DESCRIPTION, PREPARATION, RUN_ID, feed
from tests.support.audited_run import audited_run
from tests.support.example_run import example_run
from tests.support.ledger_of_version_1 import write_ledger
from tests.support.onnx_files import honest
from tests.support.proposing import FIRST as FIRST_MODEL

CORPUS = Path(__file__).with_name("corpus")
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def write_seeds(corpus: Path) -> None:
    """Write every seed; one that its decoder refuses is an error."""
    for decoder in DECODERS:
        folder = corpus / decoder.name
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(_SEEDS[decoder.name]()):
            if not feed(decoder, content):
                raise ValueError(f"seed {number} of {decoder.name} is refused")
            (folder / f"seed-{number}").write_bytes(content)


def _requests() -> Iterator[bytes]:
    yield messages.encode(messages.KeysRequest(run_description=b"{}", round_number=1))
    yield messages.encode(messages.SharesRequest(run_id=RUN_ID, round_number=1, directory=b"abc"))
    yield messages.encode(messages.ConsistencyRequest(run_id=RUN_ID, round_number=1, survivors=b"abc"))
    yield messages.encode(messages.UnmaskAllRequest(run_id=RUN_ID, round_number=1, request=b"abc", next_round=2))
    yield messages.encode(messages.DisputeRequest(run_id=RUN_ID, round_number=1, request=b"abc"))
    yield messages.encode(messages.VerdictRequest(run_id=RUN_ID, round_number=1, opened=b"abc"))
    yield messages.encode(
        messages.MissedVerdictRequest(
            run_id=RUN_ID,
            round_number=1,
            terms=b"abc",
            directory=b"abc",
            cohort=("hospital-1",),
            view=b"abc",
            views=b"abc",
            dispute=b"abc",
            opened=b"abc",
        )
    )


def _replies() -> Iterator[bytes]:
    yield messages.encode(messages.SharesReply(shares=b"abc"))
    yield messages.encode(messages.RefusedReply(hospital="hospital-1", code="budget", reason="spent", is_attack=False))
    yield messages.encode(messages.DisputeReply(opened=b"abc"))
    yield messages.encode(messages.VerdictReply(named={"hospital-1": "length"}))


def _arrays() -> Iterator[bytes]:
    for array in (np.arange(6, dtype=np.uint16), np.zeros((2, 3), np.float32, order="F")):
        file = io.BytesIO()
        np.save(file, array)
        yield file.getvalue()


def _secagg() -> Iterator[bytes]:
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "secagg_round.json").read_text())
    for name, value in sorted(vectors["round"].items()):
        one: Any = next(iter(value.values())) if isinstance(value, dict) else value
        if isinstance(one, str) and name not in ("vectors", "masked_vectors", "sum"):
            yield bytes.fromhex(one)
    yield bytes.fromhex(vectors["round"]["full_round"]["full_unmasking_request"])
    yield from map(secagg.encode, _of_disputes())


def _of_disputes() -> Iterator[secagg.Message]:
    key = bytes(range(32))
    advertised = secagg.DisputableKeys(RUN_ID, 1, "st-mary", key, key, key, key, bytes(64), key)
    opened = secagg.OpenedChange(RUN_ID, 1, "st-mary", key, bytes(64))
    yield advertised
    yield secagg.DisputableDirectory(RUN_ID, 1, 3, (advertised,))
    vector = secagg.DisputedVector("st-mary", b"sealed", key, key, key)
    yield secagg.Dispute(RUN_ID, 1, (vector,), (secagg.DroppedKey("st-anne", key),))
    yield opened
    yield secagg.OpenedChanges(RUN_ID, 1, (opened,))


def _round_terms() -> Iterator[bytes]:
    yield RoundTerms(purpose=Purpose.TRAIN, model_hash=bytes(32), fewest_survivors=3).encode()
    question = Question(release=2, edges=((-1.0, 0.5, 2.0),))
    yield RoundTerms(purpose=Purpose.EVALUATE, model_hash=bytes(32), fewest_survivors=3, question=question).encode()


def _evaluation_states() -> Iterator[bytes]:
    yield EvaluationState().to_json().encode()
    yield EvaluationState((0.25,), 0.01, (FIRST,)).to_json().encode()


def _bases() -> Iterator[bytes]:
    yield Basis(evidence=None).encode()
    yield (CORPUS.parents[1] / "vectors" / "formats" / "0.2.0" / "basis.msgpack").read_bytes()


def _descriptions() -> Iterator[bytes]:
    config = Config()
    yield RunDescription.of(
        config,
        run_id=RUN_ID,
        classes=("normal", "pneumonia"),
        channels=1,
        vector_length=100,
        roster={"hospital-1": "PEM"},
    ).canonical_json()


def _fixed_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def _enrolments() -> Iterator[bytes]:
    request = identity.request_hospital_certificate("st-mary", _fixed_key()).pem
    yield enrolment.encode(enrolment.JoinRequest(token=bytes(TOKEN_BYTES), request=request, supernode=b"key"))
    yield enrolment.encode(enrolment.WaitingReply())
    yield enrolment.encode(enrolment.ResultsReply(runs={RUN_ID: bytes(32)}))
    yield enrolment.encode(
        enrolment.PieceRequest(certificate=b"PEM", request=request, run_id=RUN_ID, name="model.json", offset=7)
    )
    notice = enrolment.ProposalNotice(run_id=RUN_ID, digest="ab" * 32, answered=False)
    stands = enrolment.StandingReply(certificate=b"PEM", revocations=b"DER", members=b"{}", revoked=False)
    yield enrolment.encode(msgspec.structs.replace(stands, proposals=(notice,)))
    yield enrolment.encode(enrolment.ProposalRequest(certificate=b"PEM", request=request, run_id=RUN_ID))
    yield enrolment.encode(enrolment.AnswerRequest(certificate=b"PEM", request=request, answer=b"{}"))


def _invitations() -> Iterator[bytes]:
    yield (
        Invitation(
            host="confide.example.org",
            port=9093,
            fingerprint=bytes(range(32)),
            token=bytes(range(32)),
            expires=2_000_000_000,
            name="st-mary",
        )
        .encode()
        .encode()
    )


def _certificates() -> Iterator[bytes]:
    authority = identity.make_authority("Confide", NOW)
    yield identity.certificate_pem(authority.certificate)
    request = identity.request_hospital_certificate("st-mary", _fixed_key())
    yield identity.certificate_pem(
        identity.sign_hospital_certificate(authority, request, "st-mary", NOW, datetime.timedelta(days=30))
    )


def _hospital_requests() -> Iterator[bytes]:
    yield identity.request_hospital_certificate("st-mary", _fixed_key()).pem


def _server_requests() -> Iterator[bytes]:
    yield identity.request_server_certificate(("confide.example.org", "127.0.0.1"), identity.make_server_key()).pem


def _supernode_keys() -> Iterator[bytes]:
    yield identity.openssh_public(identity.make_supernode_key().public_key())


def _configs() -> Iterator[bytes]:
    yield (Path(__file__).parents[2] / "config.yaml").read_bytes()
    yield b"privacy: {target_epsilon: 3, delta: 1e-5}\n"


def _manifests() -> Iterator[bytes]:
    yield b"file,label,patient_id,split\na.png,normal,p1,train\nb.png,pneumonia,p2,test\n"


def _shard_descriptions() -> Iterator[bytes]:
    yield shards._encode_description(shards.ShardDescription("phantom", "pneumonia", ("a", "b"), 1, 28))


def _images() -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    for kind in ("PNG", "JPEG"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind)
        yield out.getvalue()


def _dicom() -> Iterator[bytes]:
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    dataset.Rows = dataset.Columns = 16
    dataset.PixelData = np.arange(256, dtype=np.int16).tobytes()
    for private in [element.tag for element in dataset if element.tag.is_private]:
        del dataset[private]
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    yield out.getvalue()


def _npz() -> Iterator[bytes]:
    out = io.BytesIO()
    np.savez(out, train_images=np.zeros((3, 8, 8), np.uint8), train_labels=np.zeros((3, 1), np.uint8))
    yield out.getvalue()


def _ledgers() -> Iterator[bytes]:
    yield _ledger_file("ledger.sqlite")
    yield _ledger_of_version_1("ledger.sqlite")


def _ledger_anchors() -> Iterator[bytes]:
    yield _ledger_file("ledger.anchor")
    yield _ledger_of_version_1("ledger.anchor")


def _ledger_file(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(Path(folder) / "ledger", bytes(range(32)))
        event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 2.0, 0.1, 3)
        booking = Booking(Account.TRAINING, event, PrivacyUnit.RECORD, 1, 1e-5)
        ledger.record(RUN_ID, 1, booking, BudgetPolicy(10.0, 1e-5), Accountant.RDP)
        return (Path(folder) / "ledger" / name).read_bytes()


def _ledger_of_version_1(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_ledger(Path(folder) / "ledger")
        return (Path(folder) / "ledger" / name).read_bytes()


def _held() -> Iterator[bytes]:
    first = json.dumps({"previous": 64 * "0", "body": {"ledger": f"3:{'ab' * 32}", "epsilon": 0.5, "budget": 10.0}})
    previous = hashlib.sha256(f"{first}\n".encode()).hexdigest()
    yield f"{first}\n{json.dumps({'previous': previous, 'body': {'kind': 'signed'}})}\n".encode()


def _anchors() -> Iterator[bytes]:
    yield f"12:{'ab' * 32}".encode()


def _answered() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answered-rounds.json"
        AnsweredRoundsFile(path, "hospital").advance(RUN_ID, 1, Phase.MASKED_INPUT)
        yield path.read_bytes()


def _named() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMED_FILE
        NamedHospitals(path, "hospital").add(RUN_ID, ["st-anne", "st-mary"])
        yield path.read_bytes()


def _checkpoints() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        model = np.arange(6, dtype=np.float32)
        CheckpointStore(Path(folder)).save(
            Checkpoint(RUN_ID, 1, 1, model, {"momentum": model}, 1, RunProgress(threshold=0.5))
        )
        yield next(Path(folder).glob("step-*")).read_bytes()


def _models() -> Iterator[bytes]:
    yield safetensors.numpy.save({"weight": np.arange(6, dtype=np.float32).reshape(2, 3)})


def _cards() -> Iterator[bytes]:
    (tensors,) = _models()
    facts = ModelFacts(
        architecture="cnn", classes=("normal", "pneumonia"), channels=1, image_size=28, threshold=0.5, run_id=RUN_ID,
        task="pneumonia", data_set="phantom", privacy={"mode": "none"},
    )  # fmt: skip
    digest = hashlib.sha256(tensors).hexdigest()
    shapes = (TensorShape(name="weight", shape=(2, 3)),)
    card = ModelCard(**facts.model_dump(), preparation=PREPARATION, sha256=digest, tensors=shapes)
    yield card.model_dump_json().encode()


def _events() -> Iterator[bytes]:
    yield "".join(event.to_line() for event in example_run(rounds=1)).encode()


def _statuses() -> Iterator[bytes]:
    yield HospitalStatus(hospital="st-mary", time=1.0, epsilon_budget=10.0).model_dump_json().encode()


def _flower_requests() -> Iterator[bytes]:
    model = array_head(np.dtype(np.float32), 6) + np.arange(6, dtype=np.float32).tobytes()
    for encoded in _requests():
        yield _flower_message(encoded)
    yield _flower_message(encoded, array=ConfigRecordValue(bytes=model))
    yield _flower_message(encoded, pieces=ConfigRecordValue(string_list=StringList(vals=["ab" * 32])))


def _flower_replies() -> Iterator[bytes]:
    vector = array_head(np.dtype(np.uint16), 6) + np.arange(6, dtype=np.uint16).tobytes()
    for encoded in _replies():
        yield _flower_message(encoded)
    yield _flower_message(encoded, array=ConfigRecordValue(bytes=vector))
    pieces = [Piece(partial(bytes, part)).content().hex() for part in (vector[:-4], vector[-4:])]
    yield _flower_message(encoded, pieces=ConfigRecordValue(string_list=StringList(vals=pieces)))


def _flower_message(encoded: bytes, **values: ConfigRecordValue) -> bytes:
    both = {"message": ConfigRecordValue(bytes=encoded), **values}
    items = [ConfigRecord.Item(key=key, value=value) for key, value in both.items()]
    body = RecordDict.Item(key="body", config_record=ConfigRecord(items=items))
    metadata = Metadata(run_id=1, message_id="ab" * 32, src_node_id=1, dst_node_id=2, message_type="train", ttl=60.0)
    return bytes(Message(metadata=metadata, content=RecordDict(items=[body])).SerializeToString())


def _handovers() -> Iterator[bytes]:
    for encoded in _requests():
        yield b"CFM1" + len(encoded).to_bytes(4, "little") + (6).to_bytes(8, "little") + encoded + b"\0" * 6


def _summaries() -> Iterator[bytes]:
    yield (json.dumps(summary(RunHistory.of(example_run(rounds=1)))) + "\n").encode()


def _own_results() -> Iterator[bytes]:
    result = OwnResult(
        time=1.0, run_id=RUN_ID, round=1, records=10, accuracy=0.9, precision=0.9, recall=0.9, f1=0.9, specificity=0.9,
        auc=0.9, loss=0.1, ece=0.1, epsilon_spent=1.0,
    )  # fmt: skip
    yield (result.model_dump_json() + "\n").encode() * 2


def _settings() -> Iterator[bytes]:
    here = Path("/srv/confide")
    yield (
        ServerSettings(
            config=here, run=here, logs=here, run_id=RUN_ID, data_set="phantom", classes=("a", "b"), channels=1
        )
        .model_dump_json()
        .encode()
    )
    settings = HospitalSettings(fleet_address="confide.example.org:9092", logs=here, data=here, config=here)
    yield settings.model_dump_json().encode()


def _authority() -> tuple[identity.CertificateAuthority, bytes]:
    authority = identity.make_authority("Confide", NOW - datetime.timedelta(days=1))
    return authority, identity.certificate_pem(authority.certificate)


def _revocations() -> Iterator[bytes]:
    authority, pem = _authority()
    yield pem + sign_revocations(authority, {7: NOW}, 3, NOW, datetime.timedelta(days=30))


def _members() -> Iterator[bytes]:
    authority, pem = _authority()
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)).public_key() for number in (1, 2, 3)]
    members = {f"hospital-{number}": key.public_bytes_raw() for number, key in enumerate(keys, start=1)}
    yield pem + sign_members(authority, members, 7, NOW)
    yield pem + sign_members(authority, {}, 1, NOW)


def _deliveries() -> Iterator[bytes]:
    authority, pem = _authority()
    writer = Writer(*identity.make_tls_certificate(authority, ("localhost",), NOW, datetime.timedelta(days=30)))
    files = dict.fromkeys(NEEDED_FILES, FileFact(length_bytes=7, sha256="ab" * 32))
    yield pem + sign(RUN_ID, "cd" * 32, "3:" + "ef" * 32, files, ("hospital-1",), writer, NOW).encode()


def _ledger_statements() -> Iterator[bytes]:
    authority, pem = _authority()
    key = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
    request = identity.request_hospital_certificate("st-mary", key)
    issued = identity.sign_hospital_certificate(authority, request, "st-mary", NOW, datetime.timedelta(days=30))
    stated = state_ledger(identity.HospitalIdentity("st-mary", issued, key), f"3:{'ab' * 32}", 8.51, NOW)
    yield pem + stated.encode()


def _ledger_places() -> Iterator[bytes]:
    yield b'{"version": 1, "folder": "/srv/confide/ledger"}'


def _first_models() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        FIRST_MODEL.write(Path(folder) / FIRST_MODEL_FILE)
        yield (Path(folder) / FIRST_MODEL_FILE).read_bytes()


def _received_cards() -> Iterator[bytes]:
    yield b'{"tensors": [{"name": "weight", "shape": [2, 3]}]}'


def _received_facts() -> Iterator[bytes]:
    facts = expected_facts(DESCRIPTION, "phantom", {"a": 1.0}, None, None)
    yield json.dumps({**facts.model_dump(mode="json"), "sha256": "ab" * 32}).encode()


def _received_events() -> Iterator[bytes]:
    terms = DESCRIPTION
    started = RunStarted(
        time=1.0, run_id=RUN_ID, data_set="phantom", task=terms.experiment.task, rounds=terms.experiment.rounds,
        hospitals=("a",), config=Config(), config_hash=terms.hash().hex(), terms=terms.task,
    )  # fmt: skip
    done = RoundDone(
        time=2.0, round=1, step=1, accuracy=0.9, precision=0.9, recall=0.9, f1=0.9, auc=0.9, loss=0.1, epsilon=1.0,
        epsilon_spent={"a": 1.0}, hospitals=1, seconds=1.0, upload_bytes=1,
    )  # fmt: skip
    counted = Counted(
        time=2.0, tables={}, units=1, deviation=1.0, least=1.0, epsilon=1.0, claim=statistics_claim(terms, 1.0)
    )
    tested = Evaluated(
        time=3.0, step=1, exact=False, records=8, accuracy=0.9, precision=0.9, recall=0.9, f1=0.9, auc=0.9, loss=0.1,
        epsilon=1.0, claim=evaluation_claim(terms, 1.0),
    )  # fmt: skip
    told = (started, done, counted, tested, RunFinished(time=4.0, reason="completed", rounds_done=1))
    yield "".join(event.to_line() for event in told).encode()


def _received_runs() -> Iterator[bytes]:
    yield (
        ReceivedRun(
            run_id=RUN_ID, delivery="ab" * 32, time=1.8e9, task="pneumonia", steps=4, rounds=5, last_step_seen=4
        )
        .model_dump_json()
        .encode()
    )


def _audit_chains() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        run = audited_run(Path(folder) / "run")
        for path in (run.folder / AUDIT_FILE, run.chain_file("hospital-1")):
            yield run.authority_file.read_bytes() + path.read_bytes()


def _audit_entries() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        run = audited_run(Path(folder) / "run")
        chain = read_chain((run.folder / AUDIT_FILE).read_bytes(), AUDIT_FILE, run.authority.certificate)
        lines = [TypeAdapter(AuditEntry).dump_json(entry) for entry in chain.entries]
        yield run.authority_file.read_bytes() + b"\n".join(lines) + b"\n"


def _rosters() -> Iterator[bytes]:
    authority, pem = _authority()
    request = identity.request_hospital_certificate("st-mary", _fixed_key())
    issued = identity.sign_hospital_certificate(authority, request, "st-mary", NOW, datetime.timedelta(days=30))
    yield pem + yaml.safe_dump({"st-mary": identity.certificate_pem(issued).decode()}).encode()


def _invited() -> Iterator[bytes]:
    yield json.dumps({"name": "st-mary", "expires": 2e9, "group": None}).encode()
    yield json.dumps({"name": "st-mary", "expires": 2e9, "group": 3, "taken": {"ab" * 32: "st-mary-1"}}).encode()


def _registers() -> Iterator[bytes]:
    issued = [{"name": "st-mary", "serial": "7b", "expires": 2e9, "revoked": 1.7e9}]
    members = {"members": {"st-mary": "ab" * 32}, "members_number": 2, "members_issued": 1_700_000_000}
    yield json.dumps({"version": 2, "list_number": 3, "issued": issued, **members}).encode()


def _private_keys() -> Iterator[bytes]:
    yield identity.private_key_pem(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    yield identity.private_key_pem(identity.make_server_key())
    yield identity.openssh_private(identity.make_supernode_key())


def _standings() -> Iterator[bytes]:
    yield json.dumps({"answered": 1.0, "problem": None}).encode()


def _proposals() -> Iterator[bytes]:
    roster = {"a": "PEM", "b": "PEM", "c": "PEM"}
    description = DESCRIPTION.model_copy(update={"roster": roster})
    yield Proposal(description=description, data_set="phantom", hospitals=("a", "b", "c"), until=1).encode()


def _run_answers() -> Iterator[bytes]:
    left = {"training": AnsweredEpsilon(after=3.0, budget=10.0)}
    answer = RunAnswer(run_id=RUN_ID, proposal="ab" * 32, hospital="a", agreed=True, by="policy", epsilon=left)
    yield answer.signed(Ed25519PrivateKey.from_private_bytes(bytes(range(32)))).encode()


def _agreed_terms() -> Iterator[bytes]:
    yield json.dumps({"terms": terms_hash(DESCRIPTION), "until": None}).encode()


def _kept_runs() -> Iterator[bytes]:
    run = KeptRun(
        run_id=RUN_ID, number=1, state=RunState.AGREED, proposed=1.0, data_set="phantom", classes=("a", "b"),
        channels=1, hospitals=("a", "b", "c"), until=2**40,
    )  # fmt: skip
    yield msgspec.json.encode(run)


def _operator_requests() -> Iterator[bytes]:
    yield msgspec.json.encode(ShowRuns("1"))
    yield msgspec.json.encode(ChangeRun("1", "stop"))
    yield msgspec.json.encode(Propose({}, "phantom", ("a", "b"), 1, 64 * "0", 30.0, ("a",)))


def _prepared() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        cache = PreparedCache(Path(folder))
        with cache.build("key", 100, (1, 1, 1)) as writer:
            writer.commit(bytes(32))
        yield (Path(folder) / "prepared-key" / "index.json").read_bytes()


def _began_with() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        hold(Path(folder), RUN_ID, "ab" * 32)
        yield (Path(folder) / HELD_FILE).read_bytes()


def _catalogues() -> Iterator[bytes]:
    yield b"file,label,patient_id,split,mistake\na.png,normal,p1,train,image_damaged\nb.png,1,p2,,file_missing\n"


def _archives() -> Iterator[bytes]:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", compression) as archive:
            for name in ("a.dcm", "folder/b"):
                archive.writestr(zipfile.ZipInfo(name), b"DICM" * 20)
        yield content.getvalue()


def _pacs_access() -> Iterator[bytes]:
    yield b"dicomweb:\n  url: https://pacs.example.org/dicom-web\n  user: a\n  password: b\n  tls: {authority: a.pem}\n"
    yield b"dicom:\n  host: pacs.example.org\n  port: 104\n  called: PACS\n  calling: CONFIDE\n  unencrypted: yes\n"


def _pacs_matches() -> Iterator[bytes]:
    yield b'[{"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "00080061": {"vr": "CS", "Value": ["CR", "DX"]}}]'
    yield b"[]"


def _fetched() -> Iterator[bytes]:
    head = b"outcome,accession_number,study_instance_uid,study_date,images,size,reason,folder,taken\n"
    yield head + b'fetched,A1,1.2.3,20240101,1,900,,images/ab,CR\nfailed,"A,2",1.2.4,,0,0,1 image_damaged,,CR\n'


def _own_data() -> Iterator[bytes]:
    (picture, _) = _images()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("mine/covid/a.png", "mine/covid/b.png", "mine/normal/c.png", "mine/normal/d.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
    yield out.getvalue()


def _known_tables() -> Iterator[bytes]:
    yield b"Image Index,Finding Labels,Follow-up #,Patient ID\n1.png,No Finding,0,1\n2.png,Edema|Mass,0,2\n"


def _onnx_files() -> Iterator[bytes]:
    yield honest()


def _labels() -> Iterator[bytes]:
    yield b"accession_number,label\n7,normal\n8,pneumonia\n"
    book = openpyxl.Workbook()
    for row in (("Accession Number", "Label"), (7, "normal"), (8, "pneumonia")):
        book.worksheets[0].append(row)
    out = io.BytesIO()
    book.save(out)
    yield out.getvalue()


def _image_trees() -> Iterator[bytes]:
    (picture, _) = _images()
    for mode in ("w", "w:xz", "w:gz"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as archive:
            member = tarfile.TarInfo("xrays/train/NORMAL/a.png")
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
        yield out.getvalue()


def _dealt_shards() -> Iterator[bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("train/000000.png", b"picture")
        archive.writestr("manifest.csv", b"file,label\n")
    yield out.getvalue()


def _dealt_data_sets() -> Iterator[bytes]:
    yield json.dumps({"authority": "ab" * 32, "data_set": "phantom"}).encode()


def _stored_answers() -> Iterator[bytes]:
    answer = StoredAnswer(
        time=1.8e9, model="a" * 64, classes=("normal", "pneumonia"), image="b" * 64, file="1.dcm",
        accession_number="A1", study_instance_uid="", predicted="normal",
        probabilities={"normal": 0.7, "pneumonia": 0.3}, score=-0.85,
        brightness=0.5, contrast=0.2, distance=0.3, remarks=(),
    )  # fmt: skip
    yield answer.model_dump_json().encode() + b"\n"


_SEEDS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "request": _requests,
    "reply": _replies,
    "array": _arrays,
    "secagg": _secagg,
    "round-terms": _round_terms,
    "evaluation-state": _evaluation_states,
    "run-description": _descriptions,
    "enrolment": _enrolments,
    "invitation": _invitations,
    "certificate": _certificates,
    "hospital-request": _hospital_requests,
    "server-request": _server_requests,
    "supernode-key": _supernode_keys,
    "config": _configs,
    "manifest": _manifests,
    "shard-description": _shard_descriptions,
    "shard-image": _images,
    "raster": _images,
    "dicom": _dicom,
    "npz": _npz,
    "ledger": _ledgers,
    "ledger-anchor": _ledger_anchors,
    "ledger-held": _held,
    "anchor": _anchors,
    "answered-rounds": _answered,
    "named-hospitals": _named,
    "checkpoint": _checkpoints,
    "model": _models,
    "model-card": _cards,
    "events": _events,
    "status": _statuses,
    "flower-request": _flower_requests,
    "flower-reply": _flower_replies,
    "handover": _handovers,
    "summary": _summaries,
    "own-results": _own_results,
    "settings": _settings,
    "revocations": _revocations,
    "members": _members,
    "delivery": _deliveries,
    "ledger-statement": _ledger_statements,
    "ledger-place": _ledger_places,
    "received-model": _received_cards,
    "received-tensors": _models,
    "received-facts": _received_facts,
    "received-events": _received_events,
    "received-run": _received_runs,
    "audit-chain": _audit_chains,
    "audit-entries": _audit_entries,
    "roster": _rosters,
    "invited": _invited,
    "register": _registers,
    "private-keys": _private_keys,
    "standing": _standings,
    "proposal": _proposals,
    "run-answer": _run_answers,
    "agreed-terms": _agreed_terms,
    "kept-run": _kept_runs,
    "operator-request": _operator_requests,
    "prepared": _prepared,
    "began-with": _began_with,
    "catalogue": _catalogues,
    "labels": _labels,
    "stored-answers": _stored_answers,
    "archive": _archives,
    "pacs-access": _pacs_access,
    "pacs-matches": _pacs_matches,
    "fetched": _fetched,
    "image-tree": _image_trees,
    "own-data": _own_data,
    "known-table": _known_tables,
    "onnx": _onnx_files,
    "dealt-shard": _dealt_shards,
    "first-model": _first_models,
    "basis": _bases,
    "dealt-data-set": _dealt_data_sets,
}

if __name__ == "__main__":
    write_seeds(CORPUS)
