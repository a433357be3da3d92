"""A person's own images propose their task, and are read as a hospital reads them."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from client.data.contract import DataContract
from common.config import load_config
from common.errors import DataError
from common.task import Counts, ImageKindName, TaskConfig, TaskKind
from deploy.datasets import own_data
from deploy.datasets.image_tree import is_split_tree
from deploy.datasets.own_data import propose


def image(path: Path, seed: int, *, colour: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (40, 40, 3) if colour else (40, 40)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8)).save(path)


def tree(folder: Path, classes: tuple[str, ...], each: int = 20, *, colour: bool = False) -> Path:
    for place, name in enumerate(classes):
        for number in range(each):
            image(folder / name / f"{number}.png", place * each + number, colour=colour)
    return folder


def contract(terms: TaskConfig) -> DataContract:
    return DataContract("own", terms.classes, terms.channels, 28, 1, 0.0, terms=terms)


def test_folders_of_three_classes_propose_a_task_in_which_the_sick_ones_are_positive(tmp_path: Path) -> None:
    proposal = propose(tree(tmp_path / "Lungs 2024", ("normal", "covid", "tb")))
    assert proposal.name == "lungs_2024"
    assert proposal.terms.kind is TaskKind.MULTICLASS
    assert proposal.terms.classes == ("covid", "normal", "tb")
    assert proposal.terms.positive == ("covid", "tb")


def test_what_is_proposed_is_a_configuration_that_reads_back_to_it(tmp_path: Path) -> None:
    proposal = propose(tree(tmp_path / "lungs", ("healthy", "tb")))
    (tmp_path / "task.yaml").write_text(proposal.as_yaml())
    config = load_config(tmp_path / "task.yaml")
    assert (config.task, config.experiment.task) == (proposal.terms, "lungs")
    assert config.task.positive == ("tb",)


def test_of_two_classes_of_which_nothing_says_which_is_sick_a_person_is_asked_to_decide(tmp_path: Path) -> None:
    proposal = propose(tree(tmp_path / "x", ("left", "right")))
    assert proposal.terms.positive == ("right",)
    assert any("decide" in doubt for doubt in proposal.doubts)
    assert "decide" in proposal.as_yaml()


def test_numbered_folders_are_grades_and_colour_is_seen(tmp_path: Path) -> None:
    terms = propose(tree(tmp_path / "eyes", ("0", "1", "2"), colour=True)).terms
    assert (terms.kind, terms.channels) == (TaskKind.ORDINAL, 3)


def test_a_tar_of_a_folder_is_read_like_the_folder(tmp_path: Path) -> None:
    folder = tree(tmp_path / "lungs", ("normal", "covid", "tb"))
    with tarfile.open(tmp_path / "lungs.tar", "w") as archive:
        archive.add(folder, "lungs")
    proposal = propose(tmp_path / "lungs.tar")
    assert proposal.terms == propose(folder).terms
    from_tar, from_folder = (own_data.read(path, contract(proposal.terms)) for path in (tmp_path / "lungs.tar", folder))
    for split, records in from_folder[0].items():
        assert np.array_equal(np.sort(from_tar[0][split].labels), np.sort(records.labels))
    assert sum(map(len, from_folder[0].values())) == 60


def test_a_column_for_each_label_proposes_a_task_of_several_labels(tmp_path: Path) -> None:
    rows = ["file,patient_id,Age,Edema,Mass"]
    for number in range(30):
        image(tmp_path / "d" / f"{number}.png", number)
        rows.append(f"{number}.png,p{number},40,{number % 2},{-1 if number == 3 else ''}")
    (tmp_path / "d" / "manifest.csv").write_text("\n".join(rows) + "\n")
    terms = propose(tmp_path / "d").terms
    assert (terms.kind, terms.classes, terms.uncertain) == (TaskKind.MULTILABEL, ("Edema", "Mass"), Counts.LEAVE_OUT)
    parts, _ = own_data.read(tmp_path / "d", contract(terms))
    # The record whose Mass is uncertain keeps its Edema; its number says that Mass is not known.
    assert {int(label) for records in parts.values() for label in records.labels} == {0, 1, 0b1001}


def test_a_column_of_labels_proposes_its_values(tmp_path: Path) -> None:
    rows = ["file,label"]
    for number in range(6):
        image(tmp_path / f"{number}.png", number)
        rows.append(f"{number}.png,{('normal', 'covid', 'tb')[number % 3]}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert propose(tmp_path).terms.classes == ("covid", "normal", "tb")


def test_the_table_of_a_public_set_proposes_its_labels(tmp_path: Path) -> None:
    image(tmp_path / "images" / "00000001_000.png", 1)
    head = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    (tmp_path / "Data_Entry_2017.csv").write_text(f"{head}\n00000001_000.png,No Finding,0,1,58,M,PA\n")
    terms = propose(tmp_path).terms
    assert (terms.kind, len(terms.classes)) == (TaskKind.MULTILABEL, 14)
    assert terms.images is ImageKindName.CHEST_RADIOGRAPH


def test_images_that_a_hospital_would_refuse_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = tree(tmp_path / "lungs", ("normal", "tb"))
    (folder / "tb" / "broken.png").write_bytes((folder / "tb" / "0.png").read_bytes()[:60])
    parts, notes = own_data.read(folder, contract(propose(folder).terms))
    assert sum(map(len, parts.values())) == 40
    assert notes == ("1 images left out: image_damaged",)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ((), "must hold images"),
        (("one",), "must tell 2 to 256 classes apart.*got 1"),
    ],
)
def test_data_without_a_task_are_refused_in_one_line(tmp_path: Path, made: tuple[str, ...], complaint: str) -> None:
    folder = tree(tmp_path / "d", made)
    folder.mkdir(exist_ok=True)
    (folder / "readme.txt").write_text("nothing")
    with pytest.raises(DataError, match=complaint) as refused:
        propose(folder)
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_none_of_the_tasks_classes_is_refused_by_name(tmp_path: Path) -> None:
    folder = tree(tmp_path / "lungs", ("normal", "covid", "tb"))
    terms = TaskConfig(kind=TaskKind.BINARY, classes=("normal", "tb"), positive=("tb",))
    with pytest.raises(DataError, match=r"in 1 places \(covid\); the classes are normal, tb; .*task.labels"):
        own_data.read(folder, contract(terms))
    mapped = terms.model_copy(update={"labels": {"covid": ""}})
    parts, notes = own_data.read(folder, contract(mapped))
    assert sum(map(len, parts.values())) == 40
    assert notes == ("20 records are left out, as the task says",)


def test_the_trees_of_presets_are_told_from_others(tmp_path: Path) -> None:
    tree(tmp_path / "a" / "train", ("NORMAL", "PNEUMONIA"), each=1)
    assert is_split_tree(tmp_path / "a", ("normal", "pneumonia"))
    tree(tmp_path / "a" / "test", ("covid",), each=1)
    assert not is_split_tree(tmp_path / "a", ("normal", "pneumonia"))


def test_a_proposal_is_yaml_of_two_sections(tmp_path: Path) -> None:
    text = propose(tree(tmp_path / "x", ("normal", "tb"))).as_yaml()
    assert set(yaml.safe_load(text)) == {"experiment", "task"}
    assert max(map(len, text.splitlines())) <= 100
