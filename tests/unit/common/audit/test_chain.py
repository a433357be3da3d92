"""An audit chain survives kills, full disks and restarts, and shows whatever was done to it by hand."""

import base64
import datetime
import errno
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.audit.chain import AuditChain, read_chain
from common.audit.entries import Identified, JoinedRun
from common.audit.parties import verify_party
from common.errors import AuditError, IdentityError
from common.identity.certificates import CertificateAuthority, make_authority
from tests.support.audited_run import server_writer

NOW = datetime.datetime.now(datetime.UTC)
ENTRY = JoinedRun(run_id="0" * 32, config_hash="1" * 64)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return make_authority("Test", NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "audit.jsonl"


def test_entries_come_back_in_order_with_their_writer(path: Path, authority: CertificateAuthority) -> None:
    AuditChain(path, server_writer(authority, NOW)).append(ENTRY)
    chain = read_chain(path.read_bytes(), "audit.jsonl", authority.certificate)
    assert chain.party == "the server"
    assert [type(entry.body) for entry in chain.entries] == [Identified, JoinedRun]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_restart_goes_on_with_the_same_chain_and_another_key(path: Path, authority: CertificateAuthority) -> None:
    for _ in range(3):
        AuditChain(path, server_writer(authority, NOW)).append(ENTRY)
    chain = read_chain(path.read_bytes(), "audit.jsonl", authority.certificate)
    assert [entry.sequence for entry in chain.entries] == [1, 2, 3, 4, 5, 6]
    assert len({key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in chain.keys}) == 3


def test_two_processes_of_a_party_write_one_chain_in_turn(path: Path, authority: CertificateAuthority) -> None:
    identity = server_writer(authority, NOW)
    agent, operator = AuditChain(path, identity), AuditChain(path, identity)
    for writer in (agent, operator, operator, agent):
        writer.append(ENTRY)
    with path.open("ab") as file:
        file.write(b'{"torn')  # A third one was killed.
    agent.append(ENTRY)
    operator.append(ENTRY)
    chain = read_chain(path.read_bytes(), "audit.jsonl", authority.certificate)
    assert [type(entry.body) for entry in chain.entries] == [Identified, Identified, *6 * [JoinedRun]]


@pytest.mark.parametrize("torn", [b"{", b'{"version":1,"seq', b"\x00" * 40])
def test_a_line_that_a_kill_cut_short_is_dropped_at_the_next_start(
    path: Path, authority: CertificateAuthority, torn: bytes
) -> None:
    identity = server_writer(authority, NOW)
    AuditChain(path, identity).append(ENTRY)
    with path.open("ab") as file:
        file.write(torn)
    with pytest.raises(AuditError, match="must end in a newline"):
        read_chain(path.read_bytes(), "audit.jsonl", authority.certificate)
    AuditChain(path, identity).append(ENTRY)
    assert len(read_chain(path.read_bytes(), "audit.jsonl", authority.certificate).entries) == 4


def test_a_full_disk_leaves_no_half_line(
    path: Path, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = AuditChain(path, server_writer(authority, NOW))
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr("common.audit.chain.os.write", lambda descriptor, line: write(descriptor, line[:10]))
    with pytest.raises(AuditError, match="the disk is full"):
        chain.append(ENTRY)

    def refuse(_descriptor: int, _line: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("common.audit.chain.os.write", refuse)
    with pytest.raises(AuditError, match="No space left"):
        chain.append(ENTRY)
    assert path.read_bytes() == before
    monkeypatch.setattr("common.audit.chain.os.write", write)
    chain.append(ENTRY)
    assert len(read_chain(path.read_bytes(), "audit.jsonl", authority.certificate).entries) == 2


def test_a_certificate_that_was_not_valid_when_it_signed_is_refused(path: Path) -> None:
    future = make_authority("Test", NOW + datetime.timedelta(days=400))
    AuditChain(path, server_writer(future, NOW + datetime.timedelta(days=400)))
    with pytest.raises(AuditError, match="line 1: the server's certificate must be valid when it was used"):
        read_chain(path.read_bytes(), "audit.jsonl", future.certificate)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"null\n", b"[1]\n", b"\xff\xfe\n", b'{"version":2}\n'])
def test_what_is_no_chain_is_refused(content: bytes, authority: CertificateAuthority) -> None:
    with pytest.raises(AuditError, match=r"audit\.jsonl"):
        read_chain(content, "audit.jsonl", authority.certificate)


def test_a_certificate_of_a_version_that_there_is_not_is_refused_by_name(authority: CertificateAuthority) -> None:
    encoded = bytearray(authority.certificate.public_bytes(Encoding.DER))
    version = encoded.index(b"\xa0\x03\x02\x01\x02") + 4
    encoded[version] = 10
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(encoded)) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(IdentityError, match="PEM certificate"):
        verify_party(pem, authority.certificate, NOW)
