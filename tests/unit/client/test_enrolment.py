"""A hospital joins whom its invitation names, sends nothing to anybody else, and keeps only its own keys."""

import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from client import enrolment
from client.enrolment import EnrolmentService, JoinedPlace, ask_standing, is_enrolled, join, proxy_for
from common.config import Config, EnrolmentConfig
from common.errors import EnrolmentError, IdentityError
from common.files import write_private
from common.identity.certificates import (
    certificate_pem,
    fingerprint,
    load_certificate,
    load_identity,
    make_authority,
    make_tls_certificate,
    private_key_pem,
)
from common.identity.invitation import Invitation
from common.identity.members import KeptMembers
from common.identity.revocation import Revocations
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings, ServerSettings
from server.members.authority import Authority
from server.members.certificates import Certificates
from server.members.enrolment import Allowance, Enrolment, grpc_server
from server.members.ledgers import RememberedLedgers
from server.members.results import FinishedRuns
from server.members.roster import Membership
from server.members.tls import reloading_credentials
from server.run_queue import RunQueue

NOW = dt.datetime.now(dt.UTC)
SOON = NOW + dt.timedelta(hours=1)
HOUR = dt.timedelta(hours=1)


class Consortium:
    def __init__(self, folder: Path) -> None:
        authority = Authority.make(folder / "authority", "consortium", NOW)
        self.state = folder / "server"
        write_private(self.state / "ca.pem", certificate_pem(authority.certificate))
        settings = ServerSettings(
            config=self.state / "config.yaml", run=folder, logs=folder, run_id="0" * 32, data_set="phantom",
            classes=("normal", "pneumonia"), channels=1, authority=folder / "authority",
        )  # fmt: skip
        self.certificates = Certificates(self.state, settings, EnrolmentConfig(hospital_certificate_hours=30.0))
        self.certificates.keep_current(NOW)
        self.members = Membership(self.state)
        root = self.certificates.root
        finished, ledgers = FinishedRuns(self.state, root), RememberedLedgers(self.state, root)
        self.server = grpc_server(
            Enrolment(self.members, self.certificates, 19092, finished, RunQueue(self.state), ledgers),
            Allowance(100),
        )
        self.port = self.server.add_secure_port("127.0.0.1:0", reloading_credentials(self.state))
        self.server.start()

    def invitation(self, group: int | None = None) -> Invitation:
        root = bytes.fromhex(fingerprint(self.certificates.root))
        name = "st-mary" if group is None else "hospital"
        token = self.members.invite(name, SOON, group)
        return Invitation("localhost", self.port, root, token, int(SOON.timestamp()), name)


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path)
    yield made
    made.server.stop(grace=None).wait()


def place(folder: Path) -> JoinedPlace:
    state = folder / "hospital"
    return JoinedPlace(
        state, folder / "data", state / "logs", runtime_port=9094, metrics_port=0, metrics_host="127.0.0.1"
    )


def say_nothing(_what: str) -> None:
    pass


@pytest.mark.usefixtures("open_umask")
def test_a_hospital_that_joined_has_all_it_starts_with_and_the_server_none_of_its_keys(
    consortium: Consortium, tmp_path: Path
) -> None:
    here = place(tmp_path)
    assert not is_enrolled(here.state)
    assert join(consortium.invitation(), here, Config(), say_nothing) == "st-mary"
    assert is_enrolled(here.state)
    settings = HospitalSettings.read(here.state / HOSPITAL_SETTINGS_FILE)
    assert settings.fleet_address == "localhost:19092"
    assert settings.enrolment_address == f"localhost:{consortium.port}"
    assert load_identity(here.state).name == "st-mary"
    key = (here.state / "identity.key").read_bytes()
    assert not any(key in path.read_bytes() for path in consortium.state.rglob("*") if path.is_file())
    for path in here.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_a_server_that_shows_garbage_for_a_certificate_is_sent_nothing(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "_presented_certificates", lambda *_: [b"no certificate"])
    with pytest.raises(EnrolmentError, match="nothing was sent to it"):
        join(consortium.invitation(), place(tmp_path), Config(), say_nothing)


def test_an_interrupted_join_is_finished_with_the_same_keys(consortium: Consortium, tmp_path: Path) -> None:
    here, invitation = place(tmp_path), consortium.invitation()
    join(invitation, here, Config(), say_nothing)
    first = load_identity(here.state)
    (here.state / HOSPITAL_SETTINGS_FILE).unlink()
    (here.state / "identity.pem").unlink()
    assert join(invitation, here, Config(), say_nothing) == "st-mary"
    assert load_identity(here.state).certificate == first.certificate


def test_a_hospital_of_a_group_gets_the_name_that_it_asks_for(consortium: Consortium, tmp_path: Path) -> None:
    invitation = consortium.invitation(group=4)
    assert join(invitation, place(tmp_path / "a"), Config(), say_nothing, "hospital-3") == "hospital-3"
    assert join(invitation, place(tmp_path / "b"), Config(), say_nothing) == "hospital-1"
    with pytest.raises(IdentityError, match="must be 1 to 63"):
        join(invitation, place(tmp_path / "c"), Config(), say_nothing, "Hospital 3")


def test_an_invitation_works_for_one_hospital(consortium: Consortium, tmp_path: Path) -> None:
    invitation = consortium.invitation()
    join(invitation, place(tmp_path / "first"), Config(), say_nothing)
    with pytest.raises(EnrolmentError, match="has been used"):
        join(invitation, place(tmp_path / "second"), Config(), say_nothing)


def test_an_expired_invitation_is_refused_at_the_hospital(consortium: Consortium, tmp_path: Path) -> None:
    old = Invitation("localhost", consortium.port, b"f" * 32, b"t" * 32, 0, "st-mary")
    with pytest.raises(EnrolmentError, match="before it expires"):
        join(old, place(tmp_path), Config(), say_nothing)
    assert not place(tmp_path).state.exists()


def test_a_server_of_another_authority_gets_not_one_byte(consortium: Consortium, tmp_path: Path) -> None:
    impostor = make_authority("consortium", NOW)
    certificate, key = make_tls_certificate(impostor, ["localhost"], NOW, HOUR)
    (tmp_path / "chain.pem").write_bytes(certificate_pem(certificate) + certificate_pem(impostor.certificate))
    (tmp_path / "key.pem").write_bytes(private_key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    context.num_tickets = 0  # An unread ticket would turn the client's end of the connection into a reset.
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            received.append(secured.recv(4096))

    thread = threading.Thread(target=listen)
    thread.start()
    true = consortium.invitation()
    aimed = Invitation("localhost", listener.getsockname()[1], true.fingerprint, true.token, true.expires, true.name)
    with pytest.raises(EnrolmentError, match="nothing was sent to it"):
        join(aimed, place(tmp_path), Config(), say_nothing)
    thread.join()
    listener.close()
    assert received == [b""]


def test_a_hospital_keeps_a_renewed_certificate_and_the_newest_list(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place(tmp_path)
    join(consortium.invitation(), here, Config(), say_nothing)
    monkeypatch.setattr(consortium.certificates, "is_due", lambda _certificate, _now: True)
    consortium.certificates.publish_lists(NOW)
    authority = load_certificate(here.state / "ca.pem")
    service = EnrolmentService(f"localhost:{consortium.port}", authority)
    before = load_identity(here.state)
    ask_standing(service, before, here.state, Revocations(here.state, authority), KeptMembers(here.state, authority))
    after = load_identity(here.state)
    assert after.certificate.serial_number != before.certificate.serial_number
    assert after.key.public_key() == before.key.public_key()
    newest = Revocations(here.state, authority).newest()
    assert newest is not None
    assert newest.number == 3


def test_a_server_that_goes_back_to_an_older_list_is_noticed(consortium: Consortium, tmp_path: Path) -> None:
    here = place(tmp_path)
    join(consortium.invitation(), here, Config(), say_nothing)
    authority = load_certificate(here.state / "ca.pem")
    revocations = Revocations(here.state, authority)
    old = consortium.certificates.revocations()
    consortium.certificates.publish_lists(NOW)
    revocations.accept(consortium.certificates.revocations())
    (consortium.state / "revoked.crl").write_bytes(old)
    service = EnrolmentService(f"localhost:{consortium.port}", authority)
    with pytest.raises(IdentityError, match="older than number 3"):
        ask_standing(service, load_identity(here.state), here.state, revocations, KeptMembers(here.state, authority))


def test_a_server_that_is_not_there_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "_PATIENCE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nobody = Invitation("127.0.0.1", port, b"f" * 32, b"t" * 32, int(SOON.timestamp()), "st-mary")
    with pytest.raises(EnrolmentError, match=f"127.0.0.1:{port} must answer"):
        join(nobody, place(tmp_path), Config(), say_nothing)


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"https_proxy": "http://proxy:3128"}, "proxy"),
        ({"http_proxy": "http://proxy:3128"}, "proxy"),
        ({"grpc_proxy": "http://first:1", "https_proxy": "http://second:1"}, "first"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "example.org"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "other.org"}, "proxy"),
        ({"https_proxy": "http://proxy:3128", "no_grpc_proxy": "example.org", "no_proxy": ""}, None),
    ],
)
def test_the_proxy_is_the_one_that_grpc_takes(environment: dict[str, str], proxy: str | None) -> None:
    chosen = proxy_for("confide.example.org", environment)
    assert (None if chosen is None else chosen.hostname) == proxy


def test_a_refusal_of_the_server_is_one_line(consortium: Consortium, tmp_path: Path) -> None:
    true = consortium.invitation()
    wrong = Invitation(true.host, true.port, true.fingerprint, b"x" * 32, true.expires, true.name)
    with pytest.raises(EnrolmentError, match="the server refused: the token must be one of an invitation") as refused:
        join(wrong, place(tmp_path), Config(), say_nothing)
    assert "\n" not in str(refused.value)
    assert grpc.StatusCode.PERMISSION_DENIED.name not in str(refused.value)


def test_finished_runs_are_asked_for_over_the_network_by_who_is_a_member(
    consortium: Consortium, tmp_path: Path
) -> None:
    here = place(tmp_path)
    join(consortium.invitation(), here, Config(), say_nothing)
    service = EnrolmentService(f"localhost:{consortium.port}", consortium.certificates.root)
    assert service.results(load_identity(here.state)) == {}
    with pytest.raises(EnrolmentError, match="the server refused: the server must have a finished run"):
        service.piece(load_identity(here.state), "0" * 32, "delivery.json", 0)
