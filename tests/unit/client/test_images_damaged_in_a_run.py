"""An image that becomes unreadable while a run trains costs its record, is told to its operator, and nobody else.

That nothing but the vector shows it is tested byte by byte in ``tests/attacks/test_twins_lose_an_image.py``.
"""

import csv
import dataclasses
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client.contribution import Contributor
from client.data import watch as watching
from client.data.watch import GONE_FILE
from client.status import STATUS_FILE, HospitalStatus
from common.config import replace
from common.run.messages import MaskRequest, Request
from common.telemetry.events import COMPLETED, Evaluated, Refusal
from deploy.experiment.consortium import InProcessConsortium, Loss, Site
from tests.support.small_consortium import CONFIG, POLICY, Dealt, Small, everybody

NAME = "hospital-1"
Damage = Callable[[Path], object]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@dataclass
class Damaged:
    """A run of some rounds, before the second of which images of one hospital are damaged."""

    small: Small
    site: Site
    damage: Callable[[Sequence[Path]], object]
    asked: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        dealt: Dealt,
        tmp_path: Path,
        damage: Callable[[Sequence[Path]], object],
        rounds: int = 3,
        **changes: Any,  # noqa: ANN401 - keys of sections of the configuration
    ) -> "Damaged":
        sites = dealt.sites(tmp_path, **everybody(allow_no_privacy=True))
        mine = shutil.copytree(sites[NAME].data, tmp_path / "shard")
        sites[NAME] = dataclasses.replace(sites[NAME], data=mine, cache=tmp_path / "cache")
        config = replace(CONFIG, experiment={"rounds": rounds}, **changes)
        made = cls(Small(dealt, tmp_path, config, InProcessConsortium(config, sites)), sites[NAME], damage)
        made.small.consortium.transport.line = made.line
        return made

    @property
    def images(self) -> list[Path]:
        return sorted(self.site.data.rglob("*.png"))

    def line(self, hospital: str, request: Request) -> Loss | None:
        if hospital == NAME and isinstance(request, MaskRequest):
            self.asked.append(request.round_number)
            if len(self.asked) == 2:
                self.damage(self.images)
        return None

    def status(self) -> HospitalStatus:
        status = HospitalStatus.read(self.site.state / STATUS_FILE)
        assert status is not None
        return status

    def named(self) -> list[dict[str, str]]:
        with (self.site.state / GONE_FILE).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PACE", 0)


@pytest.mark.parametrize(
    ("damage", "happened"), [(Path.unlink, "removed"), (cut_short, "changed")], ids=["removed", "cut short"]
)
def test_images_that_are_damaged_in_a_run_are_told_to_the_operator_and_end_nothing(
    damage: Damage, happened: str, dealt: Dealt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = []

    def some(images: Sequence[Path]) -> None:
        for path in images[::2]:
            names.append(path.name)
            damage(path)

    made = Damaged.of(dealt, tmp_path, some)
    with caplog.at_level(logging.WARNING, "confide.hospital"):
        assert made.small.run().train() == COMPLETED
    assert made.small.hospitals == [4, 4, 4]
    assert made.small.of(Refusal) == []
    (tested,) = made.small.of(Evaluated)
    assert tested.records == 4 * POLICY.stated_test_units
    (note,) = [note for note in made.status().notes if "no longer count" in note]
    assert note.startswith(f"{len(names)} images have been removed, damaged or changed")
    assert note in caplog.text
    assert not any(name in caplog.text for name in names)
    assert sorted(Path(row["file"]).name for row in made.named()) == sorted(names)
    assert {row["what"] for row in made.named()} == {happened}
    spent = [
        [(entry["round_number"], entry["booking"]) for entry in made.small.spent(name)] for name in (NAME, "hospital-2")
    ]
    assert spent[0] == spent[1]  # What a lost record had cost stays booked, and each later round is booked alike.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy": {"mode": "distributed"}},
        {"privacy": {"mode": "none"}, "evaluation": {"exact": True}},
        {"model": {"name": "scattering_linear"}, "training": {"copies": 2, "warp": "chest"}},
    ],
    ids=["local", "distributed", "without privacy", "features of copies"],
)
def test_a_hospital_that_loses_all_its_images_stays_in_every_round(
    changes: dict[str, Any], dealt: Dealt, tmp_path: Path
) -> None:
    made = Damaged.of(dealt, tmp_path, lambda _images: shutil.rmtree(tmp_path / "shard"), **changes)
    assert made.small.run().train() == COMPLETED
    assert made.small.hospitals == [4, 4, 4]
    assert made.small.of(Refusal) == []
    (tested,) = made.small.of(Evaluated)
    if "evaluation" in changes:  # Exact counts are of the other three.
        assert tested.records < 4 * POLICY.stated_test_units


def test_a_lost_image_is_trained_on_no_longer(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []
    original = Contributor._trained

    def spy(self: Contributor, plan: Any, data: Any, *rest: Any) -> Any:  # noqa: ANN401 - as it is called
        if self._watch is not None and self._watch._root == tmp_path / "shard":
            trained.append((len(data), len(data.here)))
        return original(self, plan, data, *rest)

    monkeypatch.setattr(Contributor, "_trained", spy)

    def three_of_training(_images: Sequence[Path]) -> None:
        for path in training_images(made.site)[:3]:
            path.unlink()

    made = Damaged.of(dealt, tmp_path, three_of_training)
    assert made.small.run().train() == COMPLETED
    everything = trained[0][0]
    assert trained[:3] == [(everything, everything), (everything, everything - 3), (everything, everything - 3)]


def training_images(site: Site) -> list[Path]:
    with (site.data / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return [site.data / row["file"] for row in csv.DictReader(file) if row["split"] == "train"]


def test_a_hospital_that_is_restarted_on_a_changed_folder_goes_on_with_what_it_began_with(
    dealt: Dealt, tmp_path: Path
) -> None:
    def damaged_and_killed(images: Sequence[Path]) -> None:
        cut_short(images[0])  # A manifest that names a file which is missing or damaged is refused at a run's start.
        images[1].unlink()
        made.small.consortium.restart(NAME)

    made = Damaged.of(dealt, tmp_path, damaged_and_killed, rounds=5)
    assert made.small.run().train() == COMPLETED
    assert {refusal.code for refusal in made.small.of(Refusal)} <= {"run"}  # It has lost its secrets, and joins again.
    assert made.small.hospitals[-1] == 4
    assert sorted(row["what"] for row in made.named()) == ["changed", "removed"]
    assert "data" not in made.status().refusals


def test_an_image_that_is_put_back_counts_again_and_its_note_goes(dealt: Dealt, tmp_path: Path) -> None:
    contents: dict[Path, bytes] = {}

    def lost_and_put_back(hospital: str, request: Request) -> Loss | None:
        if hospital == NAME and isinstance(request, MaskRequest):
            made.asked.append(request.round_number)
            path = made.images[0] if not contents else next(iter(contents))
            if len(made.asked) == 2:
                contents[path] = path.read_bytes()
                path.unlink()
            elif len(made.asked) == 3:
                assert made.named()
                path.write_bytes(contents[path])
        return None

    made = Damaged.of(dealt, tmp_path, lambda _images: None)
    made.small.consortium.transport.line = lost_and_put_back
    assert made.small.run().train() == COMPLETED
    assert not (made.site.state / GONE_FILE).exists()
    assert not any("no longer count" in note for note in made.status().notes)
