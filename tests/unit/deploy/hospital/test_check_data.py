import csv
import re
import stat
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from client.data import DataContract
from client.data.mistakes import ADVICE, Mistake
from common.config import Config
from common.errors import ConfigError, DataError
from deploy import cli
from deploy.datasets.tasks import task_named
from deploy.hospital import check_data
from tests.support.hospital_folder import Hospital, dicom, healthy
from tests.support.planted_mistakes import another_chest

CONFIG = Path(__file__).parents[4] / "config.yaml"


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return healthy(tmp_path / "data")


def run(hospital: Hospital, *arguments: str) -> int:
    settings = ("--config", str(CONFIG), "--set", "training.batch_size=8")
    return cli.main(["hospital", "check-data", str(hospital.folder), *settings, *arguments])


def text_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed without the frame of the table, so that folded cells are one line again."""
    return " ".join(re.sub(r"[│┃┏┓┗┛┡┩├┤└┘━─┼╇┳┴┬╈]", " ", capsys.readouterr().out).split())


def test_data_that_breaks_no_rule_is_told_so_and_exits_with_0(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(hospital) == 0
    printed = text_of(capsys)
    assert "60 images of 30 patients (manifest.csv)" in printed
    assert "train 20 20" in printed
    assert "The data meets the contract." in printed


def test_a_mistake_is_shown_with_file_reason_and_remedy_and_exits_with_1(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital.file(8).write_text("not an image")
    assert run(hospital) == check_data.EXIT_UNUSABLE
    printed = text_of(capsys)
    assert Mistake.NOT_AN_IMAGE.value in printed
    assert hospital.rows[8][0] in printed
    assert "1 place must be put right" in printed
    for words in ADVICE[Mistake.NOT_AN_IMAGE][1:]:
        assert str(words).split()[0] in printed


def test_the_table_shows_five_places_of_a_kind_and_the_file_all(
    hospital: Hospital, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        hospital.file(number).write_text("not an image")
    target = tmp_path / "findings.csv"
    assert run(hospital, "--findings", str(target)) == check_data.EXIT_UNUSABLE
    assert "and 3 more" in text_of(capsys)
    rows = list(csv.DictReader(target.read_text(encoding="utf-8").splitlines()))
    named = [row for row in rows if row["mistake"] == "not_an_image"]
    assert [row["file"] for row in named] == [hospital.rows[number][0] for number in range(8)]
    assert {row["blocks"] for row in named} == {"yes"}
    assert all(row["reason"] and row["remedy"] for row in rows)


def test_a_file_name_with_brackets_is_shown_as_it_is(hospital: Hospital, capsys: pytest.CaptureFixture[str]) -> None:
    hospital.add("a[red].png", b"not an image")
    run(hospital)
    assert "a[red].png" in text_of(capsys)


def test_rows_of_the_findings_can_be_accepted(hospital: Hospital, tmp_path: Path) -> None:
    hospital.add("copy.png", hospital.file(0).read_bytes())
    target = tmp_path / "findings.csv"
    assert run(hospital, "--findings", str(target)) == check_data.EXIT_UNUSABLE
    (hospital.folder / "accepted.csv").write_text(target.read_text())
    assert run(hospital) == 0


def test_clean_copies_are_written_and_can_be_checked_in_turn(
    hospital: Hospital, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital.add("named.dcm", dicom(another_chest(), PatientName="Mustermann^Erika", PatientID="4711"))
    out = tmp_path / "clean"
    assert run(hospital, "--deidentify", str(out)) == 0
    assert "61 clean copies" in text_of(capsys)
    copies = [pydicom.dcmread(path) for path in out.rglob("*.dcm")]
    assert len(copies) == 1
    assert str(copies[0].PatientName).startswith("patient-")
    assert run(replace(hospital, folder=out)) == 0
    assert "Mustermann" not in capsys.readouterr().out


def test_prepared_images_are_kept_for_the_agent_and_only_for_its_user(hospital: Hospital, tmp_path: Path) -> None:
    assert run(hospital, "--cache", str(tmp_path / "cache")) == 0
    kept = list((tmp_path / "cache").glob("prepared-*/*"))
    assert kept
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)


def test_the_contract_follows_the_configuration() -> None:
    assert check_data.contract_of(Config()) == DataContract(
        "pneumonia",
        ("normal", "pneumonia"),
        channels=1,
        image_size=28,
        batch_size=1,
        delta=1e-4,
        terms=task_named("pneumonia").terms,
    )


def test_a_missing_folder_or_task_is_one_line_and_exits_with_2(
    tmp_path: Path, hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(replace(hospital, folder=tmp_path / "missing")) == cli.EXIT_ERROR
    assert "does not exist" in capsys.readouterr().err
    assert run(hospital, "--set", "experiment.task=astrology") == cli.EXIT_ERROR
    assert "experiment.task" in capsys.readouterr().err


def test_a_findings_file_or_clean_folder_that_cannot_be_written_is_refused_by_name(
    hospital: Hospital, tmp_path: Path
) -> None:
    arguments = ["check-data", str(hospital.folder), "--config", str(CONFIG), "--set", "training.batch_size=8"]
    with pytest.raises(DataError, match="--findings"):
        check_data.main([*arguments, "--findings", str(tmp_path / "no" / "findings.csv")])
    with pytest.raises(DataError, match="outside the data"):
        check_data.main([*arguments, "--deidentify", str(hospital.folder / "clean")])
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        check_data.main([*arguments, "--set", "nonsense"])
