"""What Grafana would refuse or leave broken, found without Grafana."""

import configparser
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import Config
from common.run.proposal import RunState
from common.telemetry import metric_names
from common.telemetry.metric_names import ALL, MODEL_METRICS

ROOT = Path(__file__).parents[3]
CONSORTIUM = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
HOSPITAL = ROOT / "grafana" / "hospital" / "hospital.json"
DASHBOARDS = [*CONSORTIUM, HOSPITAL]
NAMES = [path.stem for path in DASHBOARDS]

Json = dict[str, Any]

each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=NAMES)


def _read(path: Path) -> Json:
    dashboard: Json = json.loads(path.read_text(encoding="utf-8"))
    return dashboard


def _panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def _queries(dashboard: Json) -> list[str]:
    asked = [target["expr"] for panel in _panels(dashboard) for target in panel["targets"]]
    return asked + [annotation["expr"] for annotation in dashboard["annotations"]["list"]]


def _provisioned(kind: str) -> list[Json]:
    files = (ROOT / "grafana" / "provisioning" / kind).glob("*.yml")
    return [item for file in files for item in next(iter(_lists(yaml.safe_load(file.read_text()))))]


def _lists(document: Json) -> list[list[Json]]:
    assert document["apiVersion"] == 1
    return [value for value in document.values() if isinstance(value, list)]


def _schema() -> Json:
    schema: Json = json.loads((ROOT / "tests" / "vectors" / "grafana_dashboard.schema.json").read_text())
    # The types leave out what a data source adds to an annotation ("TODO: this should be a regular DataQuery"), and the
    # generator closes every object: Prometheus' expr, step and formats would be refused.
    schema["definitions"]["AnnotationQuery"]["additionalProperties"] = True
    return schema


def _asked(path: Path) -> set[str]:
    return {name for query in _queries(_read(path)) for name in re.findall(r"confide_\w+", query)}


def test_there_are_the_dashboards_promised() -> None:
    assert NAMES == ["federation", "operations", "privacy", "hospital"]
    assert len({_read(path)["uid"] for path in DASHBOARDS}) == len(DASHBOARDS)


def test_what_a_hospital_alone_exports_is_shown_by_its_own_dashboard_alone() -> None:
    own = {value.name for name, value in vars(metric_names).items() if name.startswith("OWN_")}
    assert own <= _asked(HOSPITAL)
    assert _asked(HOSPITAL) - own == {
        each.name for each in (metric_names.BUILD_INFO, metric_names.CERTIFICATE_LEFT, metric_names.DISK_FREE)
    }
    for path in CONSORTIUM:
        assert _asked(path) & own == set()


@each_dashboard
def test_a_dashboard_holds_to_grafanas_schema(path: Path) -> None:
    # It compiles a grammar of addresses for more than a second.
    import jsonschema  # type: ignore[import-untyped]

    errors = jsonschema.Draft7Validator(_schema()).iter_errors(_read(path))
    assert [f"/{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors] == []


@each_dashboard
def test_every_metric_asked_for_is_one_we_export(path: Path) -> None:
    exported = {metric.name for metric in ALL}
    histograms = {f"{name}_{suffix}" for name in exported for suffix in ("bucket", "sum", "count")}
    assert _asked(path)
    assert _asked(path) <= exported | histograms


def test_every_exported_metric_of_the_model_is_shown() -> None:
    asked = {name for path in DASHBOARDS for name in _asked(path)}
    # A loss has no scale that says whether a model is good, so it is served and not drawn.
    assert {metric.name for metric in MODEL_METRICS.values()} - asked == {"confide_loss"}


@each_dashboard
def test_every_panel_has_a_unit_and_says_what_it_shows(path: Path) -> None:
    for panel in _panels(_read(path)):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["description"]) > 20, panel["title"]


@each_dashboard
def test_every_variable_that_a_query_names_is_there_and_the_run_or_the_hospital_is_one_of_them(path: Path) -> None:
    dashboard = _read(path)
    there = {variable["name"] for variable in dashboard["templating"]["list"]}
    asked = {name for query in _queries(dashboard) for name in re.findall(r"\$(\w+)", query)}
    assert ("hospital" if path == HOSPITAL else "run") in asked
    assert asked <= there


@each_dashboard
def test_no_table_shows_a_column_that_is_called_value(path: Path) -> None:
    for panel in _panels(_read(path)):
        if panel["type"] not in {"table", "trend"}:
            continue
        (shown,) = (each["options"] for each in panel["transformations"] if each["id"] == "organize")
        several = len(panel["targets"]) > 1
        for target in panel["targets"]:
            name = f"Value #{target['refId']}" if several else "Value"
            assert name in shown["renameByName"] or shown["excludeByName"].get(name), (panel["title"], name)


@each_dashboard
def test_no_name_is_cut(path: Path) -> None:
    for panel in _panels(_read(path)):
        custom = panel["fieldConfig"]["defaults"].get("custom", {})
        match panel["type"]:
            case "bargauge":  # At the left a name has two fifths of the width, and loses its end.
                assert panel["options"]["namePlacement"] == "top", panel["title"]
            case "table":  # By default a column takes 150 pixels, and the last ones fall off the panel.
                assert custom["minWidth"] <= 100, panel["title"]
                assert len(panel["targets"]) > 1 or custom["cellOptions"]["wrapText"], panel["title"]
            case _:
                pass


@each_dashboard
def test_lines_are_not_filled_to_sharp_edges_and_series_have_names(path: Path) -> None:
    for panel in _panels(_read(path)):
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_a_run_is_drawn_by_its_rounds_beside_what_a_hospital_reaches_alone_and_without_privacy() -> None:
    (panel,) = (
        panel for panel in _panels(_read(ROOT / "grafana/dashboards/federation.json")) if panel["type"] == "trend"
    )
    assert panel["options"]["xField"] == "round"
    names = next(each["options"]["renameByName"] for each in panel["transformations"] if each["id"] == "organize")
    assert set(names.values()) == {"AUC", "accuracy", "a hospital alone", "without privacy"}


def test_a_run_that_has_failed_is_not_called_finished() -> None:
    (panel,) = (
        panel for panel in _panels(_read(ROOT / "grafana/dashboards/operations.json")) if panel["title"] == "Run"
    )
    (expression,) = (target["expr"] for target in panel["targets"])
    places = re.findall(r'(?:(\d) \* )?confide_run_result\{result="(\w+)"', expression)
    (shown,) = (mapping["options"] for mapping in panel["fieldConfig"]["defaults"]["mappings"])
    words = {result: (shown[number or "1"]["text"], shown[number or "1"]["color"]) for number, result in places}
    assert words.keys() == {state.value for state in RunState}
    assert (words["finished"], words["failed"]) == (("finished", "blue"), ("failed", "red"))
    assert len({text for text, _ in words.values()}) == len(words)


@each_dashboard
def test_a_value_that_is_coloured_has_thresholds(path: Path) -> None:
    for panel in _panels(_read(path)):
        defaults = panel["fieldConfig"]["defaults"]
        if defaults["color"]["mode"] == "thresholds":
            assert defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]


@each_dashboard
def test_no_colour_changes_where_a_run_by_the_default_settings_ends(path: Path) -> None:
    spent = Config().privacy.target_epsilon / Config().hospital.epsilon_budget
    for panel in _panels(_read(path)):
        if not any("epsilon_budget" in target["expr"] for target in panel["targets"]):
            continue
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []})["steps"]
        limits = [step["value"] for step in steps if step["value"] is not None]
        limits += [float(limit) for target in panel["targets"] for limit in re.findall(r"> (0\.\d+)", target["expr"])]
        assert all(min(abs(limit - end) for end in (spent, 1 - spent)) > 0.02 for limit in limits), panel["title"]


@each_dashboard
def test_no_panel_covers_another_and_ids_are_unique(path: Path) -> None:
    panels = _read(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])
        assert a["x"] + a["w"] <= 24


@each_dashboard
def test_dropouts_and_refusals_are_annotated(path: Path) -> None:
    annotated = {item["name"]: item["expr"] for item in _read(path)["annotations"]["list"]}
    assert path == HOSPITAL or "dropouts" in annotated["Dropouts"]  # a hospital does not see who was missing
    assert "refusals" in annotated["Refusals"]


@each_dashboard
def test_no_panel_goes_by_an_address_which_replicas_share(path: Path) -> None:
    assert not [query for query in _queries(_read(path)) if "instance" in query]


@each_dashboard
def test_every_data_source_named_is_provisioned(path: Path) -> None:
    provisioned = {source["uid"] for source in _provisioned("datasources")}
    dashboard = _read(path)
    asked = [panel["datasource"]["uid"] for panel in _panels(dashboard)]
    asked += [target["datasource"]["uid"] for panel in _panels(dashboard) for target in panel["targets"]]
    asked += [annotation["datasource"]["uid"] for annotation in dashboard["annotations"]["list"]]
    assert set(asked) <= provisioned


def test_one_data_source_is_the_default() -> None:
    assert [source["isDefault"] for source in _provisioned("datasources")] == [True]


@pytest.mark.parametrize(
    ("settings", "start", "compose"),
    [
        ("grafana.ini", "consortium/federation.json", "docker-compose.yml"),
        ("hospital.ini", "hospital/hospital.json", "deploy/hospital/docker-compose.yml"),
    ],
)
def test_grafana_starts_on_a_dashboard_that_is_provided(settings: str, start: str, compose: str) -> None:
    (provider,) = _provisioned("dashboards")
    home = re.search(r"default_home_dashboard_path = (\S+)", (ROOT / "grafana" / settings).read_text())
    assert home is not None
    assert home[1] == f"{provider['options']['path']}/{start}"
    file = ROOT / compose
    mounted = {
        place: (file.parent / source).resolve()
        for source, _, place in (each.partition(":") for each in _compose(file)["grafana"]["volumes"])
    }
    folder = mounted[f"{Path(home[1]).parent}:ro"]
    assert (folder / Path(home[1]).name).is_file()
    assert mounted["/etc/grafana/grafana.ini:ro"] == ROOT / "grafana" / settings


def _compose(file: Path) -> Json:
    services: Json = yaml.safe_load(file.read_text())["services"]
    return services


def test_the_password_for_editing_comes_from_a_file_and_viewing_needs_none() -> None:
    settings = (ROOT / "grafana" / "grafana.ini").read_text()
    assert "admin_password = $__file{" in settings
    assert "org_role = Viewer" in settings


def test_nobody_can_log_in_to_a_hospitals_own_grafana() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "grafana" / "hospital.ini")
    assert settings["security"]["disable_initial_admin_creation"] == "true"
    assert settings["auth"]["disable_login_form"] == "true"
    assert settings["auth.basic"]["enabled"] == "false"
    assert settings["auth.anonymous"]["org_role"] == "Viewer"
    assert "admin_password" not in settings["security"]
