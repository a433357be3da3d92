"""A hospital's state folder with images, an agent's cache and a finished run that it has received and keeps."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from client.data import DataContract
from client.data.hospital_data import open_data
from client.data.watch import hold
from client.kept_runs import RECEIVED_FILE, ReceivedRun, folder_of
from common.config import Config, HospitalConfig, RunDescription, replace
from common.files import make_private_folder, write_private
from common.run.delivery import DELIVERY_FILE, NEEDED_FILES, file_fact
from common.settings import CACHE_FOLDER, HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.datasets.datasets import obtain
from deploy.demo.dealer import deal
from tests.support.finished_run import finished_run


@dataclass(frozen=True)
class KeptRun:
    """Where a hospital's files are, and the run that it keeps."""

    state: Path
    data: Path
    description: RunDescription

    @property
    def kept(self) -> Path:
        return folder_of(self.state, self.description.run_id)

    def files(self) -> dict[str, bytes]:
        """Return every file of the hospital, its images included."""
        everything = (*self.state.rglob("*"), *self.data.rglob("*"))
        return {str(path): path.read_bytes() for path in everything if path.is_file()}


def kept_run(folder: Path, config: Config | None = None, records: int = 400) -> KeptRun:
    """Write a hospital that joined a run, prepared its images for it and has received its model."""
    config = config or Config()
    finished = finished_run(folder / "server", config)
    finished.write_results()
    state, shard = folder / "state", folder / "shard"
    make_private_folder(state)
    finished.hospital(state)
    description = finished.run.description
    place = folder_of(state, description.run_id)
    place.mkdir(parents=True)
    for name in (*NEEDED_FILES, DELIVERY_FILE):
        shutil.copy(finished.folder / name, place / name)
    received = ReceivedRun(
        run_id=description.run_id, delivery=file_fact(place / DELIVERY_FILE).sha256, time=1.0,
        task=description.experiment.task, steps=2, rounds=3, last_step_seen=2,
    )  # fmt: skip
    write_private(place / RECEIVED_FILE, received.model_dump_json().encode())

    images = replace(config, data={"source": "phantom", "phantom_records": records})
    deal(obtain(images.data, "pneumonia", config.model.image_size), [shard], images.data, 1, 1)
    policy = HospitalConfig(delta=1e-3, stated_training_units=100)
    write_private(state / "config.yaml", replace(config, hospital=policy.model_dump()).as_yaml())
    HospitalSettings(fleet_address="localhost:1", logs=state / "logs", data=shard, config=state / "config.yaml").write(
        state / HOSPITAL_SETTINGS_FILE
    )
    data = open_data(shard, DataContract.of_run(description), state / CACHE_FOLDER)
    hold(state, description.run_id, data.key)
    return KeptRun(state, shard, description)
