"""No file, event, reply or log line of a whole run in one process names a patient; a deployed one is an e2e test."""

import logging
from pathlib import Path

import pytest

from client.data.hospital_data import UNUSABLE_DATA
from common.shards import MANIFEST_NAME
from common.telemetry.events import Event, Refusal, RoundDone
from deploy.datasets.datasets import obtain
from deploy.experiment.consortium import InProcessConsortium, Site
from tests.support import named_patients
from tests.support.small_consortium import CONFIG, HOSPITALS, RUN_ID

DATA = "data"


def test_the_planted_names_are_found_where_they_are(tmp_path: Path) -> None:
    named_patients.write(tmp_path / DATA, seed=1)
    named = named_patients.named_below(tmp_path, ())
    assert len(named) == named_patients.RECORDS + 1
    assert tmp_path / DATA / MANIFEST_NAME in named
    assert named_patients.named_below(tmp_path, (tmp_path / DATA,)) == []
    assert named_patients.is_named_in("ZEISIG".encode("utf-16-le"))


def test_nothing_a_run_leaves_or_says_names_a_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = {name: tmp_path / name / DATA for name in HOSPITALS}
    for seed, folder in enumerate(folders.values()):
        named_patients.write(folder, seed)
    named_patients.break_one(folders["hospital-4"])
    sites = {
        name: Site(
            data=folder, state=tmp_path / name / "state", cache=tmp_path / name / "cache", policy=CONFIG.hospital
        )
        for name, folder in folders.items()
    }
    events: list[Event] = []
    data = obtain(CONFIG.data, CONFIG.experiment.task, CONFIG.model.image_size)
    with caplog.at_level(logging.DEBUG):
        consortium = InProcessConsortium(CONFIG, sites)
        consortium.server(RUN_ID, data, tmp_path / "checkpoints", events.append).train()
    assert [event.hospitals for event in events if isinstance(event, RoundDone)] == [3, 3]
    refusals = [event for event in events if isinstance(event, Refusal)]
    assert {(event.hospital, event.code) for event in refusals} == {("hospital-4", "data")}
    assert refusals[0].reason == UNUSABLE_DATA
    (tmp_path / "events").write_text("".join(event.to_line() for event in events))
    (tmp_path / "log").write_text(caplog.text)
    assert "export or copy it again" in caplog.text
    # Beside its prepared images a hospital keeps from which files they came, for its own eyes: it must be able to say
    # which image is gone.
    caches = [tmp_path / name / "cache" for name in HOSPITALS]
    assert all(cache.stat().st_mode & 0o777 == 0o700 for cache in caches)
    assert named_patients.named_below(tmp_path, (*folders.values(), *caches)) == []
