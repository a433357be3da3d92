"""An image that becomes unreadable while a run trains neither ends the run nor changes what the hospital answers."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import replace
from common.run.messages import MaskRequest, Request
from common.telemetry.events import COMPLETED, Evaluated, Refusal
from deploy.experiment.consortium import InProcessConsortium, Loss
from tests.support.small_consortium import CONFIG, POLICY, Dealt, Small

NAME = "hospital-1"
Damage = Callable[[Path], object]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("damage", [Path.unlink, cut_short], ids=["removed", "cut short"])
def test_images_that_are_damaged_between_two_rounds_neither_end_the_run_nor_reach_the_server(
    damage: Damage, dealt: Dealt, tmp_path: Path
) -> None:
    sites = dealt.sites(tmp_path)
    mine = shutil.copytree(sites[NAME].data, tmp_path / "shard")
    sites[NAME] = dataclasses.replace(sites[NAME], data=mine, cache=tmp_path / "cache")
    images = sorted(mine.rglob("*.png"))
    asked: list[int] = []

    def line(hospital: str, request: Request) -> Loss | None:
        if hospital == NAME and isinstance(request, MaskRequest):
            asked.append(request.round_number)
            if request.round_number == 1:  # the data is open: the round before this one's answer has read it
                for path in images:
                    damage(path)
        return None

    config = replace(CONFIG, experiment={"rounds": 3})
    made = Small(dealt, tmp_path, config, InProcessConsortium(config, sites))
    made.consortium.transport.line = line
    assert made.run().train() == COMPLETED
    assert set(asked) >= {1, 2, 3}
    assert made.hospitals == [4, 4, 4]
    assert made.of(Refusal) == []
    (tested,) = made.of(Evaluated)
    assert tested.records == 4 * POLICY.stated_test_units
