from pathlib import Path

import pytest

from common.config import Config, load_config, replace
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealing import count_dealt, stated
from deploy.demo.demo import _Demo
from deploy.results.live_table import LiveTable
from server.run import new_run_id

CONFIG = replace(Config(), experiment={"num_clients": 3}, data={"source": "phantom"})


@pytest.mark.long
def test_each_hospital_of_a_demo_states_what_it_got_in_its_own_configuration(tmp_path: Path) -> None:
    data: DataSet = obtain(CONFIG.data, CONFIG.experiment.task, CONFIG.model.image_size)
    demo = _Demo(CONFIG, new_run_id(), tmp_path, LiveTable())
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
