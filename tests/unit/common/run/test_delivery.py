"""A delivery is the server's: one that was changed, or signed by somebody else, is refused."""

import datetime

import pytest

from common.audit.parties import Writer
from common.errors import IdentityError
from common.identity.certificates import make_authority, make_tls_certificate
from common.run.delivery import NEEDED_FILES, FileFact, read_delivery, sign

NOW = datetime.datetime.now(datetime.UTC)
AUTHORITY = make_authority("test", NOW)
SERVER = Writer(*make_tls_certificate(AUTHORITY, ("localhost",), NOW, datetime.timedelta(days=1)))
FILES = {name: FileFact(length_bytes=3, sha256="ab" * 32) for name in NEEDED_FILES}
SIGNED = sign("c0" * 16, "cd" * 32, f"7:{'ef' * 32}", FILES, ("st-anne",), SERVER, NOW)


def test_what_the_server_signed_reads_back() -> None:
    assert read_delivery(SIGNED.encode(), AUTHORITY.certificate) == SIGNED


@pytest.mark.parametrize(
    "change",
    [{"signature": "00" * 64}, {"signature": ""}, {"model_hash": "12" * 32}, {"hospitals": ("st-john",)}],
    ids=lambda change: next(iter(change)),
)
def test_a_delivery_that_the_server_did_not_sign_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(IdentityError, match="it was changed"):
        read_delivery(SIGNED.model_copy(update=change).encode(), AUTHORITY.certificate)
