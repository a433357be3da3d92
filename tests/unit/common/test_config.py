"""The configuration is strict, and its complaints name the key, the range and what was got."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from common.config import Config, PrivacyMode, RunDescription, load_config, replace
from common.errors import ConfigError
from common.run.proposal import terms_hash
from common.run.terms import describe
from common.task import TaskConfig, TaskKind, implied

SHIPPED = Path(__file__).parents[3] / "config.yaml"


def test_the_shipped_file_says_exactly_the_defaults() -> None:
    assert load_config(SHIPPED) == Config()


def test_the_shipped_file_leaves_no_key_out() -> None:
    tree = yaml.safe_load(SHIPPED.read_text())
    assert {name: set(section) for name, section in tree.items()} == {
        name: set(section) for name, section in Config().model_dump().items()
    }


def test_the_names_that_scripts_rely_on_exist() -> None:
    config = Config()
    assert (config.experiment.rounds, config.experiment.num_clients) == (10, 4)
    assert config.privacy.target_epsilon == 8.0
    assert config.training.batch_size == 128


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("experiment.rounds=0", r"experiment\.rounds .*≥ 1 and ≤ 100000.*got 0"),
        ("experiment.rounds=1.5", r"experiment\.rounds .*integer.*got 1\.5"),
        ("experiment.num_clients=2", r"experiment\.num_clients .*≥ 3.*got 2"),
        ("experiment.round=1", r"unknown key 'experiment\.round'; known here: task, rounds"),
        ("expriment.rounds=1", r"unknown key 'expriment'; the sections are experiment"),
        ("privacy.target_epsilon=0", r"privacy\.target_epsilon .*> 0.*got 0"),
        ("privacy.delta=0.5", r"privacy\.delta .*< 0\.1.*got 0\.5"),
        ("privacy.mode=global", r"privacy\.mode .*'local', 'distributed' or 'none', got 'global'"),
        ("training.batch_size=-3", r"training\.batch_size .*≥ 1.*got -3"),
        ("training.learning_rate=fast", r"training\.learning_rate .*number.*got 'fast'"),
        (
            "aggregation.most_void_rounds=many",
            r"aggregation\.most_void_rounds must be auto or a whole number .*got 'many'",
        ),
        (
            "aggregation.most_void_rounds=-1",
            r"aggregation\.most_void_rounds must be auto or a whole number from 0 .*got -1",
        ),
        ("aggregation.min_hospitals=5", r"min_hospitals \(5\) must be at most experiment\.num_clients \(4\)"),
        ("hospital.allow_plain=1", r"hospital\.allow_plain .*boolean.*got 1"),
        ("task.kind=grades", r"^task\.kind should be 'binary', 'multiclass', 'ordinal' or 'multilabel', got 'grades'$"),
        ("task.classes=[a, b]", r"^task\.[a-z]+ "),
        ("rounds=3", r"--set takes section\.key=value, got 'rounds=3'"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_by_name(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(SHIPPED, (override,))


def described(hospitals: int, **aggregation: Any) -> RunDescription:  # noqa: ANN401 - keys of a section
    config = replace(Config(), aggregation=aggregation)
    roster = {f"hospital-{number}": "" for number in range(hospitals)}
    return describe(config, "a" * 32, ("normal", "pneumonia"), 1, roster, parameters=10)


@pytest.mark.parametrize("hospitals", [3, 4, 11])
def test_as_many_rounds_may_be_void_as_one_cheat_can_spoil_unless_a_run_says_how_many(hospitals: int) -> None:
    by_rule = described(hospitals, proved_sums=True)
    assert by_rule.most_void_rounds == hospitals - 1
    assert RunDescription.from_json(by_rule.canonical_json()).most_void_rounds == hospitals - 1
    assert [described(hospitals, proved_sums=True, most_void_rounds=most).most_void_rounds for most in (0, 3)] == [0, 3]


def test_the_terms_of_a_run_stay_when_its_members_change() -> None:
    assert terms_hash(described(4, proved_sums=True)) == terms_hash(described(5, proved_sums=True))


def test_the_description_of_a_run_without_proved_sums_is_as_before() -> None:
    assert b'"most_void_rounds":3,' in described(5).canonical_json()


def test_overrides_win_over_the_file() -> None:
    config = load_config(SHIPPED, ("privacy.delta=1e-5", "privacy.mode=none", "training.learning_rate=2"))
    assert config.privacy.delta == 1e-5
    assert config.privacy.mode is PrivacyMode.NONE
    assert config.training.learning_rate == 2.0


@pytest.mark.parametrize("share", [-0.1, 0.51, float("nan")])
def test_a_share_for_the_spread_of_hospitals_that_leaves_the_model_too_little_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.spread_share"):
        replace(Config(), evaluation={"spread_share": share})


def test_the_spread_of_hospitals_is_refused_where_counts_have_no_noise() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.spread_share must be 0 where evaluation\.exact"):
        replace(Config(), evaluation={"spread_share": 0.2, "exact": True})


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel"])
def test_the_spread_of_hospitals_is_refused_in_other_tasks_than_binary_ones(kind: str) -> None:
    terms = {"kind": kind, "classes": ("one", "two", "three")}
    with pytest.raises(ConfigError, match=rf"evaluation\.spread_share must be 0 in a {kind} task"):
        replace(Config(), evaluation={"spread_share": 0.2}, task=terms)
    preset = replace(Config(), evaluation={"spread_share": 0.2}, experiment={"task": "retina"})
    with pytest.raises(ConfigError, match=r"evaluation\.spread_share must be 0 in a \w+ task, retina"):
        describe(preset, "a" * 32, ("0", "1", "2", "3", "4"), 3, {f"hospital-{n}": "" for n in range(4)}, parameters=10)


@pytest.mark.parametrize("text", ["- a list", "a: b: c", "experiment: 3", "\x00"])
def test_a_file_that_is_not_a_configuration_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize("text", ["a: 2001-99-99", "a: 0b_", "a: !!bool x", "a: !!timestamp x", "a: " + "9" * 5000])
def test_yaml_that_holds_a_date_or_number_that_is_none_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="must be YAML"):
        load_config(path)


@pytest.mark.long
@pytest.mark.parametrize("value", ["2001-99-99", "!!bool x", "[" * 5000])
def test_an_override_that_is_no_yaml_is_refused_by_its_key(tmp_path: Path, value: str) -> None:
    path = tmp_path / "config.yaml"
    path.touch()
    with pytest.raises(ConfigError, match=r"privacy\.target_epsilon should be a valid number"):
        load_config(path, (f"privacy.target_epsilon={value}",))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def description(**changes: object) -> RunDescription:
    config = Config()
    fields: dict[str, object] = {
        "run_id": "0" * 32,
        "classes": ("normal", "pneumonia"),
        "channels": 1,
        "vector_length": 10,
        "roster": {"hospital-1": "pem"},
        "member_list": "{}",
        "experiment": config.experiment,
        "task": implied("pneumonia", ("normal", "pneumonia")),
        "model": config.model,
        "training": config.training,
        "aggregation": config.aggregation,
        "graph": config.graph,
        "privacy": config.privacy,
        "evaluation": config.evaluation,
    }
    return RunDescription.model_validate(fields | changes)


def test_a_run_description_reads_back_to_the_same_hash() -> None:
    original = description()
    assert RunDescription.from_json(original.canonical_json()) == original
    assert RunDescription.from_json(original.canonical_json()).hash() == original.hash()


def test_every_change_of_a_run_description_changes_its_hash() -> None:
    changed = replace(Config(), privacy={"delta": 1e-5}).privacy
    assert description(privacy=changed).hash() != description().hash()
    assert description(vector_length=11).hash() != description().hash()
    denser = replace(Config(), graph={"security_bits": 80}).graph
    assert description(graph=denser).hash() != description().hash()


def _without_a_key(of: Any, written: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - of any section
    """Yield each field of a section, at any depth, that its written form lacks."""
    for name in type(of).model_fields:
        if name not in written:
            yield f"{path}{name}"
        elif isinstance(getattr(of, name), BaseModel):
            yield from _without_a_key(getattr(of, name), written[name], f"{path}{name}.")


def test_no_field_of_a_run_description_is_left_out_of_what_is_hashed() -> None:
    disputing = replace(Config(), aggregation={"proved_sums": True, "norm_bound": 2.0, "disputes": True}).aggregation
    asked = description(aggregation=disputing)
    assert list(_without_a_key(asked, json.loads(asked.canonical_json()))) == []


def test_disputes_that_a_run_does_not_have_are_left_out_so_that_it_keeps_its_hash() -> None:
    asked = description()
    assert list(_without_a_key(asked, json.loads(asked.canonical_json()))) == ["aggregation.disputes"]
    bound = replace(Config(), aggregation={"proved_sums": True, "norm_bound": 2.0}).aggregation
    disputing = bound.model_copy(update={"disputes": True})
    assert description(aggregation=bound).hash() != description(aggregation=disputing).hash()
    for each in (asked, description(aggregation=disputing)):
        assert RunDescription.from_json(each.canonical_json()) == each


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("aggregation", {"disputes": True}),
        ("aggregation", {"disputes": True, "proved_sums": True}),
    ],
)
def test_disputes_are_refused_without_proved_sums_and_a_bound(section: str, keys: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"aggregation\.disputes must be false without .* in privacy\.mode local"):
        replace(Config(), **{section: keys})


@pytest.mark.parametrize("mode", [PrivacyMode.NONE, PrivacyMode.DISTRIBUTED])
def test_disputes_are_refused_in_modes_in_which_a_change_is_not_private_by_itself(mode: PrivacyMode) -> None:
    bound = {"proved_sums": True, "norm_bound": 2.0, "disputes": True}
    with pytest.raises(ConfigError, match=r"aggregation\.norm_bound must be 0 in privacy\.mode"):
        replace(Config(), aggregation=bound, privacy={"mode": mode.value})


def test_disputes_are_refused_among_more_hospitals_than_all_mask_with_each_other() -> None:
    bound = {"proved_sums": True, "norm_bound": 2.0, "disputes": True}
    assert replace(Config(), aggregation=bound, experiment={"num_clients": 64}).aggregation.disputes
    with pytest.raises(ConfigError, match=r"more than graph\.complete_up_to = 64 hospitals, got 65"):
        replace(Config(), aggregation=bound, experiment={"num_clients": 65})


def test_what_a_label_means_is_in_a_run_descriptions_hash() -> None:
    task = implied("pneumonia", ("normal", "pneumonia"))
    told = task.model_copy(update={"labels": {"1.0": "normal"}})
    assert description(task=told).hash() != description().hash()


@pytest.mark.parametrize(
    "task",
    [
        TaskConfig(),
        implied("pneumonia", ("normal", "tb")),
        TaskConfig(kind=TaskKind.BINARY, classes=("normal", "pneumonia"), positive=("normal",)),
    ],
)
def test_a_run_description_whose_task_is_of_other_classes_or_another_order_is_refused(task: TaskConfig) -> None:
    with pytest.raises(ValidationError, match="task must say everything of the run's classes"):
        description(task=task)


def test_a_run_description_with_a_graph_weaker_than_any_hospital_accepts_is_refused() -> None:
    encoded = description().canonical_json().replace(b'"security_bits":40', b'"security_bits":2')
    with pytest.raises(ConfigError, match=r"graph\.security_bits .*≥ 40.*got 2"):
        RunDescription.from_json(encoded)
    encoded = description().canonical_json().replace(b'"colluding":0.1', b'"colluding":0.05')
    with pytest.raises(ConfigError, match=r"graph\.colluding .*≥ 0.1.*got 0.05"):
        RunDescription.from_json(encoded)


@pytest.mark.parametrize("encoded", [b"", b"{}", b"[]", b"\xff", description().canonical_json()[:-1]])
def test_bytes_that_are_no_run_description_are_refused(encoded: bytes) -> None:
    with pytest.raises(ConfigError):
        RunDescription.from_json(encoded)


def test_a_run_description_of_another_protocol_version_is_refused() -> None:
    encoded = description().canonical_json().replace(b'"protocol_version":3', b'"protocol_version":4')
    assert encoded != description().canonical_json()
    with pytest.raises(ConfigError, match="protocol_version"):
        RunDescription.from_json(encoded)
