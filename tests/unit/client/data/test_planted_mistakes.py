"""Every kind of mistake is caught with its place, reason and remedy, before the privacy ledger is touched."""

import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent import HospitalAgent, Surroundings
from client.data.catalogue import ACCEPTED_NAME
from client.data.hospital_data import UNUSABLE_DATA, open_data
from client.data.mistakes import ADVICE, DEPENDS_ON_TERMS, Mistake, Weight
from client.ledger.ledger import LEDGER_FOLDER
from common.config import Config, HospitalConfig, RunDescription, replace
from common.errors import DataError
from common.identity.certificates import (
    CertificateAuthority,
    HospitalIdentity,
    certificate_pem,
    make_authority,
    request_hospital_certificate,
    sign_hospital_certificate,
)
from common.identity.members import sign_members
from common.run.messages import KeysRequest, RefusedReply, Reply
from common.run.terms import layout_for
from tests.support.hospital_folder import Hospital, healthy
from tests.support.planted_mistakes import PLANTS, Plant

NOBODY = 65_534
NOW = datetime.datetime(2026, 1, 15, tzinfo=datetime.UTC)

every_plant = pytest.mark.parametrize(("mistake", "plant"), PLANTS, ids=[plant.__name__ for _, plant in PLANTS])


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a folder that any user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="confide-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def bound_by_permissions(hospital: Hospital, place: Path) -> Iterator[None]:
    """Become somebody whom permissions bind, if the hospital needs it and the test runs as root."""
    before = os.geteuid()
    if before != 0 or not hospital.needs_permissions:
        yield
        return
    healthy(place / "warm").check(place / "warm-cache")  # imports what is imported late while it may be read
    for path in (place, *place.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@every_plant
def test_a_planted_mistake_is_found_where_it_is(place: Path, mistake: Mistake, plant: Plant) -> None:
    hospital = healthy(place / "data")
    where = plant(hospital)
    with bound_by_permissions(hospital, place):
        report = hospital.check(place / "cache")
    found = [finding for finding in report.findings if finding.mistake is mistake]
    assert where in [finding.where for finding in found]
    advice = found[0].advice
    assert advice.reason
    assert advice.remedy
    assert report.is_usable == (advice.weight is Weight.WARNING)


def test_a_healthy_folder_has_no_finding(place: Path) -> None:
    report = healthy(place / "data").check(place / "cache")
    assert report.findings == ()
    assert report.images == 60
    assert report.patients == 30


def test_every_kind_of_mistake_is_planted() -> None:
    """But one: that a file vanishes while it is read is tested with the way a run opens data."""
    assert {mistake for mistake, _ in PLANTS} | {Mistake.VANISHED} == set(Mistake) == set(ADVICE)


@every_plant
def test_data_that_cannot_be_opened_is_refused_by_one_sentence_and_its_reason_told_to_the_operator_alone(
    place: Path, mistake: Mistake, plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    hospital = healthy(place / "data")
    where = plant(hospital)
    told = ""
    with bound_by_permissions(hospital, place):
        try:
            open_data(hospital.folder, hospital.contract, place / "cache")
        except DataError as error:
            told = str(error)
    assert told == ("" if ADVICE[mistake].weight is Weight.WARNING or mistake in DEPENDS_ON_TERMS else UNUSABLE_DATA)
    assert ADVICE[mistake].remedy in caplog.text
    assert mistake.value in caplog.text
    name = where.rpartition(": ")[2]
    assert not name or name.startswith((ACCEPTED_NAME, "manifest.")) or name not in caplog.text
    assert "p-0" not in caplog.text
    assert str(place) not in caplog.text


@every_plant
def test_the_agent_refuses_before_a_ledger_exists_and_tells_the_server_no_reason(
    place: Path, mistake: Mistake, plant: Plant
) -> None:
    hospital = healthy(place / "data")
    plant(hospital)
    with bound_by_permissions(hospital, place):
        reply = _ask_to_join(hospital, place)
    if ADVICE[mistake].weight is Weight.WARNING or mistake in DEPENDS_ON_TERMS:
        assert not isinstance(reply, RefusedReply) or reply.code != "data"
        return
    assert isinstance(reply, RefusedReply)
    assert (reply.code, reply.reason) == ("data", UNUSABLE_DATA)
    assert not (place / "state" / LEDGER_FOLDER).exists()


def _ask_to_join(hospital: Hospital, place: Path) -> Reply:
    """Return what the hospital's agent answers a server that begins a run."""
    authority = make_authority("test", NOW)
    identities = {name: _identity(authority, name) for name in ("north", "south", "west")}
    surroundings = Surroundings(place / "state", hospital.folder, place / "state" / "cache", os.urandom, lambda: NOW)
    agent = HospitalAgent(identities["north"], authority.certificate, HospitalConfig(), surroundings)
    roster = {name: certificate_pem(one.certificate).decode() for name, one in identities.items()}
    keys = {name: one.key.public_key().public_bytes_raw() for name, one in identities.items()}
    described = _description(hospital, roster, sign_members(authority, keys, 1, NOW).decode())
    encoded = described.canonical_json()
    return agent.answer(KeysRequest(run_description=encoded, round_number=1), None)[0]


def _identity(authority: CertificateAuthority, name: str) -> HospitalIdentity:
    key = Ed25519PrivateKey.generate()
    request = request_hospital_certificate(name, key)
    return HospitalIdentity(
        name, sign_hospital_certificate(authority, request, name, NOW, datetime.timedelta(days=30)), key
    )


def _description(hospital: Hospital, roster: dict[str, str], member_list: str) -> RunDescription:
    """Return a run that asks for what the hospital's contract says."""
    contract = hospital.contract
    config = replace(
        Config(),
        experiment={"task": contract.task, "min_records_per_class": contract.min_records_per_class},
        training={"batch_size": contract.batch_size},
        privacy={"delta": contract.delta, "unit": contract.unit},
    )
    layout = layout_for(config.model, config.aggregation, 15, classes=2, channels=1, hospitals=len(roster))
    return RunDescription.of(
        config,
        run_id="ab" * 16,
        classes=contract.classes,
        channels=contract.channels,
        vector_length=layout.length,
        roster=roster,
        member_list=member_list,
    )
