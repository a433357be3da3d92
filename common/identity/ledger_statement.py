"""What a hospital states to its consortium about its ledger: the newest line, and ε, signed with its identity key.

It depends on what was booked and on the hospital's own policy, and on nothing else. A line's digest is a hash over a
random number of the ledger's first line, so it shows nothing of the data that it is bound to; how many lines there are
is how often something was booked.
"""

import datetime
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.audit.entries import Hexadecimal
from common.audit.parties import Writer, is_signed_by, verify_party
from common.canonical import canonical_json
from common.complaints import complaint
from common.errors import IdentityError
from common.identity.certificates import HospitalIdentity, certificate_pem

VERSION: Final = 1
MAXIMUM_STATEMENT_BYTES = 8192

_DOMAIN = b"confide ledger statement 1\x00"


class LedgerStatement(BaseModel):
    """One hospital's statement."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    hospital: Annotated[str, Field(max_length=64)]
    time: Annotated[int, Field(ge=0, le=2**53)]
    """Unix seconds on the hospital's clock."""
    ledger: Annotated[str, Field(pattern=r"^[0-9]{1,15}:[0-9a-f]{64}$")]
    """The newest line, ``SEQUENCE:DIGEST``."""
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """The ε spent on training over all runs, by the hospital's own policy and the PRV accountant, rounded up."""
    certificate: Annotated[str, Field(max_length=4096)]
    """The hospital's, PEM."""
    signature: Hexadecimal = ""

    def encode(self) -> bytes:
        """Return the statement as it is sent and kept."""
        return canonical_json(self.model_dump(mode="json"))

    def signed_part(self) -> bytes:
        """Return what the signature is over."""
        return _DOMAIN + canonical_json(self.model_dump(mode="json", exclude={"signature"}))


def state_ledger(identity: HospitalIdentity, head: str, epsilon: float, now: datetime.datetime) -> LedgerStatement:
    """Return a hospital's signed statement.

    Args:
        identity: the hospital's.
        head: its ledger's newest line, ``SEQUENCE:DIGEST``.
        epsilon: spent on training.
        now: the current time.
    """
    unsigned = LedgerStatement(
        hospital=identity.name,
        time=int(now.timestamp()),
        ledger=head,
        epsilon=epsilon,
        certificate=certificate_pem(identity.certificate).decode(),
    )
    signature = Writer(identity.certificate, identity.key).sign(unsigned.signed_part())
    return unsigned.model_copy(update={"signature": signature.hex()})


def read_statement(encoded: bytes, authority: x509.Certificate) -> LedgerStatement:
    """Read a statement, and verify that a hospital of this consortium signed it.

    The certificate must have been valid when it was signed; it may have expired or been revoked since, because a
    statement outlives a membership.

    Raises:
        IdentityError: it is no statement, or is not signed by the hospital that it names.
    """
    if len(encoded) > MAXIMUM_STATEMENT_BYTES:
        raise IdentityError(f"a statement about a ledger must be at most {MAXIMUM_STATEMENT_BYTES} bytes long")
    try:
        statement = LedgerStatement.model_validate_json(encoded)
        when = datetime.datetime.fromtimestamp(statement.time, datetime.UTC)
    except ValidationError as error:
        raise IdentityError(
            f"a statement about a ledger must be of version {VERSION}; {complaint(error, 'it')}"
        ) from None
    except (ValueError, OverflowError, OSError):
        raise IdentityError("a statement about a ledger must say when it was signed") from None
    party, key = verify_party(statement.certificate.encode(), authority, when)
    if party != statement.hospital or not is_signed_by(
        key, bytes.fromhex(statement.signature), statement.signed_part()
    ):
        raise IdentityError(f"a statement about the ledger of {statement.hospital} must be signed by that hospital")
    return statement
