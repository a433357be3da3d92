import datetime as dt
from pathlib import Path

import pytest

from common.config import PROTOCOL_VERSION, Config, replace
from common.errors import RunError
from common.files import write_private
from common.identity.certificates import certificate_pem, make_authority, make_tls_certificate
from common.run.proposal import RunState
from common.telemetry import metric_names as names
from common.telemetry.events import Evaluated, Event, RoundDone, RunFinished, RunStarted
from server.members.departures import Departures
from server.members.versions import MemberVersions, SpokenVersions
from server.metrics import LAST_ROUNDS, RunMetrics
from server.run_queue import RunQueue
from tests.support.example_run import HOSPITALS, RUN_ID, example_run

NOW = dt.datetime.now(dt.UTC)

Samples = dict[tuple[str, tuple[str, ...]], float]


def _write(run: Path, events: list[Event]) -> None:
    (run / "events.jsonl").write_text("".join(event.to_line() for event in events), encoding="utf-8")


def _samples(metrics: RunMetrics) -> Samples:
    """Return the samples by their names and labels but for the run's, which a test of its own holds."""
    return {
        (sample.name, tuple(value for label, value in sample.labels.items() if label != "run")): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def test_every_series_of_a_run_names_the_run(tmp_path: Path) -> None:
    _write(tmp_path, example_run(6))
    of_no_run = {metric.name for metric in names.ALL if metric.labels[:1] != ("run",)}
    samples = [sample for family in RunMetrics(tmp_path).collect() for sample in family.samples]
    assert {sample.name for sample in samples} - {"confide_build_info"} <= {
        sample.name for sample in samples if sample.labels.get("run") == RUN_ID[:12]
    }
    assert {sample.name for sample in samples if "run" not in sample.labels} == {"confide_build_info"} <= of_no_run


def test_a_member_that_speaks_another_version_and_the_disk_are_told(tmp_path: Path) -> None:
    versions = MemberVersions(tmp_path)
    versions.note("st-mary", SpokenVersions(2, "0.1.0", 2))
    versions.note("general", SpokenVersions(PROTOCOL_VERSION + 1, "9.9.9", PROTOCOL_VERSION))
    metrics = RunMetrics(tmp_path, tmp_path)
    samples = _samples(metrics)
    assert samples["confide_member_version_mismatch", ("st-mary", "0.1.0")] == 1
    assert samples["confide_member_version_mismatch", ("general", "9.9.9")] == 0
    assert 0 < samples["confide_disk_free_ratio", ()] < 1
    versions.note("st-mary", SpokenVersions(PROTOCOL_VERSION, "0.2.0", PROTOCOL_VERSION))
    assert [series for series in _samples(metrics) if series[0] == "confide_member_version_mismatch"] == [
        ("confide_member_version_mismatch", ("st-mary", "0.2.0")),
        ("confide_member_version_mismatch", ("general", "9.9.9")),
    ]


def test_every_promised_metric_of_the_server_is_exported(tmp_path: Path) -> None:
    _write(tmp_path, example_run(6))
    exported = {name for name, _ in _samples(RunMetrics(tmp_path))}
    assert exported >= {
        "confide_round", "confide_accuracy", "confide_precision", "confide_recall", "confide_f1", "confide_auc",
        "confide_loss", "confide_epsilon_spent", "confide_epsilon_budget", "confide_hospitals_online",
        "confide_dropouts_total", "confide_refusals_total", "confide_exchange_seconds_bucket",
        "confide_upload_bytes_total", "confide_build_info",
    }  # fmt: skip


def test_the_values_are_those_of_the_last_finished_round(tmp_path: Path) -> None:
    events = example_run(6)
    last = [event for event in events if isinstance(event, RoundDone)][-1]
    _write(tmp_path, events)
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_round", ()] == 6
    assert samples["confide_auc", ()] == last.auc
    assert samples["confide_f1", ()] == last.f1
    for hospital in HOSPITALS:
        assert samples["confide_epsilon_spent", (hospital,)] == last.epsilon_spent[hospital]
        assert samples["confide_epsilon_budget", (hospital,)] == 10.0


def test_what_the_last_round_cost_is_told_for_a_projection_of_the_rounds_left(tmp_path: Path) -> None:
    events = example_run(5)  # hospital-4 refuses round 5
    four, five = [event for event in events if isinstance(event, RoundDone)][-2:]
    _write(tmp_path, events)
    samples = _samples(RunMetrics(tmp_path))
    cost = samples["confide_epsilon_last_round", ("hospital-1",)]
    assert cost == five.epsilon_spent["hospital-1"] - four.epsilon_spent["hospital-1"]
    assert samples["confide_epsilon_last_round", ("hospital-4",)] > cost  # of round 4, when each round still cost more


def test_what_happened_is_counted(tmp_path: Path) -> None:
    _write(tmp_path, example_run(6))
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_dropouts_total", ()] == 1
    assert samples["confide_hospital_dropouts_total", ("hospital-3",)] == 1
    assert samples["confide_hospital_dropouts_total", ("hospital-1",)] == 0
    assert samples["confide_refusals_total", ("budget",)] == 1
    # In round 3 somebody dropped out, which takes a third exchange; in round 5 one hospital of four does not take part.
    assert samples["confide_exchange_seconds_count", ("full_unmasking",)] == 5
    assert samples["confide_exchange_seconds_count", ("unmasking",)] == 1
    assert samples["confide_upload_bytes_total", ()] == 52_000 * (4 * 4 * 2 + 3 * 3 + 3 * 2)


def test_an_exporter_started_again_has_the_same_values(tmp_path: Path) -> None:
    events = example_run(6)
    lived_through = RunMetrics(tmp_path)
    for end in range(1, len(events) + 1):
        _write(tmp_path, events[:end])
        lived_through.collect()
    assert _samples(RunMetrics(tmp_path)) == _samples(lived_through)


def test_before_the_first_round_no_quality_is_claimed(tmp_path: Path) -> None:
    _write(tmp_path, example_run(6)[:1])
    exported = {name for name, _ in _samples(RunMetrics(tmp_path))}
    assert "confide_accuracy" not in exported
    assert "confide_epsilon_spent" not in exported


def test_without_a_run_only_the_build_is_told(tmp_path: Path) -> None:
    assert {name for name, _ in _samples(RunMetrics(tmp_path))} == {"confide_build_info"}


def test_a_hospital_that_left_is_shown_as_gone(tmp_path: Path) -> None:
    events = example_run(6)
    lost = next(index for index, event in enumerate(events) if event.kind == "hospital_lost")
    _write(tmp_path, events[: lost + 1])
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_hospitals_online", ()] == 3
    assert samples["confide_hospital_online", ("hospital-3",)] == 0
    assert samples["confide_hospitals_expected", ()] == 4


def test_a_hospital_that_was_stopped_is_told_from_one_that_failed(tmp_path: Path) -> None:
    events = example_run(6)
    lost = next(index for index, event in enumerate(events) if event.kind == "hospital_lost")
    _write(tmp_path, events[: lost + 1])
    assert _samples(RunMetrics(tmp_path))["confide_hospital_left", ("hospital-3",)] == 0
    _write(tmp_path, [*events[:lost], events[lost].model_copy(update={"left": True})])
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_hospital_online", ("hospital-3",)] == 0
    assert {name: samples["confide_hospital_left", (name,)] for name in HOSPITALS} == {
        "hospital-1": 0, "hospital-2": 0, "hospital-3": 1, "hospital-4": 0,
    }  # fmt: skip
    _write(tmp_path, [*events[:lost], events[lost].model_copy(update={"left": True}), *events[lost + 1 :]])
    assert _samples(RunMetrics(tmp_path))["confide_hospital_left", ("hospital-3",)] == 0


def test_a_hospital_that_was_stopped_before_the_run_began_has_left_too(tmp_path: Path) -> None:
    state = tmp_path / "state"
    Departures(state).note("hospital-4")
    events = [event for event in example_run(6)[:5] if getattr(event, "hospital", "") != "hospital-4"]
    _write(tmp_path, events)
    metrics = RunMetrics(tmp_path, state)
    samples = _samples(metrics)
    assert samples["confide_hospital_online", ("hospital-4",)] == 0
    assert samples["confide_hospital_left", ("hospital-4",)] == 1
    Departures(state).forget("hospital-4")
    assert _samples(metrics)["confide_hospital_left", ("hospital-4",)] == 0


def test_a_finished_run_is_no_longer_active(tmp_path: Path) -> None:
    events = example_run(6)
    _write(tmp_path, events[:-1])
    metrics = RunMetrics(tmp_path)
    assert _samples(metrics)["confide_run_active", ()] == 1
    _write(tmp_path, events)
    assert isinstance(events[-1], RunFinished)
    assert _samples(metrics)["confide_run_active", ()] == 0


def test_a_resumed_run_goes_on_counting_and_a_new_run_begins_at_zero(tmp_path: Path) -> None:
    events = example_run(3)
    started = events[0]
    assert isinstance(started, RunStarted)
    _write(tmp_path, [*events, started.model_copy(update={"resumed_from_round": 3})])
    assert _samples(RunMetrics(tmp_path))["confide_dropouts_total", ()] == 1
    _write(tmp_path, [*events, started.model_copy(update={"run_id": RUN_ID[::-1]})])
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_dropouts_total", ()] == 0
    assert ("confide_accuracy", ()) not in samples


def test_what_an_epsilon_means_stands_beside_it(tmp_path: Path) -> None:
    _write(tmp_path, example_run(3))
    (info,) = (sample for family in RunMetrics(tmp_path).collect() for sample in family.samples
               if sample.name == names.PRIVACY_INFO.name)  # fmt: skip
    assert info.labels["delta"] == "0.0001"
    assert info.labels["unit"] == "record"
    assert info.labels["accountant"] == "rdp"
    assert "the server and the other hospitals included" in info.labels["adversary"]


def test_a_broken_event_fails_every_scrape_rather_than_showing_stale_values(tmp_path: Path) -> None:
    _write(tmp_path, example_run(3))
    metrics = RunMetrics(tmp_path)
    metrics.collect()
    with (tmp_path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": 1, "kind": "dropout"}\n')
    for _ in range(2):
        with pytest.raises(RunError, match="round"):
            metrics.collect()


def test_figures_say_whose_records_they_are_of_and_how_sure_they_are(tmp_path: Path) -> None:
    events = example_run(6)
    last = [event for event in events if isinstance(event, RoundDone)][-1]
    _write(tmp_path, events)
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_measured_info", ("validation", "no")] == 1
    assert samples["confide_measured_round", ()] == 6
    assert samples["confide_interval_low", ("accuracy",)] == last.intervals["accuracy"][0]
    assert samples["confide_interval_high", ("auc",)] == last.intervals["auc"][1]
    assert samples["confide_evaluation_epsilon", ("validation",)] == last.evaluation_epsilon


def test_the_last_models_test_figures_have_series_of_their_own(tmp_path: Path) -> None:
    events = example_run(6)
    tested = next(event for event in events if isinstance(event, Evaluated))
    _write(tmp_path, events)
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_test", ("accuracy",)] == tested.accuracy
    assert samples["confide_test_low", ("accuracy",)] == tested.intervals["accuracy"][0]
    assert samples["confide_test_noise", ("accuracy",)] == tested.noise["accuracy"]
    assert samples["confide_evaluation_epsilon", ("test",)] == tested.epsilon
    _write(tmp_path, example_run(6, tested=False))
    assert not any(name == "confide_test" for name, _ in _samples(RunMetrics(tmp_path)))


def test_a_round_that_was_not_measured_leaves_the_figures_of_the_one_before(tmp_path: Path) -> None:
    events = example_run(12)
    third = next(index for index, event in enumerate(events) if isinstance(event, RoundDone) and event.step == 3)
    _write(tmp_path, events[: third + 1])
    samples = _samples(RunMetrics(tmp_path))
    second = next(event for event in events if isinstance(event, RoundDone) and event.step == 2)
    assert samples["confide_round", ()] == 3
    assert samples["confide_measured_round", ()] == 2
    assert samples["confide_accuracy", ()] == second.accuracy


def test_exact_counts_are_called_so_and_have_no_epsilon(tmp_path: Path) -> None:
    config = replace(Config(), evaluation={"exact": True}, privacy={"mode": "none"})
    _write(tmp_path, example_run(3, config=config, authority_on_server=True))
    samples = _samples(RunMetrics(tmp_path))
    assert samples["confide_measured_info", ("test", "yes")] == 1
    assert not any(name == "confide_evaluation_epsilon" for name, _ in samples)
    (told,) = (labels for name, labels in samples if name == "confide_run_info")
    assert "exact counts: not differentially private" in told[-1]
    assert "The server holds the authority's key" in told[-1]


def test_no_round_is_missed_between_two_scrapes_and_a_bounded_number_is_kept(tmp_path: Path) -> None:
    events = example_run(6)
    done = [event for event in events if isinstance(event, RoundDone)]
    _write(tmp_path, events)
    samples = _samples(RunMetrics(tmp_path))
    for event in done:
        key = (str(event.step),)
        assert samples["confide_round_auc", key] == event.auc
        assert samples["confide_round_duration_seconds", key] == event.seconds
        assert samples["confide_round_epsilon", key] == event.epsilon
        assert samples["confide_round_finished_timestamp_seconds", key] == event.time
    more = [done[-1].model_copy(update={"step": step}) for step in range(7, 7 + LAST_ROUNDS)]
    _write(tmp_path, [*events[:-1], *more])
    rounds = {labels[0] for name, labels in _samples(RunMetrics(tmp_path)) if name == "confide_round_hospitals"}
    assert rounds == {str(step) for step in range(7, 7 + LAST_ROUNDS)}


@pytest.mark.parametrize(
    ("reason", "result"), [("completed", "finished"), ("stopped", "stopped"), ("5 rounds in a row failed", "failed")]
)
def test_a_run_that_failed_is_not_called_finished(tmp_path: Path, reason: str, result: str) -> None:
    events = example_run(3)
    last = events[-1]
    assert isinstance(last, RunFinished)
    _write(tmp_path, events[:-1])
    assert _samples(RunMetrics(tmp_path))["confide_run_result", ("running",)] == 1
    _write(tmp_path, [*events[:-1], last.model_copy(update={"reason": reason})])
    told = {labels for name, labels in _samples(RunMetrics(tmp_path)) if name == "confide_run_result"}
    assert told == {(result,)}


def test_a_server_shows_where_each_of_its_runs_stands_and_how_long_its_certificate_holds(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path)
    queue.adopt("a" * 32, "phantom", ("x", "y"), 1)
    queue.end("a" * 32, RunState.FAILED, "too few hospitals")
    authority = make_authority("Test", NOW)
    certificate, _ = make_tls_certificate(authority, ("localhost",), NOW, dt.timedelta(hours=10))
    write_private(tmp_path / "ca.pem", certificate_pem(authority.certificate))
    write_private(tmp_path / "tls.pem", certificate_pem(certificate))
    metrics = RunMetrics(tmp_path / "run", tmp_path)
    samples = _samples(metrics)
    assert samples["confide_run_result", ("failed",)] == 1
    assert 0.9 < samples["confide_certificate_left_ratio", ("tls",)] <= 1
    queue.resume("a" * 32)
    assert ("confide_run_result", ("a" * 12, "failed")) not in _samples(metrics)
