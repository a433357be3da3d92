"""Writes the seeds of the corpus: for each decoder a few files that it takes. ``python -m tests.fuzz.make_corpus``."""

import datetime
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from pydicom.data import get_testdata_file

from client.ledger import Ledger
from client.round_state import AnsweredRoundsFile
from client.status import HospitalStatus
from common import enrolment, identity, messages, shards
from common.config import Config, RunDescription
from common.invitation import TOKEN_BYTES, Invitation
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind
from common.secagg.phases import Phase
from deploy.resilience.bad_bytes import DECODERS, RUN_ID, feed
from deploy.results.model_file import ModelCard, ModelFacts, TensorShape
from server.checkpoints import Checkpoint, CheckpointStore
from tests.example_run import example_run

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
    yield messages.encode(messages.AdvertiseKeys(run_description=b"{}", round_number=1))
    yield messages.encode(messages.ShareKeys(run_id=RUN_ID, round_number=1, directory=b"abc"))
    yield messages.encode(messages.CheckConsistency(run_id=RUN_ID, round_number=1, survivors=b"abc"))


def _replies() -> Iterator[bytes]:
    yield messages.encode(messages.KeysShared(shares=b"abc"))
    yield messages.encode(messages.Refused(hospital="hospital-1", code="budget", reason="spent", is_attack=False))


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


def _enrolments() -> Iterator[bytes]:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    request = identity.request_hospital_certificate("st-mary", key)
    yield enrolment.encode(enrolment.Join(token=bytes(TOKEN_BYTES), request=request, supernode=b"key"))
    yield enrolment.encode(enrolment.Waiting())


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
    (request,) = _hospital_requests()
    yield identity.certificate_pem(
        identity.sign_hospital_certificate(authority, request, "st-mary", NOW, datetime.timedelta(days=30))
    )


def _hospital_requests() -> Iterator[bytes]:
    yield identity.request_hospital_certificate("st-mary", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def _server_requests() -> Iterator[bytes]:
    yield identity.request_server_certificate(("confide.example.org", "127.0.0.1"), identity.make_server_key())


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


def _ledger_anchors() -> Iterator[bytes]:
    yield _ledger_file("ledger.anchor")


def _ledger_file(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(Path(folder) / "ledger", bytes(range(32)))
        event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 2.0, 0.1, 3)
        ledger.record(RUN_ID, 1, event, 10.0, 1e-5, Accountant.RDP)
        return (Path(folder) / "ledger" / name).read_bytes()


def _anchors() -> Iterator[bytes]:
    yield f"12:{'ab' * 32}".encode()


def _answered() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answered-rounds.json"
        AnsweredRoundsFile(path, "hospital").advance(RUN_ID, 1, Phase.MASKED_INPUT)
        yield path.read_bytes()


def _checkpoints() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        model = np.arange(6, dtype=np.float32)
        CheckpointStore(Path(folder)).save(Checkpoint(RUN_ID, 1, 1, model, {"momentum": model}, 1, {"upload": 1}))
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
    yield ModelCard(**facts.model_dump(), sha256=digest, tensors=shapes).model_dump_json().encode()


def _events() -> Iterator[bytes]:
    yield "".join(event.to_line() for event in example_run(rounds=1)).encode()


def _statuses() -> Iterator[bytes]:
    yield HospitalStatus(hospital="st-mary", time=1.0, epsilon_budget=10.0).model_dump_json().encode()


_SEEDS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "request": _requests,
    "reply": _replies,
    "array": _arrays,
    "secagg": _secagg,
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
    "anchor": _anchors,
    "answered-rounds": _answered,
    "checkpoint": _checkpoints,
    "model": _models,
    "model-card": _cards,
    "events": _events,
    "status": _statuses,
}

if __name__ == "__main__":
    write_seeds(CORPUS)
