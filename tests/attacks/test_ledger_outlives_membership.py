"""To be revoked and invited again buys nobody a new budget: a ledger belongs to the data, and others remember it."""

import datetime as dt
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.ledger.ledger import Ledger, accept
from client.ledger.place import (
    DIGEST_BYTES,
    IMAGES_FILE,
    PLACE_FILE,
    STATES_FILE,
    go_on_with,
    held_line,
    ledger_folder,
    open_ledger,
)
from client.ledger.remembered import keep_remembered, remembered
from common.config import EnrolmentConfig, PrivacyUnit
from common.errors import EnrolmentError, IdentityError, LedgerError
from common.files import write_private
from common.identity.certificates import (
    HospitalIdentity,
    certificate_pem,
    make_supernode_key,
    openssh_public,
    read_certificate,
    request_hospital_certificate,
)
from common.identity.enrolment import JoinedReply, JoinRequest, LedgerRequest
from common.identity.ledger_statement import read_statement, state_ledger
from common.privacy.accounting import MechanismEvent, MechanismKind
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.settings import ServerSettings
from server.members.authority import Authority
from server.members.certificates import Certificates
from server.members.enrolment import Enrolment
from server.members.ledgers import RememberedLedgers
from server.members.results import FinishedRuns
from server.members.roster import Membership
from server.run_queue import RunQueue

NOW = dt.datetime.now(dt.UTC)
RUN_ID = "0123456789abcdef0123456789abcdef"
EVENT = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 1.0, 0.1, 10)
BOOKING = Booking(Account.TRAINING, EVENT, PrivacyUnit.RECORD, None, 1e-4)
POLICY = BudgetPolicy(100.0, 1e-4)


@dataclass(frozen=True)
class Images:
    """A hospital's images as its ledger sees them: what names them together, and each one."""

    digests: tuple[bytes, ...]

    @classmethod
    def some(cls, number: int) -> "Images":
        return cls(tuple(os.urandom(DIGEST_BYTES) for _ in range(number)))

    def and_also(self, other: "Images") -> "Images":
        return Images((*self.digests, *other.digests))

    def open(self, state: Path, registry: Path | None) -> Ledger:
        return open_ledger(state, self.fingerprint, b"".join(self.digests), registry)

    @property
    def fingerprint(self) -> bytes:
        return hashlib.sha256(b"".join(self.digests)).digest()


def spend(ledger: Ledger, rounds: int = 1) -> float:
    spent = 0.0
    for number in range(rounds):
        spent = ledger.record(RUN_ID, number, BOOKING, POLICY)
    return spent


def spent_by(ledger: Ledger) -> float:
    return ledger.spent(Account.TRAINING, POLICY)


def test_a_new_state_folder_goes_on_with_the_ledger_that_this_machine_knows(tmp_path: Path) -> None:
    images, registry = Images.some(5), tmp_path / "machine"
    spent = spend(images.open(tmp_path / "old", registry), 3)
    again = images.open(tmp_path / "new", registry)
    assert spent_by(again) == spent
    assert ledger_folder(tmp_path / "new") == tmp_path / "old" / "ledger"
    assert spend(again) > spent
    assert spent_by(images.open(tmp_path / "old", registry)) > spent


def test_one_image_in_common_is_enough_and_none_is_not(tmp_path: Path) -> None:
    images, registry = Images.some(5), tmp_path / "machine"
    spent = spend(images.open(tmp_path / "old", registry))
    shared = Images.some(4).and_also(Images(images.digests[:1]))
    assert spent_by(shared.open(tmp_path / "new", registry)) == spent
    assert spent_by(Images.some(4).open(tmp_path / "other", registry)) == 0.0


def test_a_ledger_is_given_where_this_machine_does_not_know_it(tmp_path: Path) -> None:
    images = Images.some(5)
    spent = spend(images.open(tmp_path / "old", tmp_path / "another machine"))
    go_on_with(tmp_path / "new", tmp_path / "old")
    assert spent_by(images.open(tmp_path / "new", tmp_path / "machine")) == spent
    with pytest.raises(LedgerError, match="must be the folder of a ledger"):
        go_on_with(tmp_path / "newer", tmp_path / "machine")
    spend(Images.some(3).open(tmp_path / "own", None))
    with pytest.raises(LedgerError, match="cannot take another"):
        go_on_with(tmp_path / "own", tmp_path / "old")


def test_a_ledger_that_was_given_and_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    images = Images.some(5)
    spend(images.open(tmp_path / "old", None))
    go_on_with(tmp_path / "new", tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(LedgerError, match="must lie where it was"):
        images.open(tmp_path / "new", None)


def test_images_that_two_ledgers_know_are_refused(tmp_path: Path) -> None:
    one, other, registry = Images.some(5), Images.some(5), tmp_path / "machine"
    spend(one.open(tmp_path / "one", registry))
    spend(other.open(tmp_path / "other", registry))
    for state in ("one", "third"):
        with pytest.raises(LedgerError, match="must be counted by one ledger"):
            one.and_also(other).open(tmp_path / state, registry)


def test_grown_and_corrected_data_goes_on_and_an_image_that_left_stays_known(tmp_path: Path) -> None:
    images, more, registry = Images.some(5), Images.some(2), tmp_path / "machine"
    spent = spend(images.open(tmp_path / "state", registry))
    grown = images.and_also(more)
    assert spent_by(grown.open(tmp_path / "state", registry)) == spent
    only_new = Images(more.digests)
    assert spent_by(only_new.open(tmp_path / "state", registry)) == spent
    # The images that were taken away have spent what they had.
    assert spent_by(images.open(tmp_path / "elsewhere", registry)) == spent


def test_data_without_any_image_in_common_needs_the_operator_and_keeps_what_is_spent(tmp_path: Path) -> None:
    spent = spend(Images.some(5).open(tmp_path / "state", None))
    other = Images.some(4)
    with pytest.raises(LedgerError, match="bound to another data set"):
        other.open(tmp_path / "state", None)
    accept(tmp_path / "state" / "ledger", "a new archive", other.fingerprint)
    assert spent_by(other.open(tmp_path / "state", None)) == spent


@pytest.mark.parametrize("name", [IMAGES_FILE, STATES_FILE])
def test_what_stands_beside_a_ledger_is_not_trusted_when_it_was_changed(tmp_path: Path, name: str) -> None:
    images = Images.some(5)
    spend(images.open(tmp_path / "state", None))
    write_private(tmp_path / "state" / "ledger" / name, b"nothing")
    with pytest.raises(LedgerError, match="it was changed"):
        images.open(tmp_path / "state", None)


@pytest.mark.parametrize("content", [b"", b"{}x", b'{"version": 7}', b'{"version": 1, "ledgers": 3}'])
def test_a_damaged_list_of_ledgers_switches_no_rule_off(tmp_path: Path, content: bytes) -> None:
    images, registry = Images.some(5), tmp_path / "machine"
    spent = spend(images.open(tmp_path / "old", registry))
    whole = (registry / "ledgers.json").read_bytes()
    (registry / "ledgers.json").write_bytes(content)
    for state in ("old", "new"):
        with pytest.raises(LedgerError, match="must list the ledgers of this machine"):
            images.open(tmp_path / state, registry)
    assert (registry / "ledgers.json").read_bytes() == content
    (registry / "ledgers.json").write_bytes(whole)
    assert spent_by(images.open(tmp_path / "new", registry)) == spent


def test_a_list_of_ledgers_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    images, registry = Images.some(5), tmp_path / "machine"
    spend(images.open(tmp_path / "old", registry))
    (registry / "ledgers.json").unlink()
    (registry / "ledgers.json").mkdir()
    with pytest.raises(LedgerError, match="must list the ledgers of this machine"):
        images.open(tmp_path / "new", registry)


def test_a_place_that_cannot_be_read_begins_no_ledger(tmp_path: Path) -> None:
    write_private(tmp_path / "state" / PLACE_FILE, b"{}")
    with pytest.raises(LedgerError, match="it cannot be read"):
        Images.some(2).open(tmp_path / "state", None)


class Consortium:
    """The server's side of membership, without a network."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.make(folder / "authority", "consortium", NOW)
        self.state = folder / "server"
        write_private(self.state / "ca.pem", certificate_pem(self.authority.certificate))
        settings = ServerSettings(
            config=self.state / "config.yaml", run=folder, logs=folder, run_id="0" * 32, data_set="phantom",
            classes=("normal", "pneumonia"), channels=1, authority=folder / "authority",
        )  # fmt: skip
        self.certificates = Certificates(self.state, settings, EnrolmentConfig())
        self.certificates.keep_current(NOW)
        self.members = Membership(self.state)
        root = self.certificates.root
        self.ledgers = RememberedLedgers(self.state, root)
        finished, queue = FinishedRuns(self.state, root), RunQueue(self.state)
        self.service = Enrolment(self.members, self.certificates, 9092, finished, queue, self.ledgers)

    def join(self, name: str) -> HospitalIdentity:
        key = Ed25519PrivateKey.generate()
        token = self.members.invite(name, NOW + dt.timedelta(hours=1))
        request = request_hospital_certificate("anything", key).pem
        supernode = openssh_public(make_supernode_key().public_key())
        reply = self.service.join(JoinRequest(token=token, request=request, supernode=supernode), NOW)
        assert isinstance(reply, JoinedReply)
        return HospitalIdentity(name, read_certificate(reply.certificate), key)

    def revoke(self, name: str) -> None:
        self.members.remove(name)
        self.certificates.revoke(name, NOW)

    def tell(self, identity: HospitalIdentity, statement: bytes | None) -> bytes | None:
        request = request_hospital_certificate(identity.name, identity.key).pem
        pem = certificate_pem(identity.certificate)
        asked = LedgerRequest(certificate=pem, request=request, statement=statement)
        return self.service.ledger(asked, NOW).statement

    def absent(self) -> frozenset[str]:
        return self.members.all_members(self.certificates.root, NOW).absent


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path / "consortium")


def statement(identity: HospitalIdentity, epsilon: float, head: str = "3:" + 64 * "a") -> bytes:
    return state_ledger(identity, head, epsilon, NOW).encode()


def test_a_member_that_was_revoked_and_invited_again_cannot_begin_with_an_empty_ledger(
    consortium: Consortium, tmp_path: Path
) -> None:
    images = Images.some(5)
    first = consortium.join("st-mary")
    ledger = images.open(tmp_path / "old", None)
    spent = spend(ledger, 4)
    consortium.tell(first, statement(first, spent, str(ledger.head())))
    consortium.revoke("st-mary")
    second = consortium.join("st-mary")
    assert second.key != first.key
    # On another machine, or with the old state folder gone, nothing of the ledger is there but the consortium's memory.
    told = consortium.tell(second, None)
    assert told is not None
    new = tmp_path / "new"
    keep_remembered(new, told, "st-mary", consortium.certificates.root)
    with pytest.raises(LedgerError, match="join --ledger DIR"):
        images.open(new, None)
    go_on_with(new, tmp_path / "old")
    assert spent_by(images.open(new, None)) == spent


def test_a_ledger_that_lacks_the_line_that_was_stated_is_refused_and_to_forget_is_said(
    consortium: Consortium, tmp_path: Path
) -> None:
    images, member = Images.some(5), consortium.join("st-mary")
    told = consortium.tell(member, statement(member, 8.51))
    assert told is not None
    state = tmp_path / "state"
    spend(images.open(state, None))
    keep_remembered(state, told, "st-mary", consortium.certificates.root)
    with pytest.raises(LedgerError, match=r"not the one that|knows line 3"):
        images.open(state, None)
    accept(ledger_folder(state), "the disk is lost", None, held_line(state), forget=True)
    images.open(state, None)


def test_the_consortium_leaves_out_who_states_less_until_it_states_more(consortium: Consortium) -> None:
    first = consortium.join("st-mary")
    consortium.tell(first, statement(first, 8.51))
    consortium.revoke("st-mary")
    second = consortium.join("st-mary")
    assert consortium.absent() == frozenset()
    with pytest.raises(EnrolmentError, match=r"had spent ε = 8\.51, got 0\.41"):
        consortium.tell(second, statement(second, 0.41))
    assert consortium.absent() == {"st-mary"}
    consortium.tell(second, statement(second, 8.51))
    assert consortium.absent() == frozenset()


def test_only_the_consortiums_operator_forgets_what_it_knew(consortium: Consortium) -> None:
    first = consortium.join("st-mary")
    consortium.tell(first, statement(first, 8.51))
    consortium.revoke("st-mary")
    assert consortium.ledgers.forget("st-mary", NOW)
    assert not consortium.ledgers.forget("st-mary", NOW)
    second = consortium.join("st-mary")
    assert consortium.tell(second, None) is None
    consortium.tell(second, statement(second, 0.41))
    assert consortium.absent() == frozenset()
    assert len(list((consortium.state / "ledgers").glob("st-mary.forgotten-*"))) == 1


def test_nobody_states_for_another(consortium: Consortium) -> None:
    mary, anne = consortium.join("st-mary"), consortium.join("st-anne")
    with pytest.raises(IdentityError, match="signed by its own key"):
        consortium.tell(anne, statement(mary, 1.0))
    changed = statement(anne, 1.0).replace(b'"epsilon":1.0', b'"epsilon":9.0')
    with pytest.raises(IdentityError, match="must be signed by that hospital"):
        consortium.tell(anne, changed)


def test_nobody_states_under_a_name_with_the_key_of_who_had_it_before(consortium: Consortium) -> None:
    former = consortium.join("st-mary")
    consortium.revoke("st-mary")
    mary = consortium.join("st-mary")
    with pytest.raises(IdentityError, match="signed by its own key"):
        consortium.tell(mary, statement(former, 1.0))


def test_a_server_cannot_invent_what_a_hospital_stated(consortium: Consortium, tmp_path: Path) -> None:
    """It could keep a hospital out of every run, or have it accept another ledger."""
    mary = consortium.join("st-mary")
    forged = HospitalIdentity("st-mary", mary.certificate, Ed25519PrivateKey.generate())
    root = consortium.certificates.root
    with pytest.raises(IdentityError, match="must be signed by that hospital"):
        keep_remembered(tmp_path, statement(forged, 99.0), "st-mary", root)
    anne = consortium.join("st-anne")
    with pytest.raises(IdentityError, match="must remember the ledger of st-mary"):
        keep_remembered(tmp_path, statement(anne, 99.0), "st-mary", root)
    assert remembered(tmp_path) is None


def test_a_statement_shows_nothing_of_the_data(consortium: Consortium, tmp_path: Path) -> None:
    """Two ledgers with the same bookings differ by their random first line alone, whatever data they are bound to."""
    mary, told = consortium.join("st-mary"), []
    for number in (3, 300):
        ledger = Images.some(number).open(tmp_path / str(number), None)
        spent = spend(ledger, 2)
        told.append(read_statement(statement(mary, spent, str(ledger.head())), consortium.certificates.root))
    one, other = told
    assert (one.epsilon, one.ledger.split(":")[0]) == (other.epsilon, other.ledger.split(":")[0])
    assert set(one.model_dump()) == {"version", "hospital", "time", "ledger", "epsilon", "certificate", "signature"}
    grown = Images.some(3)
    lines = grown.open(tmp_path / "grows", None).head().sequence
    assert grown.and_also(Images.some(2)).open(tmp_path / "grows", None).head().sequence == lines
