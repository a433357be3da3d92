"""Studies come from a real PACS into a folder that a check reads, whatever breaks on the way."""

import csv
import datetime
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from client.data.catalogue import FETCHED_NAME, ON_ITS_WAY_FOLDER, scan_images
from tests.support.consortium import ENVIRONMENT, ROOT
from tests.support.orthanc import HAS_ORTHANC, PASSWORD, WHY_SKIPPED, Certificates, Orthanc, accession, study, study_uid

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not HAS_ORTHANC, reason=WHY_SKIPPED)]

STUDIES = 40
BY_DAY = ("--from", "2024-01-01", "--to", "2024-01-31")
FAST = ("--per-minute", "6000")
KINDS = ("web", "get", "move")

GARBAGE = b"no image any more" * 50
WITHOUT_PIXELS, CUT_SHORT, REMOVED, OVERWRITTEN = (3,), (11, 12), (21, 22), (31,)
UNLISTED = REMOVED + OVERWRITTEN
"""By DICOMweb Orthanc opens a file of a study to list it, so of these it says no more than that they are there."""
BAD = len(WITHOUT_PIXELS + CUT_SHORT + REMOVED + OVERWRITTEN)


def fill(pacs: Orthanc, studies: int, every: int = 1) -> None:
    """Put studies in, of which some hold no image or a damaged one; ``every`` spreads the bad ones."""
    bad = [{number * every for number in numbers} for numbers in (WITHOUT_PIXELS, CUT_SHORT, REMOVED, OVERWRITTEN)]
    objects = []
    for number in range(studies):
        fields = {"PixelData": None} if number in bad[0] else {"PixelData": bytes(64)} if number in bad[1] else {}
        objects.append(study(number, **fields))
    pacs.put(objects)
    pacs.spoil(sorted(bad[2]), None)
    pacs.spoil(sorted(bad[3]), GARBAGE)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path_factory.mktemp("pacs"))
    orthanc.start()
    try:
        fill(orthanc, STUDIES)
        yield orthanc
    finally:
        orthanc.stop()


def command(pacs: Orthanc, kind: str, folder: Path, arguments: Sequence[str]) -> list[str]:
    access = folder.parent / f"{folder.name}-{kind}.yaml"
    access.touch(mode=0o600)
    access.write_text(pacs.access(kind))
    choice = ("--pacs", str(access), "--out", str(folder), "--modality", "DX", "--body-part", "chest")
    return [sys.executable, "-m", "deploy", "hospital", "fetch", *choice, *arguments]


def fetch(
    pacs: Orthanc, kind: str, folder: Path, *arguments: str, seconds: float = 120
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(pacs, kind, folder, (*FAST, *arguments)), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / FETCHED_NAME).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def outcomes(folder: Path) -> dict[str, int]:
    return dict(Counter(row["outcome"] for row in rows(folder)))


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.dcm")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_study_is_here_or_accounted_for_and_a_second_call_takes_nothing_twice(
    kind: str, pacs: Orthanc, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    done = fetch(pacs, kind, folder, *BY_DAY)
    assert done.returncode == 1, done.stderr
    accounts = {row["study_instance_uid"]: row for row in rows(folder)}
    listed = [number for number in range(STUDIES) if kind != "web" or number not in UNLISTED]
    assert accounts.keys() - {""} == {study_uid(number) for number in listed}
    assert outcomes(folder) == {"fetched": STUDIES - BAD, "empty": len(WITHOUT_PIXELS), "failed": BAD - 1}
    assert accounts[study_uid(WITHOUT_PIXELS[0])]["reason"] == "1 no_pixels"
    assert {accounts[study_uid(number)]["reason"] for number in CUT_SHORT} == {"1 image_damaged"}
    assert all(row["reason"] for row in rows(folder) if row["outcome"] == "failed")
    assert len(scan_images(folder).images) == STUDIES - BAD
    assert not scan_images(folder).findings
    assert f"{STUDIES} studies: {STUDIES - BAD} fetched, 1 empty, {BAD - 1} failed" in done.stdout
    assert not (folder / ON_ITS_WAY_FOLDER).exists()
    for secret in (PASSWORD, "PATIENT-", "Secret", "ACC0", study_uid(0)[:-2]):
        assert secret not in done.stdout + done.stderr
        assert secret not in " ".join(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert {path.stat().st_mode & 0o077 for path in folder.rglob("*")} == {0}

    before, rows_before = times(folder), sorted(map(str, rows(folder)))
    assert fetch(pacs, kind, folder, *BY_DAY).returncode == 1
    assert times(folder) == before
    assert sorted(map(str, rows(folder))) == rows_before


def test_what_a_kill_interrupts_goes_on_where_it_was(pacs: Orthanc, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    here = killed(command(pacs, "web", folder, (*BY_DAY, "--per-minute", "300")), folder, 10)
    assert 10 <= len(here) < STUDIES - BAD
    done = fetch(pacs, "web", folder, *BY_DAY)
    assert done.returncode == 1, done.stderr
    after = times(folder)
    assert {name: after[name] for name in here} == here
    assert outcomes(folder) == {"fetched": STUDIES - BAD, "empty": 1, "failed": BAD - 1}


def killed(call: Sequence[str], folder: Path, studies: int) -> dict[str, int]:
    """Start a call, kill it when so many studies are fetched, and return the files that its rows stand for."""
    process = subprocess.Popen(call, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (folder / FETCHED_NAME).exists() or outcomes(folder).get("fetched", 0) < studies:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folders = {row["folder"] for row in rows(folder) if row["outcome"] == "fetched"}
    return {name: when for name, when in times(folder).items() if str(Path(name).parent) in folders}


@pytest.mark.parametrize("kind", ["web", "get"])
def test_a_table_of_accession_numbers_is_fetched_and_those_that_are_not_there_are_named(
    kind: str, pacs: Orthanc, tmp_path: Path
) -> None:
    table = tmp_path / "findings.csv"
    table.write_text(f"accession_number;label\n{accession(5)};normal\nNONE1;normal\n{accession(6)};pneumonia\n")
    folder = tmp_path / "export"
    done = fetch(pacs, kind, folder, "--accessions", str(table))
    assert done.returncode == 1
    assert {row["accession_number"]: row["outcome"] for row in rows(folder)} == {
        accession(5): "fetched",
        accession(6): "fetched",
        "NONE1": "not found",
    }


def test_another_body_part_is_not_wanted_and_nothing_of_it_is_taken(pacs: Orthanc, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    call = command(pacs, "get", folder, (*FAST, *BY_DAY))
    call[call.index("chest")] = "knee"
    done = subprocess.run(call, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcomes(folder) == {"not wanted": STUDIES}
    assert not list(folder.rglob("*.dcm"))


def test_a_wrong_password_ends_the_call_at_once_and_is_not_repeated(pacs: Orthanc, tmp_path: Path) -> None:
    wrong = command(pacs, "web", tmp_path / "export", BY_DAY)
    access = Path(wrong[wrong.index("--pacs") + 1])
    access.write_text(access.read_text().replace(PASSWORD, "another-secret"))
    done = subprocess.run(wrong, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "HTTP 401" in done.stderr
    assert "another-secret" not in done.stdout + done.stderr


def test_a_title_that_the_pacs_does_not_know_ends_the_call_at_once(pacs: Orthanc, tmp_path: Path) -> None:
    wrong = command(pacs, "get", tmp_path / "export", BY_DAY)
    access = Path(wrong[wrong.index("--pacs") + 1])
    access.write_text(access.read_text().replace("called: ORTHANC", "called: SOMEBODY"))
    done = subprocess.run(wrong, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "titles" in done.stderr


def test_a_pacs_that_goes_away_ends_the_call_and_the_next_one_goes_on(tmp_path: Path) -> None:
    orthanc = Orthanc(tmp_path / "pacs")
    folder = tmp_path / "export"
    orthanc.start()
    try:
        orthanc.put([study(number) for number in range(20)])
        process = subprocess.Popen(
            command(orthanc, "web", folder, (*BY_DAY, "--per-minute", "300")), cwd=ROOT, env=ENVIRONMENT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (folder / FETCHED_NAME).exists() or outcomes(folder).get("fetched", 0) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        orthanc.stop()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "the PACS no longer answers" in said
        orthanc.start()
        assert fetch(orthanc, "web", folder, *BY_DAY).returncode == 0
        assert outcomes(folder) == {"fetched": 20}
    finally:
        orthanc.stop()


def issue(folder: Path) -> Certificates:
    """Make an authority, and certificates of it for the PACS at 127.0.0.1 and for us."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital authority")])
    now = datetime.datetime.now(datetime.UTC)

    def certify(name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        is_authority = key is authority_key
        builder = (
            x509.CertificateBuilder()
            .subject_name(authority if is_authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
            place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            builder = builder.add_extension(both, critical=False).add_extension(place, critical=False)
        path = folder / f"{name}.pem"
        path.write_bytes(builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    def keep(name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = folder / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path

    pacs_key, our_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    return Certificates(
        certify("authority", authority_key), certify("pacs", pacs_key), keep("pacs", pacs_key),
        certify("ours", our_key), keep("ours", our_key),
    )  # fmt: skip


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    certificates = issue(tmp_path_factory.mktemp("certificates"))
    orthanc = Orthanc(tmp_path_factory.mktemp("pacs"), certificates)
    orthanc.start()
    try:
        orthanc.put([study(number) for number in range(5)])
        yield orthanc
    finally:
        orthanc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_studies_come_over_tls_in_both_directions(kind: str, encrypted: Orthanc, tmp_path: Path) -> None:
    done = fetch(encrypted, kind, tmp_path / "export", *BY_DAY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(tmp_path / "export") == {"fetched": 5}


@pytest.mark.parametrize("kind", ["web", "get"])
def test_a_pacs_whose_certificate_is_of_another_authority_gets_no_query(
    kind: str, encrypted: Orthanc, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = issue(tmp_path / "other")
    wrong = command(encrypted, kind, tmp_path / "export", BY_DAY)
    access = Path(wrong[wrong.index("--pacs") + 1])
    assert encrypted.certificates is not None
    access.write_text(access.read_text().replace(str(encrypted.certificates.authority), str(other.authority)))
    done = subprocess.run(wrong, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 2
    assert "certificate" in done.stderr or "tls" in done.stderr
    assert not rows(tmp_path / "export")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["web", "get"])
def test_of_two_thousand_studies_all_but_the_bad_ones_come_in_five_minutes_and_300_mb_and_a_kill_costs_nothing(
    kind: str, tmp_path: Path
) -> None:
    orthanc = Orthanc(tmp_path / "pacs")
    folder, studies = tmp_path / "export", 2000
    without, short, removed, overwritten = (
        [number for number in range(studies) if number % 200 in rests] for rests in ((7,), (57, 187), (107,), (157,))
    )
    bad = {study_uid(number) for number in (*without, *short, *removed, *overwritten)}
    table = tmp_path / "findings.csv"
    table.write_text("accession_number\n" + "".join(f"{accession(number)}\n" for number in range(studies)))
    chosen = ("--accessions", str(table)) if kind == "web" else BY_DAY
    orthanc.start()
    try:
        orthanc.put(
            [
                study(number, **({"PixelData": None} if number in without else {"PixelData": bytes(64)}))
                if number in without + short
                else study(number)
                for number in range(studies)
            ]
        )
        orthanc.spoil(removed, None)
        orthanc.spoil(overwritten, GARBAGE)
        here = killed(command(orthanc, kind, folder, chosen), folder, 500)
        returned, largest_bytes = within_five_minutes(command(orthanc, kind, folder, chosen))
        assert returned == 1
        assert largest_bytes < 300 * 10**6
        after = times(folder)
        assert {name: after[name] for name in here} == here
        assert outcomes(folder) == {"fetched": 1950, "empty": 10, "failed": 40}
        others = [row for row in rows(folder) if row["outcome"] != "fetched"]
        assert all(row["reason"] for row in others)
        named = {row["study_instance_uid"] or uid_of(row["accession_number"]) for row in others}
        assert named == bad
    finally:
        orthanc.stop()


def within_five_minutes(call: Sequence[str]) -> tuple[int, int]:
    """Return the exit code of a call and the most memory it had at a time; fail where it takes longer."""
    process = subprocess.Popen(call, cwd=ROOT, env=ENVIRONMENT)
    deadline = time.monotonic() + 300
    while True:
        finished, status, used = os.wait4(process.pid, os.WNOHANG)
        if finished:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, used.ru_maxrss * 1024
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            pytest.fail("five minutes are over")
        time.sleep(0.2)


def uid_of(number: str) -> str:
    return study_uid(int(number.removeprefix("ACC")))
