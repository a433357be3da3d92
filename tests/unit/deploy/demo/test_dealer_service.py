"""The dealer and a hospital over real TLS on the loopback interface."""

import datetime
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.config import Config, replace
from common.errors import DataError, RunError
from common.files import write_private
from common.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    make_authority,
    private_key_pem,
    request_hospital_certificate,
    sign_hospital_certificate,
)
from common.shards import read_manifest
from deploy.containers.between import dealt_data_set
from deploy.demo import dealer_service
from deploy.demo.dealer_service import HandingOut
from deploy.demo.dealing import Deal
from deploy.demo.dealt_shard import Dealer, fetch, has_shard

NOW = datetime.datetime.now(datetime.UTC)
NAMES = ("hospital-1", "hospital-2", "hospital-3")
CONFIG = replace(Config(), data={"source": "phantom", "phantom_records": 300}, training={"batch_size": 16})
DEADLINE_SECONDS = 30.0


def _identity(authority: CertificateAuthority, name: str, state: Path) -> Path:
    key = Ed25519PrivateKey.generate()
    certificate = sign_hospital_certificate(
        authority, request_hospital_certificate(name, key), name, NOW, datetime.timedelta(days=1)
    )
    write_private(state / "identity.key", private_key_pem(key))
    write_private(state / "identity.pem", certificate_pem(certificate))
    return state


class _Table:
    """A dealer that serves, and what its hospitals need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public = folder / "public"
        self.public.mkdir()
        self.authority = make_authority("test", NOW)
        dealer_service._make_certificate(folder / "dealer", self.public, "localhost")
        write = partial(
            dealer_service._write_shards, CONFIG, folder / "dealer" / "shards", self.public, self.authority.certificate
        )
        self.deal = Deal(folder / "dealer", len(NAMES), 0, 0.0, write)
        self.server = HandingOut(("127.0.0.1", 0), self.deal, self.authority.certificate, folder / "dealer")
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def dealer(self) -> Dealer:
        return Dealer("localhost", self.server.server_port, self.public / "dealer.pem")

    def start_deal(self, names: Sequence[str]) -> None:
        for name in names:
            self.deal.ask(name)
        self.deal.look(len(names), 0.0)

    def shard(self, name: str) -> Path:
        folder = self.folder / f"shard of {name}"
        folder.mkdir(exist_ok=True)
        return folder


@pytest.fixture
def table(tmp_path: Path) -> Iterator[_Table]:
    made = _Table(tmp_path)
    yield made
    made.close()


def test_hospitals_get_disjoint_shards_over_tls_and_the_dealer_keeps_nothing(table: _Table) -> None:
    table.start_deal(NAMES)
    seen: set[bytes] = set()
    images = 0
    for name in NAMES:
        state = _identity(table.authority, name, table.folder / name)
        fetch(table.dealer(), state, table.shard(name), DEADLINE_SECONDS)
        assert has_shard(table.shard(name))
        rows = read_manifest(table.shard(name))
        seen |= {(table.shard(name) / row.file).read_bytes() for row in rows}
        images += len(rows)
    assert images == len(seen) == CONFIG.data.phantom_records
    assert list((table.folder / "dealer" / "shards").iterdir()) == []
    assert dealt_data_set(table.public, table.authority.certificate) == "phantom-pneumonia"


def test_what_an_earlier_demo_dealt_is_not_taken_for_this_ones(table: _Table) -> None:
    assert dealt_data_set(table.public, table.authority.certificate) is None
    table.start_deal(NAMES)
    assert dealt_data_set(table.public, make_authority("later", NOW).certificate) is None


def test_a_second_shard_is_refused(table: _Table) -> None:
    table.start_deal(NAMES)
    state = _identity(table.authority, NAMES[0], table.folder / NAMES[0])
    fetch(table.dealer(), state, table.shard(NAMES[0]), DEADLINE_SECONDS)
    with pytest.raises(DataError, match="has had its shard"):
        fetch(table.dealer(), state, table.shard("again"), DEADLINE_SECONDS)


def test_who_comes_late_is_told_so(table: _Table) -> None:
    table.start_deal(NAMES)
    state = _identity(table.authority, "hospital-9", table.folder / "hospital-9")
    with pytest.raises(DataError, match="dealt before this hospital came"):
        fetch(table.dealer(), state, table.shard("hospital-9"), DEADLINE_SECONDS)


def test_a_stranger_gets_nothing(table: _Table) -> None:
    table.start_deal(NAMES)
    state = _identity(make_authority("other", NOW), NAMES[0], table.folder / "stranger")
    with pytest.raises(RunError, match="must deal within"):
        fetch(table.dealer(), state, table.shard("stranger"), 0.5)
    assert not has_shard(table.shard("stranger"))


def test_a_hospital_trusts_no_other_dealer(table: _Table) -> None:
    table.start_deal(NAMES)
    dealer_service._make_certificate(table.folder / "impostor", table.folder, "localhost")
    impostor = Dealer("localhost", table.server.server_port, table.folder / "dealer.pem")
    state = _identity(table.authority, NAMES[0], table.folder / NAMES[0])
    with pytest.raises(RunError, match="SSLCertVerificationError"):
        fetch(impostor, state, table.shard(NAMES[0]), 0.5)


def test_before_the_deal_a_hospital_waits(table: _Table) -> None:
    state = _identity(table.authority, NAMES[0], table.folder / NAMES[0])
    with pytest.raises(RunError, match="nothing was dealt"):
        fetch(table.dealer(), state, table.shard(NAMES[0]), 0.5)
    assert table.deal.hospitals == ()


def test_a_hospital_that_starts_before_the_dealer_has_its_certificate_waits_for_it(table: _Table) -> None:
    certificate = table.dealer().certificate
    away = certificate.rename(certificate.with_suffix(".away"))
    state = _identity(table.authority, NAMES[0], table.folder / NAMES[0])
    with pytest.raises(RunError, match="FileNotFoundError"):
        fetch(table.dealer(), state, table.shard(NAMES[0]), 0.5)
    away.rename(certificate)
    table.start_deal(NAMES)
    fetch(table.dealer(), state, table.shard(NAMES[0]), DEADLINE_SECONDS)
    assert has_shard(table.shard(NAMES[0]))
