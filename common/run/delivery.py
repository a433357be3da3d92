"""What a finished run hands to its hospitals: its files, named and signed by the server with the run's chain head.

Trust rules for whoever receives one:

1. The certificate in it is the server's, issued by the consortium's authority, and was valid when it was signed.
2. The signature covers every other field.
3. Each file has the length and the SHA-256 that stand here; no other file belongs to it.
4. The server's audit chain, one of the files, ends in the line that stands here, and records the model that does.

What a hospital checks beyond that, against its own chain, is in ``client/kept_runs.py``.
"""

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.audit.entries import Hash, Hexadecimal
from common.audit.parties import SERVER_PARTY, Writer, is_signed_by, verify_party
from common.canonical import canonical_json
from common.complaints import complaint
from common.config import RunId
from common.errors import IdentityError, RunError
from common.identity.certificates import certificate_pem

VERSION: Final = 1
DELIVERY_FILE = "delivery.json"
"""The name of the file in a run's folder; the last that is written there."""
AUTHORITY_FILE = "ca.pem"
"""The name of the authority's certificate, in a state folder and in a run's folder."""

MODEL_FILES = ("model.safetensors", "model.json")
"""A model and what it is (``deploy/results/model_file.py``)."""
NEEDED_FILES = (*MODEL_FILES, "audit.jsonl", "events.jsonl")
"""All that is handed over. The chain vouches for each; what follows from them (``report.html``, ``model_card.md``,
``summary.json``, ``metrics.csv``) a hospital makes itself with ``confide report``: a page that the server wrote could
bring a script into a hospital's browser, and nothing vouches for its words."""

MAXIMUM_DELIVERY_BYTES = 256 * 1024
MAXIMUM_FILE_BYTES = 2 * 2**30
"""The most bytes of one file: room for a model of 500 million parameters."""
MAXIMUM_READ_WHOLE_BYTES = {
    # A line of a round takes about 1 KiB for each hospital in its sum: room for 4,000 rounds of 64 hospitals.
    "audit.jsonl": 256 * 2**20,
    # Names and shapes of tensors, 100 bytes each, and of at most 256 classes: room for 40,000 tensors.
    "model.json": 4 * 2**20,
    # A round's events take some KiB, and 1 KiB more for each hospital; `confide report` reads them in one piece.
    "events.jsonl": 256 * 2**20,
}
"""The most bytes of the files that a process of a hospital reads into its memory in one piece; it must not be possible
to end it with a file that is larger than its memory. A model is read a tensor at a time, and is no larger than its run
says (``client/received_run.py``)."""

_DOMAIN = b"confide delivery 1\x00"
"""Signed before the fields, so that no other message of Confide can pass for a delivery."""


class FileFact(BaseModel):
    """The length and the SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    length_bytes: Annotated[int, Field(ge=0, le=MAXIMUM_FILE_BYTES)]
    sha256: Hash


class Delivery(BaseModel):
    """``delivery.json``: what is handed over, and to whom."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    run_id: RunId
    time: Annotated[int, Field(ge=0, le=2**53)]
    """Unix seconds on the server's clock, when it was signed."""
    model_hash: Hash
    """The hash that the audit chain records of the run's last model (``common/run/flat_model.py``)."""
    chain_head: Annotated[str, Field(pattern=r"^[0-9]{1,15}:[0-9a-f]{64}$")]
    """The number and the hash of the last line of the server's chain."""
    files: dict[str, FileFact]
    hospitals: Annotated[tuple[str, ...], Field(max_length=1024)]
    """Who was on the run's roster, and may have it."""
    certificate: Annotated[str, Field(max_length=16_384)]
    """The server's, PEM."""
    signature: Hexadecimal = ""

    def encode(self) -> bytes:
        """Return the content of the file, in canonical form."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    def digest(self) -> str:
        """Return the SHA-256 of :meth:`encode`, in hexadecimal."""
        return hashlib.sha256(self.encode()).hexdigest()

    def signed_part(self) -> bytes:
        """Return what the signature is over."""
        return _DOMAIN + canonical_json(self.model_dump(mode="json", exclude={"signature"}))


def sign(
    run_id: str,
    model_hash: str,
    head: str,
    files: Mapping[str, FileFact],
    hospitals: tuple[str, ...],
    writer: Writer,
    now: datetime.datetime,
) -> Delivery:
    """Return a delivery signed by the server.

    Args:
        run_id: of the run.
        model_hash: of its last model, in hexadecimal.
        head: of the server's audit chain, ``NUMBER:HASH``.
        files: name to fact; :data:`NEEDED_FILES`.
        hospitals: who may have it.
        writer: the server's certificate and key.
        now: the current time.
    """
    unsigned = Delivery(
        run_id=run_id,
        time=int(now.timestamp()),
        model_hash=model_hash,
        chain_head=head,
        files=dict(files),
        hospitals=hospitals,
        certificate=certificate_pem(writer.certificate).decode(),
    )
    return unsigned.model_copy(update={"signature": writer.sign(unsigned.signed_part()).hex()})


def read_delivery(content: bytes, authority: x509.Certificate) -> Delivery:
    """Read a delivery and verify that the consortium's server signed it.

    Args:
        content: of ``delivery.json``.
        authority: the consortium's.

    Raises:
        RunError: it is no delivery of this version, lacks a file that belongs to one, names another, or names one that
            is too large.
        IdentityError: the signature or the certificate is not the server's.
    """
    if len(content) > MAXIMUM_DELIVERY_BYTES:
        raise RunError(f"{DELIVERY_FILE} must be at most {MAXIMUM_DELIVERY_BYTES} bytes long, got {len(content)}")
    try:
        delivery = Delivery.model_validate_json(content)
    except ValidationError as error:
        raise RunError(f"{DELIVERY_FILE} must be a delivery of version {VERSION}; {complaint(error, 'it')}") from None
    if delivery.files.keys() != set(NEEDED_FILES):
        raise RunError(f"{DELIVERY_FILE} must name {', '.join(NEEDED_FILES)} and nothing else")
    for name, most in MAXIMUM_READ_WHOLE_BYTES.items():
        if (length := delivery.files[name].length_bytes) > most:
            raise RunError(f"{name} must be at most {most} bytes long to be read by a hospital, got {length}")
    try:
        when = datetime.datetime.fromtimestamp(delivery.time, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise RunError(f"{DELIVERY_FILE} must say when it was signed") from None
    party, key = verify_party(delivery.certificate.encode(), authority, when)
    if party != SERVER_PARTY:
        raise IdentityError(f"{DELIVERY_FILE} must be signed by the consortium's server, got a certificate of {party}")
    if not is_signed_by(key, bytes.fromhex(delivery.signature), delivery.signed_part()):
        raise IdentityError(f"{DELIVERY_FILE} must be signed by the consortium's server; it was changed")
    if delivery.encode() != content:
        raise RunError(f"{DELIVERY_FILE} must be in canonical form; it was changed")
    return delivery


def file_fact(path: Path) -> FileFact:
    """Return the length and the hash of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFact(length_bytes=path.stat().st_size, sha256=digest)


def chain_head(content: bytes) -> str:
    r"""Return ``NUMBER:HASH`` of a chain's last line, which must end in a newline.

    >>> chain_head(b"one line\n")[:14]
    '1:3887c2cd3bec'

    Raises:
        RunError: there is no whole line.
    """
    if not content.endswith(b"\n"):
        raise RunError("an audit chain must end in a whole line")
    number, last = content.count(b"\n"), content[content.rfind(b"\n", 0, -1) + 1 :]
    return f"{number}:{hashlib.sha256(last).hexdigest()}"
