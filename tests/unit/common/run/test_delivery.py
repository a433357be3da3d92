"""A delivery is the server's: one that was changed, or signed by somebody else, is refused."""

import datetime

import pytest

from common.audit.parties import Writer
from common.errors import IdentityError, RunError
from common.identity.certificates import make_authority, make_tls_certificate
from common.run.delivery import MAXIMUM_READ_WHOLE_BYTES, NEEDED_FILES, FileFact, read_delivery, sign

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


@pytest.mark.parametrize("name", MAXIMUM_READ_WHOLE_BYTES)
def test_a_file_that_would_fill_a_hospitals_memory_is_refused_by_name_before_it_is_fetched(name: str) -> None:
    most = MAXIMUM_READ_WHOLE_BYTES[name]
    for length in (most, most + 1):
        files = {**FILES, name: FileFact(length_bytes=length, sha256="ab" * 32)}
        signed = sign("c0" * 16, "cd" * 32, f"7:{'ef' * 32}", files, ("st-anne",), SERVER, NOW)
        if length == most:
            assert read_delivery(signed.encode(), AUTHORITY.certificate) == signed
            continue
        with pytest.raises(RunError, match=f"{name} must be at most {most} bytes"):
            read_delivery(signed.encode(), AUTHORITY.certificate)


@pytest.mark.parametrize("name", ["report.html", "model_card.md", "summary.json", "evil.html"])
def test_a_page_is_not_taken_from_the_server(name: str) -> None:
    files = {**FILES, name: FILES["model.json"]}
    signed = sign("c0" * 16, "cd" * 32, f"7:{'ef' * 32}", files, ("st-anne",), SERVER, NOW)
    with pytest.raises(RunError, match="and nothing else"):
        read_delivery(signed.encode(), AUTHORITY.certificate)
