"""A server that chooses who is on the roster of a run: every choice but the authority's own list is refused.

Row 6 of the findings in both forms: a roster that names the three of twelve members of which two collude, and a server
that invents hospitals. The rules are those of ``client/roster.py``; the attacks go against the function and, where a
whole agent could still be fooled, against the agent of :mod:`deploy.experiment.consortium`.
"""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent import HospitalAgent
from client.roster import RosterKeys, check_roster
from common.config import Config, HospitalConfig
from common.errors import IdentityError, PolicyError, StandingError
from common.identity import certificates as identity
from common.identity.certificates import CertificateAuthority
from common.identity.members import KeptMembers, sign_members
from common.identity.revocation import Revocations, sign_revocations
from common.run.messages import KeysRequest, RefusedReply
from common.run.terms import describe, protocol_parameters
from tests.support.small_consortium import RUN_ID, Dealt, small

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
NAMES = tuple(f"hospital-{number:02d}" for number in range(1, 13))
COLLUDERS = NAMES[10:]
VICTIM = NAMES[0]
POLICY = HospitalConfig()
AUTHORITY = identity.make_authority("consortium", NOW)
KEYS = {name: Ed25519PrivateKey.generate() for name in NAMES}


def certificate(
    name: str, key: Ed25519PrivateKey, authority: CertificateAuthority = AUTHORITY, lifetime: dt.timedelta = 30 * DAY
) -> str:
    request = identity.request_hospital_certificate(name, key)
    signed = identity.sign_hospital_certificate(authority, request, name, NOW, lifetime)
    return identity.certificate_pem(signed).decode()


ROSTER = {name: certificate(name, key) for name, key in KEYS.items()}
MEMBERS = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
LIST = sign_members(AUTHORITY, MEMBERS, 7, NOW)


def part(names: tuple[str, ...]) -> dict[str, str]:
    return {name: ROSTER[name] for name in names}


def listing(number: int, *names: str, authority: CertificateAuthority = AUTHORITY) -> bytes:
    return sign_members(authority, {name: MEMBERS[name] for name in names}, number, NOW)


class Hospital:
    """What a hospital that has seen list 7 holds the server's roster against."""

    def __init__(self, folder: Path, policy: HospitalConfig = POLICY) -> None:
        self.kept = KeptMembers(folder, AUTHORITY.certificate)
        self.revocations = Revocations(folder, AUTHORITY.certificate)
        self.kept.accept(LIST)
        self.revocations.accept(sign_revocations(AUTHORITY, {}, 1, NOW, DAY, 7))
        self.policy = policy

    def check(self, roster: Mapping[str, str], member_list: bytes = LIST, now: dt.datetime = NOW) -> RosterKeys:
        return check_roster(roster, member_list, self.kept, self.revocations, self.policy, now)

    def revoke(self, *names: str, members_number: int) -> None:
        serials = {identity.read_certificate(ROSTER[name].encode()).serial_number: NOW for name in names}
        self.revocations.accept(sign_revocations(AUTHORITY, serials, 2, NOW, DAY, members_number))


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def test_the_whole_consortium_is_accepted_with_the_keys_of_the_list(hospital: Hospital) -> None:
    checked = hospital.check(ROSTER)
    assert (checked.keys, checked.consortium, checked.number) == (MEMBERS, 12, 7)
    assert set(checked.certificates) == set(NAMES)


def test_a_roster_of_the_three_of_twelve_of_which_two_collude_is_refused(hospital: Hospital) -> None:
    with pytest.raises(PolicyError, match=r"all 12 members .*leaves out hospital-02"):
        hospital.check(part((VICTIM, *COLLUDERS)))


def test_an_operator_who_allows_a_part_still_counts_colluders_on_the_whole(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, POLICY.model_copy(update={"allow_partial_roster": True}))
    three = part((VICTIM, *COLLUDERS))
    checked = hospital.check(three)
    assert (set(checked.keys), checked.consortium) == (set(three), 12)
    description = describe(Config(), RUN_ID, ("a", "b"), 1, three, 100, LIST.decode())
    pinned = protocol_parameters(description, checked.keys, 3, checked.consortium)
    unpinned = protocol_parameters(description, checked.keys, 3)
    assert unpinned.threshold(3) == 3
    assert pinned.threshold(3) > 3  # So no sum of these three can ever be unmasked.


@pytest.mark.parametrize("missing", NAMES)
def test_a_roster_that_leaves_one_member_out_is_refused(hospital: Hospital, missing: str) -> None:
    with pytest.raises(PolicyError, match=f"leaves out {missing}"):
        hospital.check({name: pem for name, pem in ROSTER.items() if name != missing})


def test_a_hospital_that_the_server_invents_is_refused(hospital: Hospital) -> None:
    own = identity.make_authority("consortium", NOW)
    invented = certificate("hospital-13", Ed25519PrivateKey.generate(), own)
    with pytest.raises(IdentityError, match="hospital-13 is not on it"):
        hospital.check({**ROSTER, "hospital-13": invented})


def test_a_hospital_that_holds_the_authoritys_certificate_but_is_not_listed_is_refused(hospital: Hospital) -> None:
    with pytest.raises(IdentityError, match="hospital-13 is not on it"):
        hospital.check({**ROSTER, "hospital-13": certificate("hospital-13", Ed25519PrivateKey.generate())})


def test_hospitals_that_the_server_invents_with_a_list_of_its_own_are_refused(hospital: Hospital) -> None:
    own = identity.make_authority("consortium", NOW)
    sybils = {name: Ed25519PrivateKey.generate() for name in NAMES[1:]}
    keys = {VICTIM: MEMBERS[VICTIM], **{name: key.public_key().public_bytes_raw() for name, key in sybils.items()}}
    roster = {VICTIM: ROSTER[VICTIM], **{name: certificate(name, key, own) for name, key in sybils.items()}}
    with pytest.raises(IdentityError, match="signed by the consortium's authority"):
        hospital.check(roster, sign_members(own, keys, 8, NOW))


def test_an_older_list_is_refused(hospital: Hospital) -> None:
    three = (VICTIM, *COLLUDERS)
    with pytest.raises(StandingError, match="older than number 7"):
        hospital.check(part(three), listing(3, *three))


def test_an_older_list_is_refused_by_a_hospital_whose_copy_was_put_back(tmp_path: Path) -> None:
    three = (VICTIM, *COLLUDERS)
    hospital = Hospital(tmp_path)
    (tmp_path / "members.json").write_bytes(listing(3, *three))
    with pytest.raises(StandingError, match="number 7 by the revocation list, got number 3"):
        hospital.check(part(three), listing(3, *three))


def test_a_newer_list_that_the_server_keeps_back_is_missed_once_the_revocation_list_knows_of_it(
    hospital: Hospital,
) -> None:
    hospital.revoke(members_number=8)
    with pytest.raises(StandingError, match="number 8 by the revocation list, got number 7"):
        hospital.check(ROSTER)


def test_nothing_is_accepted_once_the_revocation_list_is_overdue(hospital: Hospital) -> None:
    with pytest.raises(StandingError, match="must have arrived"):
        hospital.check(ROSTER, now=NOW + 2 * DAY)


def test_another_list_of_the_same_number_is_refused(hospital: Hospital) -> None:
    three = (VICTIM, *COLLUDERS)
    with pytest.raises(IdentityError, match="one member list of number 7"):
        hospital.check(part(three), listing(7, *three))


@pytest.mark.parametrize(
    "member_list",
    [
        b"",
        b"{}",
        LIST[:-130] + b'"signature":""}',
        LIST.replace(LIST[-130:-2], b"0" * 128),
        LIST.replace(b'"number":7', b'"number":8'),
        listing(8, *NAMES, authority=identity.make_authority("consortium", NOW)),
    ],
)
def test_a_list_that_the_authority_has_not_signed_is_refused(hospital: Hospital, member_list: bytes) -> None:
    with pytest.raises(IdentityError):
        hospital.check(ROSTER, member_list)


def test_a_certificate_of_another_key_for_a_members_name_is_refused(hospital: Hospital) -> None:
    swapped = certificate("hospital-02", Ed25519PrivateKey.generate())
    with pytest.raises(IdentityError, match="hospital-02 on the roster must hold the key of the authority's"):
        hospital.check({**ROSTER, "hospital-02": swapped})


def test_two_members_certificates_in_each_others_place_are_refused(hospital: Hospital) -> None:
    with pytest.raises(IdentityError, match="issued to another party"):
        hospital.check({**ROSTER, "hospital-02": ROSTER["hospital-03"], "hospital-03": ROSTER["hospital-02"]})


def test_a_revoked_member_that_the_server_keeps_is_refused(hospital: Hospital) -> None:
    hospital.revoke("hospital-02", members_number=8)
    without = sign_members(AUTHORITY, {name: key for name, key in MEMBERS.items() if name != "hospital-02"}, 8, NOW)
    with pytest.raises(IdentityError, match="hospital-02 is not on it"):
        hospital.check(ROSTER, without)
    assert hospital.check(part(tuple(name for name in NAMES if name != "hospital-02")), without).consortium == 11


def test_a_certificate_that_was_revoked_is_refused_although_its_member_has_a_new_one(hospital: Hospital) -> None:
    hospital.revoke("hospital-02", members_number=7)
    with pytest.raises(StandingError, match="hospital-02 is revoked"):
        hospital.check(ROSTER)
    assert hospital.check({**ROSTER, "hospital-02": certificate("hospital-02", KEYS["hospital-02"])}).consortium == 12


def test_a_member_whose_certificate_has_expired_counts_but_is_in_no_directory(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    expired = certificate("hospital-02", KEYS["hospital-02"], lifetime=dt.timedelta(minutes=1))
    later = NOW + dt.timedelta(hours=1)
    checked = hospital.check({**ROSTER, "hospital-02": expired}, now=later)
    assert checked.consortium == 12
    hospital.revocations.check(checked.certificates, NAMES[2:], later)
    with pytest.raises(StandingError, match="hospital-02 on the roster is not valid now"):
        hospital.revocations.check(checked.certificates, NAMES, later)


def test_an_agent_refuses_a_run_of_a_part_of_its_consortium(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    roster = dict(sorted(made.consortium.roster.items())[:3])
    refused = _asked(made.consortium.agents[min(roster)], made.config, dealt, roster, made.consortium.member_list)
    assert refused.code == "policy"
    assert "all 4 members" in refused.reason
    assert not list(tmp_path.rglob("ledger*"))


def test_an_agent_refuses_a_run_without_a_member_list(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    roster = made.consortium.roster
    refused = _asked(made.consortium.agents[min(roster)], made.config, dealt, roster, "")
    assert refused.code == "identity"


def _asked(
    agent: HospitalAgent, config: Config, dealt: Dealt, roster: dict[str, str], member_list: str
) -> RefusedReply:
    data = dealt.data
    description = describe(config, RUN_ID, data.classes, data.channels, roster, member_list=member_list)
    reply, _ = agent.answer(KeysRequest(run_description=description.canonical_json(), round_number=1), None)
    assert isinstance(reply, RefusedReply)
    return reply
