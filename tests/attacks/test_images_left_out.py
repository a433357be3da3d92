"""A server learns from who refuses whether a hospital has a record with one rare label.

It chooses the label map, and so which images a run uses, and it chooses what a run asks of an image. With a map that
names the rare label alone, and a size that no image has, a hospital that refused unusable images refused exactly if it
had such a record. A ledger that knew its data by the images of a run alone gave the same away: data without any image
in common is refused. At 67e42c4 both told.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.data import DataContract, HospitalData, open_data
from client.ledger.place import DIGEST_BYTES, open_ledger
from common.config import HospitalConfig, PrivacyUnit
from common.run.round_terms import Purpose
from common.task import ImageKindName, TaskConfig, TaskKind
from tests.support.hospital_folder import CONTRACT, Hospital, healthy, png
from tests.support.planted_mistakes import another_chest
from tests.support.twins import Led, Twins, described, quick_accounting

RARE = "silicosis"
POLICY = HospitalConfig(
    delta=1e-3,
    stated_training_units=24,
    stated_validation_units=6,
    stated_test_units=6,
    allow_no_privacy=True,
)


def asked(named: dict[str, str], images: ImageKindName = ImageKindName.ANY) -> DataContract:
    """Return a run's contract with a label map, which leaves out whatever it gives no class."""
    terms = TaskConfig(kind=TaskKind.BINARY, classes=("no", "yes"), positive=("yes",), labels=named, images=images)
    return replace(CONTRACT, task="own", classes=terms.classes, batch_size=1, delta=0.0, terms=terms)


ONLY_RARE = {"normal": "", "pneumonia": "", RARE: "yes"}
CONTRACTS = {
    "any image": asked(ONLY_RARE),
    "larger than any": replace(asked(ONLY_RARE), image_size=512),
    "in colour": replace(asked(ONLY_RARE), channels=3),
    "of another kind": asked(ONLY_RARE, ImageKindName.FUNDUS_PHOTOGRAPH),
    "of whole patients": replace(asked(ONLY_RARE), unit=PrivacyUnit.PATIENT),
    "not named at all": asked({"normal": "", "pneumonia": "", "other": "yes"}),
    "one class of all": asked({"normal": "no", "pneumonia": "no", RARE: "yes"}),
}


def hospital(folder: Path, *, has_one: bool, content: bytes | None = None) -> Hospital:
    """Return a hospital's data with or without an image of the rare label, whose patient nobody named."""
    made = healthy(folder)
    label = RARE if has_one else "normal"
    made.add("one-more.png", content or png(another_chest(seed=9)), (label, "", "train"))
    return made


@pytest.mark.parametrize("name", CONTRACTS)
def test_no_term_of_a_run_makes_a_hospital_refuse_for_the_images_that_the_terms_choose(
    name: str, tmp_path: Path
) -> None:
    for has_one in (True, False):
        made = hospital(tmp_path / str(has_one), has_one=has_one)
        for _ in ("examined", "kept"):
            data = open_data(made.folder, CONTRACTS[name], tmp_path / f"cache-{has_one}")
            side = CONTRACTS[name].image_size
            assert data.train.images.shape[1:] == (CONTRACTS[name].channels, side, side)


@pytest.mark.parametrize("content", [b"", b"\x89PNG cut short"])
def test_an_image_that_cannot_be_opened_refuses_every_run_whether_its_map_names_the_label_or_not(
    content: bytes, tmp_path: Path
) -> None:
    made = hospital(tmp_path / "data", has_one=True, content=content or b"no image")
    refused = []
    for contract in CONTRACTS.values():
        with pytest.raises(Exception, match="cannot be used") as caught:
            open_data(made.folder, contract, tmp_path / "cache")
        refused.append(str(caught.value))
    assert len(set(refused)) == 1


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_nor_does_it_matter_whether_the_map_names_the_label_of_a_file_that_is_gone(
    change: object, tmp_path: Path
) -> None:
    assert callable(change)
    made = hospital(tmp_path / "data", has_one=True)
    change(made.folder / "one-more.png")
    for contract in CONTRACTS.values():
        with pytest.raises(Exception, match="cannot be used"):
            open_data(made.folder, contract, tmp_path / "cache")


def _opened(folder: Path, contract: DataContract, *, has_one: bool) -> HospitalData:
    return open_data(hospital(folder, has_one=has_one).folder, contract, folder.parent / f"cache of {folder.name}")


def test_a_hospital_without_any_record_for_a_run_answers_as_one_that_has_one(tmp_path: Path) -> None:
    """``Twins`` raises where a byte that leaves differs, but for the masked vectors."""
    pair = (
        _opened(tmp_path / "with", CONTRACTS["any image"], has_one=True),
        _opened(tmp_path / "without", CONTRACTS["any image"], has_one=False),
    )
    assert [len(data.train) for data in pair] == [1, 0]
    for mode in ("local", "distributed", "none"):
        with quick_accounting():
            twins = Twins(tmp_path / mode, 1, POLICY, pair)
            server = Led(twins, described(1, privacy={"mode": mode}))
            refused = [server.lead(Purpose.TRAIN)]
            refused += [server.lead(Purpose.EVALUATE, None, release) for release in (1, 2, 3)]
            twins.close()
        assert refused == [None] * 4
        assert server.finished == 4


def test_a_ledger_knows_its_data_under_every_map(tmp_path: Path) -> None:
    made = hospital(tmp_path / "data", has_one=True)
    digests = {}
    for name, contract in CONTRACTS.items():
        data = open_data(made.folder, contract, tmp_path / "cache")
        digests[name] = set(np.frombuffer(data.images, f"V{DIGEST_BYTES}").tolist())
        open_ledger(tmp_path / "state", data.fingerprint, data.images, tmp_path / "registry")
    files = set.intersection(*digests.values())
    assert len(files) >= len(made.rows)
    assert digests["any image"] == digests["not named at all"] == digests["one class of all"]
