import shutil
from pathlib import Path

import pytest

from common.config import Config, load_config, replace
from common.errors import ConfigError, RunError
from common.settings import HOSPITAL_SETTINGS_FILE, SERVER_SETTINGS_FILE, HospitalSettings, ServerSettings
from common.telemetry.events import COMPLETED, EVENTS_FILE, RunFinished
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealing import count_dealt, stated
from deploy.demo.demo import _Demo, main
from deploy.demo.loopback import LoopbackDeployment
from deploy.results.live_table import LiveTable
from server.only_one import only_server
from server.run import new_run_id
from tests.support.example_run import example_run

CONFIG = replace(Config(), experiment={"num_clients": 3}, data={"source": "phantom"})


@pytest.mark.long
def test_each_hospital_of_a_demo_states_what_it_got_in_its_own_configuration(tmp_path: Path) -> None:
    data: DataSet = obtain(CONFIG.data, CONFIG.experiment.task, CONFIG.model.image_size)
    demo = _Demo(LoopbackDeployment(CONFIG, tmp_path, new_run_id()), LiveTable())
    demo._deployment.set_up(data)
    demo._deal(data)
    for member in demo._deployment.members:
        own = load_config(HospitalSettings.read(member.state / HOSPITAL_SETTINGS_FILE).config)
        dealt = count_dealt(member.data, CONFIG.privacy.unit)
        expected = stated(dealt, CONFIG.aggregation.max_weight)
        assert own == replace(CONFIG, hospital=expected)
        assert 0.9 * dealt.training < own.hospital.stated_training_units <= dealt.training
        assert 0 < own.hospital.stated_test_units <= dealt.test
    server = load_config(demo._deployment.consortium.server_state / "config.yaml")
    assert server == CONFIG  # what hospitals state reaches the server by their certificates' owners alone


@pytest.fixture
def set_up(tmp_path: Path) -> LoopbackDeployment:
    folder = tmp_path / "run"
    deployment = LoopbackDeployment(CONFIG, folder, new_run_id())
    deployment.set_up(obtain(CONFIG.data, CONFIG.experiment.task, CONFIG.model.image_size))
    for member in deployment.members:
        member.data.mkdir(parents=True)
        (member.data / "1.png").write_bytes(b"an image")
        (member.state / "audit.jsonl").write_text("{}")
    return deployment


def test_a_stopped_demo_is_taken_up_where_its_folder_lies_now_and_on_free_ports(
    set_up: LoopbackDeployment, tmp_path: Path
) -> None:
    before = ServerSettings.read(set_up.consortium.server_state / SERVER_SETTINGS_FILE)
    moved = set_up.folder.rename(tmp_path / "moved")
    taken = LoopbackDeployment.found_in(moved)
    exporters = taken.take_up()
    settings = ServerSettings.read(taken.consortium.server_state / SERVER_SETTINGS_FILE)
    assert (taken.config, taken.run_id) == (CONFIG, set_up.run_id)
    assert settings.run_id == before.run_id
    assert settings.run == moved
    assert load_config(settings.config) == CONFIG
    own = [HospitalSettings.read(member.state / HOSPITAL_SETTINGS_FILE) for member in taken.members]
    assert {hospital.fleet_address for hospital in own} == {f"127.0.0.1:{settings.fleet_port}"}
    assert all(hospital.data.is_dir() and hospital.config.is_file() for hospital in own)
    assert exporters == {"server": (settings.metrics_port,), "hospital": tuple(one.metrics_port for one in own)}


def test_a_finished_demo_keeps_no_key_and_no_image(set_up: LoopbackDeployment) -> None:
    assert list(set_up.folder.rglob("*.key"))
    set_up.remove_keys_and_images()
    left = [path.name for path in set_up.folder.rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".key", ".secret", ".png"))]
    assert left.count("audit.jsonl") == len(set_up.members)
    assert "roster.yaml" in left


def test_keys_and_images_that_cannot_be_removed_are_told(
    set_up: LoopbackDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(shutil, "rmtree", refusing)
    with pytest.raises(RunError, match="must be removable: Operation not permitted; remove them by hand"):
        set_up.remove_keys_and_images()


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        main(["demo", *arguments])
    return str(refusal.value)


def test_only_a_demo_that_was_stopped_is_resumed(set_up: LoopbackDeployment, tmp_path: Path) -> None:
    assert "must be the folder of a demo that was stopped" in refused("--resume", str(tmp_path))
    folder = str(set_up.folder)
    assert "leave out --rounds, --set" in refused("--resume", folder, "--rounds", "3", "--set", "model.name=cnn")
    with only_server(set_up.consortium.server_state, 0.0):
        assert "one server alone may run on a state folder" in refused("--resume", folder)
    events = (*example_run()[:-1], RunFinished(time=9.0, reason=COMPLETED, rounds_done=2))
    (set_up.folder / EVENTS_FILE).write_text("".join(event.to_line() for event in events), encoding="utf-8")
    assert "all rounds are done" in refused("--resume", folder)
