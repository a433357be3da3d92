"""A server counts a hospital's records of one label by how long its answer to a run takes.

The label map is the server's: a run that names one rare label, and leaves out all others, once prepared those images
alone, warped them and computed their features. How much longer the answer took than that to a run which names nothing
was a number of records. Images that a run leaves out are now kept and computed like the others, so the work is the same
whatever the map names. What is counted here is work, not seconds.
"""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.data.examine
import client.data.survey
import client.features
import client.warps
from client.data.cache import PreparedWriter
from common.run.messages import KeysReply
from tests.support.asking_server import AskingServer, Terms
from tests.support.hospital_folder import Hospital, healthy, png
from tests.support.planted_mistakes import another_chest

RARE = 5
"""Images of the label that a server asks about."""

MAPS = {
    "every label": {"normal": "other", "pneumonia": "other", "effusion": "finding"},
    "all but the rare one": {"normal": "other", "pneumonia": "finding", "effusion": ""},
    "the rare one alone": {"normal": "", "pneumonia": "", "effusion": "finding"},
    "next to nothing": {"normal": "", "pneumonia": "", "effusion": ""},
}
MODELS: dict[str, Terms] = {
    "images": {},
    "features": {"model": {"name": "scattering_linear"}},
    "features of copies": {"model": {"name": "scattering_linear"}, "training": {"copies": 3, "warp": "chest"}},
}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what joining a run does to images."""
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def counting(place: Any, name: str, argument: int) -> None:  # noqa: ANN401 - a module or a class
        real = getattr(place, name)

        def counted(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - as the function that is counted
            found = given[argument]
            with lock:  # Images are read by several threads.
                done[name] += len(found) if isinstance(found, np.ndarray) or hasattr(found, "dim") else 1
            return real(*given, **named)

        monkeypatch.setattr(place, name, counted)

    counting(client.data.examine, "read_picture", 0)
    counting(client.data.survey, "alike", 0)
    counting(PreparedWriter, "_write", 1)
    counting(client.warps, "_warped", 0)
    counting(client.features, "_digests", 0)
    counting(client.features, "extract", 1)
    return done


def hospital(folder: Path) -> Hospital:
    made = healthy(folder)
    for number in range(RARE):
        made.add(f"rare-{number}.png", png(another_chest(32, 100 + number)), ("effusion", f"p-rare-{number}", "train"))
    return made


def _task(labels: dict[str, str]) -> Terms:
    classes = ("other", "finding")
    task = {"kind": "binary", "classes": classes, "positive": classes[1:], "labels": labels}
    return {"task": task, "privacy": {"accountant": "rdp"}}  # Which is computed in milliseconds.


def _sizes(folder: Path) -> list[int]:
    """Return how many bytes lie in a hospital's cache, beside what is kept of each record for bookkeeping."""
    files = [*folder.glob("cache/**/*.images"), *folder.glob("cache/*.npy"), *folder.glob("cache/**/images.bin")]
    return sorted(file.stat().st_size for file in files)


@pytest.mark.parametrize("model", MODELS)
def test_joining_a_run_is_the_same_work_whatever_its_label_map_names(
    tmp_path: Path, work: Counter[str], model: str
) -> None:
    data, found, sizes = hospital(tmp_path / "data"), {}, {}
    for name, labels in MAPS.items():
        server = AskingServer()
        work.clear()
        agent = server.agent(tmp_path / name / "hospital", data.folder)
        assert isinstance(server.ask(agent, {**MODELS[model], **_task(labels)}), KeysReply)
        found[name], sizes[name] = dict(work), _sizes(tmp_path / name / "hospital")
    first = next(iter(MAPS))
    assert found == dict.fromkeys(MAPS, found[first])
    assert sizes == dict.fromkeys(MAPS, sizes[first])
    images = len(data.rows)
    assert found[first]["read_picture"] == found[first]["_write"] == found[first]["alike"] == images
    if "extract" in found[first]:
        train = sum(row[-1] == "train" for row in data.rows)
        assert found[first]["extract"] >= images
        assert found[first].get("_warped", 0) in (0, 2 * (images - sum(row[-1] == "test" for row in data.rows)))
        assert train > RARE


def test_a_second_run_with_another_map_computes_no_feature_again(tmp_path: Path, work: Counter[str]) -> None:
    data, server = hospital(tmp_path / "data"), AskingServer()
    agent = server.agent(tmp_path / "hospital", data.folder)
    for labels in MAPS.values():
        work["extract"] = 0
        assert isinstance(server.ask(agent, {**MODELS["features"], **_task(labels)}), KeysReply)
        if labels != MAPS["every label"]:
            assert work["extract"] == 0


def test_a_record_of_the_rare_label_takes_no_more_work_than_one_of_another(tmp_path: Path, work: Counter[str]) -> None:
    found = []
    for label in ("effusion", "normal"):
        made, server = healthy(tmp_path / label), AskingServer()
        made.add("one-more.png", png(another_chest(seed=9)), (label, "p-new", "train"))
        work.clear()
        agent = server.agent(tmp_path / f"hospital {label}", made.folder)
        terms = {**MODELS["features"], **_task(MAPS["the rare one alone"])}
        assert isinstance(server.ask(agent, terms), KeysReply)
        found.append(dict(work))
    assert found[0] == found[1]


def test_images_that_a_run_leaves_out_are_not_trained_on(tmp_path: Path) -> None:
    data, server = hospital(tmp_path / "data"), AskingServer()
    agent = server.agent(tmp_path / "hospital", data.folder)
    assert isinstance(server.ask(agent, {**MODELS["features"], **_task(MAPS["all but the rare one"])}), KeysReply)
    assert agent._run is not None
    train = agent._run.contributor._train
    named = sum(row[-1] == "train" and row[1] != "effusion" for row in data.rows)
    assert len(train) == named == len(train.take(slice(None)))
    assert len(train.inputs) == named + RARE
