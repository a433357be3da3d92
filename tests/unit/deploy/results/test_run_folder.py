from pathlib import Path

import numpy as np

from common.config import Config
from common.models.registry import parameter_count
from common.settings import CHECKPOINTS_FOLDER, ServerSettings
from common.telemetry.events import RunFinished
from deploy.results.run_folder import RunFolder
from server.checkpoints import Checkpoint, CheckpointStore
from server.events import EventLog
from server.progress import RunProgress
from tests.example_run import example_run

RUN_ID = "ab" * 16


def _settings(folder: Path) -> ServerSettings:
    return ServerSettings(
        config=folder / "config.yaml",
        run=folder / "run",
        logs=folder / "logs",
        run_id=RUN_ID,
        data_set="phantom-pneumonia",
        classes=("normal", "pneumonia"),
        channels=1,
    )


def _rows(folder: Path) -> int:
    return len((folder / "run" / "metrics.csv").read_text().splitlines()) - 1


def test_metrics_grow_while_a_run_goes_on_and_a_restart_writes_them_again(tmp_path: Path) -> None:
    events = [event for event in example_run(4) if not isinstance(event, RunFinished)]
    with EventLog(tmp_path / "run") as log:
        folder = RunFolder(_settings(tmp_path))
        for event in events:
            log.append(event)
        folder.bring_up_to_date()
        assert _rows(tmp_path) == 4
    again = RunFolder(_settings(tmp_path))
    assert _rows(tmp_path) == 0
    again.bring_up_to_date()
    assert _rows(tmp_path) == 4


def test_a_finished_run_leaves_its_model_beside_its_events(tmp_path: Path) -> None:
    config = Config()
    model = np.zeros(parameter_count(config.model.name, 2, 1, config.model.image_size), np.float32)
    CheckpointStore(tmp_path / "run" / CHECKPOINTS_FOLDER).save(
        Checkpoint(RUN_ID, 4, 4, model, {}, 4, RunProgress(threshold=0.5))
    )
    with EventLog(tmp_path / "run") as log:
        for event in example_run(4):
            log.append(event)
    RunFolder(_settings(tmp_path)).bring_up_to_date()
    assert {"model.safetensors", "model.json", "summary.json", "metrics.csv"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_a_run_that_ended_before_it_began_leaves_no_model(tmp_path: Path) -> None:
    with EventLog(tmp_path / "run") as log:
        log.append(RunFinished(time=1.0, reason="too few hospitals", rounds_done=0))
    RunFolder(_settings(tmp_path)).bring_up_to_date()
    assert not (tmp_path / "run" / "model.safetensors").exists()
