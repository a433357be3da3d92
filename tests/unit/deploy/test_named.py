import subprocess
import sys
from pathlib import Path

import pytest

from common.config import Config, load_config, replace
from common.errors import ConfigError
from common.models.registry import MODELS
from common.run.strategies import STRATEGIES
from deploy.demo import demo
from deploy.named import check_names
from deploy.source_tree import ROOT


def test_the_help_of_the_demo_lists_every_model_and_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["demo", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, entry in (*MODELS.items(), *STRATEGIES.items()):
        assert f" {name} {entry.words} " in printed


@pytest.mark.parametrize(("key", "names"), [("model.name", tuple(MODELS)), ("aggregation.strategy", tuple(STRATEGIES))])
def test_a_name_that_its_table_lacks_is_refused_before_anything_is_set_up(
    key: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        demo.main(["demo", "--out", str(tmp_path / "out"), "--set", f"{key}=unheard_of"])
    others = ", backbone_linear, backbone_mlp or package:function" if key == "model.name" else ""
    assert str(refused.value) == f"{key} must be one of {', '.join(names)}{others}, got 'unheard_of'"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_of_the_table_can_be_named(name: str) -> None:
    check_names(replace(Config(), aggregation={"strategy": name}))


def test_the_names_in_the_configuration_that_ships_are_in_their_tables() -> None:
    check_names(load_config(ROOT / "config.yaml"))


def test_names_are_checked_without_pytorch() -> None:
    program = "import sys, deploy.named; deploy.named.names_in_words(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
