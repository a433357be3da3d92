"""The enrolment service: who gets in, who stands how, and what a flood of callers changes (nothing)."""

import datetime as dt
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.config import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, EnrolmentConfig
from common.errors import EnrolmentError, IdentityError
from common.files import write_private
from common.identity import enrolment
from common.identity.certificates import (
    certificate_pem,
    make_supernode_key,
    openssh_public,
    request_hospital_certificate,
    verify_hospital_certificate,
)
from common.identity.enrolment import (
    AnswerRequest,
    JoinedReply,
    JoinRequest,
    PieceRequest,
    ProposalRequest,
    ResultsRequest,
    StandingRequest,
)
from common.identity.members import verify_members
from common.identity.revocation import verify_revocations
from common.provenance import confide_version
from common.run.proposal import RunAnswer, RunState
from common.run.terms import describe
from common.run.versions import SPOKEN, Window
from common.settings import ServerSettings
from server.members.authority import Authority
from server.members.certificates import Certificates
from server.members.enrolment import Allowance, Enrolment, grpc_server
from server.members.ledgers import RememberedLedgers
from server.members.results import FinishedRuns
from server.members.roster import Membership
from server.members.tls import reloading_credentials
from server.members.versions import SpokenVersions
from server.run_queue import RunProposal, RunQueue
from tests.support.proposed_run import CONFIG, PARAMETERS

NOW = dt.datetime.now(dt.UTC)
SOON = NOW + dt.timedelta(hours=1)
SUPERNODE = openssh_public(make_supernode_key().public_key())


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
        self.queue = RunQueue(self.state)
        finished, ledgers = FinishedRuns(self.state, root), RememberedLedgers(self.state, root)
        self.service = Enrolment(self.members, self.certificates, 9092, finished, self.queue, ledgers)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


def join_with(token: bytes, key: Ed25519PrivateKey) -> JoinRequest:
    return JoinRequest(token=token, request=request_hospital_certificate("anything", key).pem, supernode=SUPERNODE)


def joined(consortium: Consortium, name: str, key: Ed25519PrivateKey) -> JoinedReply:
    reply = consortium.service.join(join_with(consortium.members.invite(name, SOON), key), NOW)
    assert isinstance(reply, JoinedReply)
    return reply


def standing_of(certificate: bytes, key: Ed25519PrivateKey) -> StandingRequest:
    return StandingRequest(certificate=certificate, request=request_hospital_certificate("anything", key).pem)


def test_a_good_token_gives_its_own_name_to_the_hospital_s_own_key(consortium: Consortium) -> None:
    key = Ed25519PrivateKey.generate()
    reply = joined(consortium, "st-mary", key)
    root = consortium.certificates.root
    assert verify_hospital_certificate(reply.certificate, "st-mary", root, NOW) == key.public_key()
    assert consortium.members.roster() == {"st-mary": reply.certificate.decode()}
    assert consortium.members.supernode_keys() == {"st-mary": SUPERNODE}
    listed = verify_members(reply.members, root)
    assert (listed.number, dict(listed.members)) == (1, {"st-mary": key.public_key().public_bytes_raw()})
    assert verify_revocations(reply.revocations, root).members_number == 1


def test_a_hospital_whose_answer_was_lost_gets_the_same_again(consortium: Consortium) -> None:
    key = Ed25519PrivateKey.generate()
    token = consortium.members.invite("st-mary", SOON)
    assert consortium.service.join(join_with(token, key), NOW) == consortium.service.join(join_with(token, key), NOW)


def test_a_used_token_opens_nothing_for_another_key(consortium: Consortium) -> None:
    token = consortium.members.invite("st-mary", SOON)
    consortium.service.join(join_with(token, Ed25519PrivateKey.generate()), NOW)
    with pytest.raises(EnrolmentError, match="has been used"):
        consortium.service.join(join_with(token, Ed25519PrivateKey.generate()), NOW)


@pytest.mark.parametrize(
    "supernode", [b"", b"ssh-ed25519 AAAA", openssh_public(make_supernode_key().public_key())[:-9]]
)
def test_a_bad_supernode_key_does_not_use_the_token_up(consortium: Consortium, supernode: bytes) -> None:
    token = consortium.members.invite("st-mary", SOON)
    request = request_hospital_certificate("anything", Ed25519PrivateKey.generate()).pem
    with pytest.raises(IdentityError):
        consortium.service.join(JoinRequest(token=token, request=request, supernode=supernode), NOW)
    assert isinstance(consortium.service.join(join_with(token, Ed25519PrivateKey.generate()), NOW), JoinedReply)


def test_members_are_shown_what_is_proposed_and_answer_for_themselves(consortium: Consortium) -> None:
    keys = {name: Ed25519PrivateKey.generate() for name in ("st-anne", "st-john", "st-mary")}
    certificates = {name: joined(consortium, name, key).certificate for name, key in keys.items()}
    members = consortium.members.all_members(consortium.certificates.root, NOW)
    classes = ("normal", "pneumonia")
    description = describe(CONFIG, "a" * 32, classes, 1, members.roster, PARAMETERS, members.member_list)
    until = int(SOON.timestamp())
    consortium.queue.propose(RunProposal(CONFIG, description, "phantom", tuple(sorted(keys)), until), NOW)

    def standing(name: str) -> StandingRequest:
        return standing_of(certificates[name], keys[name])

    (notice,) = consortium.service.standing(standing("st-mary"), NOW).proposals
    assert (notice.run_id, notice.answered) == ("a" * 32, False)
    asked = standing("st-mary")
    request = ProposalRequest(certificate=asked.certificate, request=asked.request, run_id=notice.run_id)
    found = consortium.queue.proposal(notice.run_id)
    assert found is not None
    assert consortium.service.proposal(request, NOW).proposal == found.encode()

    def answer(whose: str, by: str) -> AnswerRequest:
        given = RunAnswer(run_id=found.run_id, proposal=found.hash(), hospital=whose, agreed=True, by="policy")
        proof = standing(by)
        encoded = given.signed(keys[by]).encode()
        return AnswerRequest(certificate=proof.certificate, request=proof.request, answer=encoded)

    with pytest.raises(EnrolmentError, match="must answer for itself"):
        consortium.service.answer(answer("st-john", "st-mary"), NOW)
    for name in keys:
        consortium.service.answer(answer(name, name), NOW)
    assert consortium.service.standing(asked, NOW).proposals[0].answered
    assert [run.state for run in consortium.queue.settle(NOW)] == [RunState.AGREED]
    consortium.queue.end(found.run_id, RunState.FINISHED, "completed")
    (ended,) = consortium.service.standing(asked, NOW).proposals
    assert (ended.state, ended.reason) == ("finished", "completed")


def test_both_sides_say_their_versions_and_a_member_of_another_protocol_is_left_out_of_runs(
    consortium: Consortium, caplog: pytest.LogCaptureFixture
) -> None:
    key = Ed25519PrivateKey.generate()
    asked = standing_of(joined(consortium, "st-mary", key).certificate, key)
    reply = consortium.service.standing(asked, NOW)
    assert (reply.protocol, reply.software) == (PROTOCOL_VERSION, confide_version())
    assert enrolment.same_protocol(reply) is None
    assert consortium.members.versions.all() == {
        "st-mary": SpokenVersions(PROTOCOL_VERSION, confide_version(), OLDEST_PROTOCOL_VERSION)
    }
    older = msgspec.structs.replace(
        asked, protocol=PROTOCOL_VERSION - 1, oldest_protocol=PROTOCOL_VERSION - 1, software="0.1.0"
    )
    for _ in range(3):
        consortium.service.standing(older, NOW)
    said = [record.getMessage() for record in caplog.records if "one version of the protocol" in record.getMessage()]
    assert len(said) == 1
    assert f"the other protocol version {PROTOCOL_VERSION - 1} (Confide 0.1.0)" in said[0]
    root = consortium.certificates.root
    assert consortium.members.all_members(root, NOW).absent == frozenset({"st-mary"})
    consortium.service.standing(asked, NOW)
    assert consortium.members.all_members(root, NOW).absent == frozenset()


def test_a_member_of_the_next_version_takes_part_in_runs_of_this_one(
    consortium: Consortium, caplog: pytest.LogCaptureFixture
) -> None:
    key = Ed25519PrivateKey.generate()
    asked = standing_of(joined(consortium, "st-mary", key).certificate, key)
    following = PROTOCOL_VERSION + 1
    later = msgspec.structs.replace(asked, protocol=following, oldest_protocol=PROTOCOL_VERSION, software="9.9.9")
    consortium.service.standing(later, NOW)
    assert not [record for record in caplog.records if "one version of the protocol" in record.getMessage()]
    root = consortium.certificates.root
    assert consortium.members.all_members(root, NOW).absent == frozenset()
    assert consortium.members.versions.windows(("st-mary", "unheard")) == {
        "st-mary": Window(PROTOCOL_VERSION, following), "unheard": SPOKEN,
    }  # fmt: skip
    # A run of the next version would leave out whoever speaks this one alone.
    consortium.service.standing(asked, NOW)
    assert consortium.members.all_members(root, NOW, following).absent == frozenset({"st-mary"})


def test_a_message_of_another_version_of_enrolment_is_refused_with_both_versions() -> None:
    later = msgspec.msgpack.encode({"version": enrolment.VERSION + 1, "software": "9.9", "type": "standing", "new": 1})
    with pytest.raises(EnrolmentError, match=rf"version {enrolment.VERSION} \(Confide .*the other .*Confide 9\.9"):
        enrolment.decode(later, StandingRequest)
    earlier = msgspec.msgpack.encode({"version": 2, "type": "standing", "certificate": b"", "request": b""})
    with pytest.raises(EnrolmentError, match=r"the other 2 \(Confide of an earlier version\); upgrade the older"):
        enrolment.decode(earlier, StandingRequest)


def test_who_is_no_member_is_shown_no_proposal_and_cannot_answer(consortium: Consortium) -> None:
    key = Ed25519PrivateKey.generate()
    first = joined(consortium, "st-mary", key).certificate
    stranger = Ed25519PrivateKey.generate()
    strange = request_hospital_certificate("anything", stranger).pem
    with pytest.raises(EnrolmentError, match="must hold the key of the certificate"):
        consortium.service.proposal(ProposalRequest(certificate=first, request=strange, run_id="a" * 32), NOW)
    request = request_hospital_certificate("anything", key).pem
    own = ProposalRequest(certificate=first, request=request, run_id="a" * 32)
    with pytest.raises(EnrolmentError, match="it has none for this run"):
        consortium.service.proposal(own, NOW)
    consortium.members.remove("st-mary")
    with pytest.raises(EnrolmentError, match="is not a member with this key"):
        consortium.service.proposal(own, NOW)


def test_a_certificate_is_renewed_when_a_third_of_its_time_is_left(consortium: Consortium) -> None:
    key = Ed25519PrivateKey.generate()
    first = joined(consortium, "st-mary", key).certificate
    for hours, is_new in ((1, False), (21, True)):
        later = NOW + dt.timedelta(hours=hours)
        stands = consortium.service.standing(standing_of(first, key), later)
        assert (stands.certificate != first) == is_new
    assert consortium.members.roster()["st-mary"].encode() == stands.certificate


def test_a_member_that_was_away_while_its_certificate_expired_gets_a_new_one(consortium: Consortium) -> None:
    key = Ed25519PrivateKey.generate()
    first = joined(consortium, "st-mary", key).certificate
    later = NOW + dt.timedelta(hours=1000)
    renewed = consortium.service.standing(standing_of(first, key), later).certificate
    assert verify_hospital_certificate(renewed, "st-mary", consortium.certificates.root, later) == key.public_key()


def test_a_revoked_hospital_is_told_so_and_gets_nothing_new(consortium: Consortium) -> None:
    key = Ed25519PrivateKey.generate()
    first = joined(consortium, "st-mary", key).certificate
    consortium.members.remove("st-mary")
    consortium.certificates.revoke("st-mary", NOW)
    stands = consortium.service.standing(standing_of(first, key), NOW + dt.timedelta(hours=29))
    assert stands.revoked
    assert stands.certificate == first


def test_whoever_lacks_the_key_learns_nothing_of_a_member(consortium: Consortium) -> None:
    first = joined(consortium, "st-mary", Ed25519PrivateKey.generate()).certificate
    with pytest.raises(EnrolmentError, match="hold the key"):
        consortium.service.standing(standing_of(first, Ed25519PrivateKey.generate()), NOW)


def test_another_authority_s_hospital_has_no_standing(consortium: Consortium, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    other = Authority.make(tmp_path / "other", "consortium", NOW)
    request = request_hospital_certificate("st-mary", key)
    forged = certificate_pem(other.sign_hospital(request, "st-mary", NOW, dt.timedelta(days=1)))
    with pytest.raises(IdentityError, match="signed by the consortium's authority"):
        consortium.service.standing(standing_of(forged, key), NOW)


def test_a_removed_member_has_no_standing_even_before_the_list_says_so(consortium: Consortium) -> None:
    key = Ed25519PrivateKey.generate()
    first = joined(consortium, "st-mary", key).certificate
    consortium.members.remove("st-mary")
    with pytest.raises(EnrolmentError, match="not a member"):
        consortium.service.standing(standing_of(first, key), NOW)


def test_an_address_is_given_so_many_refusals_a_minute_and_others_are_not_touched() -> None:
    now = [0.0]
    allowance = Allowance(3, lambda: now[0])
    assert [allowance.spend("a") for _ in range(4)] == [True, True, True, False]
    assert allowance.spend("b")
    now[0] = 20.0
    assert [allowance.spend("a") for _ in range(2)] == [True, False]


def test_the_memory_of_addresses_is_bounded() -> None:
    allowance = Allowance(1, lambda: 0.0)
    for number in range(10_000):
        allowance.spend(str(number))
    assert len(allowance._left) <= 4096


@pytest.fixture
def address(consortium: Consortium) -> Iterator[str]:
    server = grpc_server(consortium.service, Allowance(5))
    port = server.add_secure_port("127.0.0.1:0", reloading_credentials(consortium.state))
    server.start()
    yield f"localhost:{port}"
    server.stop(grace=None).wait()


@pytest.fixture
def channel(consortium: Consortium, address: str) -> Iterator[grpc.Channel]:
    root = grpc.ssl_channel_credentials((consortium.state / "ca.pem").read_bytes())
    with grpc.secure_channel(address, root) as connected:
        yield connected


def test_a_flood_of_bad_tokens_keeps_nobody_out(consortium: Consortium, address: str) -> None:
    root = grpc.ssl_channel_credentials((consortium.state / "ca.pem").read_bytes())
    key = Ed25519PrivateKey.generate()
    bad = enrolment.encode(join_with(b"x" * 32, key))
    answered = threading.Event()
    codes: list[grpc.StatusCode] = []

    def flood() -> None:
        with grpc.secure_channel(address, root) as own:
            call = own.unary_unary(f"/{enrolment.SERVICE}/{enrolment.JOIN}")
            while not answered.is_set():
                with pytest.raises(grpc.RpcError) as refused:
                    call(bad, timeout=30)
                codes.append(refused.value.code())

    callers = [threading.Thread(target=flood) for _ in range(8)]
    for caller in callers:
        caller.start()
    try:
        while len(codes) < 200:
            answered.wait(0.01)
        good = enrolment.encode(join_with(consortium.members.invite("st-mary", SOON), key))
        with grpc.secure_channel(address, root) as own:
            reply = own.unary_unary(f"/{enrolment.SERVICE}/{enrolment.JOIN}")(good, timeout=60)
    finally:
        answered.set()
        for caller in callers:
            caller.join()
    assert isinstance(enrolment.decode_join_reply(reply), JoinedReply)
    assert 0 < codes.count(grpc.StatusCode.PERMISSION_DENIED) < 50
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) > 100


@pytest.mark.parametrize("request_bytes", [b"", b"\xff" * 100, b"\x81\xa4type\xa4join", bytes(20_000)])
def test_bytes_that_are_no_request_are_refused_and_the_service_goes_on(
    consortium: Consortium, channel: grpc.Channel, request_bytes: bytes
) -> None:
    call = channel.unary_unary(f"/{enrolment.SERVICE}/{enrolment.JOIN}")
    with pytest.raises(grpc.RpcError) as refused:
        call(request_bytes, timeout=30)
    assert refused.value.code() in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    good = enrolment.encode(join_with(consortium.members.invite("st-mary", SOON), Ed25519PrivateKey.generate()))
    assert call(good, timeout=30)


def test_a_renewed_server_certificate_serves_the_next_connection(consortium: Consortium, address: str) -> None:
    host, _, port = address.partition(":")
    before = ssl.get_server_certificate((host, int(port)))
    consortium.certificates.keep_current(NOW + dt.timedelta(days=25))
    assert ssl.get_server_certificate((host, int(port))) != before


def test_results_are_for_members_with_their_own_key_alone(consortium: Consortium) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    certificate = joined(consortium, "st-mary", key).certificate
    asked = standing_of(certificate, key)
    request = ResultsRequest(certificate=asked.certificate, request=asked.request)
    assert consortium.service.results(request, NOW).runs == {}
    forged = ResultsRequest(certificate=certificate, request=request_hospital_certificate("anything", other).pem)
    with pytest.raises(EnrolmentError, match="must hold the key of the certificate"):
        consortium.service.results(forged, NOW)
    piece = PieceRequest(
        certificate=asked.certificate, request=asked.request, run_id="0" * 32, name="delivery.json", offset=0
    )
    with pytest.raises(EnrolmentError, match="must have a finished run with this identifier"):
        consortium.service.piece(piece, NOW)
    consortium.certificates.revoke("st-mary", NOW)
    for call in (lambda: consortium.service.results(request, NOW), lambda: consortium.service.piece(piece, NOW)):
        with pytest.raises(EnrolmentError, match="results are for members"):
            call()
