"""Every decoder of bytes that come from outside, in one table, so that each can be fed with what nobody should send.

A decoder takes the bytes, or refuses them with its typed error; anything else it raises is a defect. Fuzzed by the fast
tests (``tests/fuzz``, with Hypothesis) and, guided by coverage, by ``confide fuzz``.
"""

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import safetensors.numpy

from client.data import dicom, npz
from client.data.pixels import UnusableImageError, read_raster
from client.ledger import FINGERPRINT_BYTES, LEDGER_FOLDER, accept, verify
from client.ledger_chain import Anchor
from client.round_state import AnsweredRoundsFile
from client.status import HospitalStatus
from common import enrolment, identity, messages, shards
from common.config import RunDescription, load_config
from common.errors import ConfideError, IdentityError, LedgerError
from common.events import EventFile
from common.invitation import Invitation
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place, SecAggError
from common.secagg.phases import Phase
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, ModelCard, TensorShape, load_model
from server.checkpoints import CheckpointStore

REFUSALS = (ConfideError, UnusableImageError)
"""How a decoder refuses; the second is how a reader of images tells the examination of a hospital's data."""

RUN_ID = "0123456789abcdef0123456789abcdef"
"""Of the checkpoints in the corpus."""

_TENSORS = safetensors.numpy.save({"weight": np.arange(6, dtype=np.float32).reshape(2, 3)})
"""A model file, for cards."""

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
    for message_type in (enrolment.Join, enrolment.Standing, enrolment.Stands):
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
    """Read as a ledger's database, and where that is refused as one whose operator goes on with what it tells."""
    with _file(f"{LEDGER_FOLDER}/ledger.sqlite", content) as path:
        try:
            return verify(path.parent)
        except LedgerError:
            return accept(path.parent, "what is known to be spent stays spent", bytes(FINGERPRINT_BYTES))


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
    with _file("events.jsonl", content) as path:
        return EventFile(path).read_new()


def _array(content: bytes) -> object:
    """Read one array whole, as a hospital does, and in pieces, as a server does."""
    with suppress(ConfideError):
        messages.join_array((content[:100], content[100:]), len(content))
    return messages.read_array(content)


def _status(content: bytes) -> object:
    with _file("status.json", content) as path:
        return HospitalStatus.read(path)


DECODERS = (
    Decoder("request", messages.decode_request),
    Decoder("reply", messages.decode_reply),
    Decoder("array", _array),
    Decoder("secagg", _secagg),
    Decoder("run-description", RunDescription.from_json),
    Decoder("enrolment", _enrolment),
    Decoder("invitation", lambda content: Invitation.decode(content.decode("utf-8", "replace"))),
    Decoder("certificate", _certificate),
    Decoder("hospital-request", identity.requested_hospital_key),
    Decoder("server-request", identity.requested_hosts),
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
    Decoder("anchor", _anchor),
    Decoder("answered-rounds", _answered_rounds),
    Decoder("checkpoint", _checkpoint),
    Decoder("model", _model),
    Decoder("model-card", _model_card),
    Decoder("events", _events),
    Decoder("status", _status),
)


def feed(decoder: Decoder, content: bytes) -> bool:
    """Return whether the decoder takes the bytes; whatever it raises beside a refusal goes through."""
    try:
        decoder.decode(content)
    except REFUSALS:
        return False
    return True
