"""The benchmark measures what it says, and its result has the names that others read; no test asserts a time."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from common.errors import RunError
from common.secagg.masks import Mask, apply_masks
from common.secagg.parameters import Adversary, Vector

with warnings.catch_warnings():
    # Flower's command line, which its packages import, uses a name that click deprecates.
    warnings.filterwarnings("ignore", "'click.utils", DeprecationWarning)
    from tests.benchmarks import bench_secagg

NAMED = {
    "keystream_gb_per_second",
    "client_seconds",
    "server_seconds",
    "client_peak_bytes",
    "upload_bytes",
    "upload_ratio_to_float32",
    "flower_client_seconds",
    "flower_server_seconds",
    "client_speedup",
    "server_speedup",
}
PARAMETERS = 50_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_secagg, "KEYSTREAM_ELEMENTS", PARAMETERS)


def test_the_result_has_every_name_and_is_written_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bench.json"
    assert bench_secagg.main(["secagg", "--params", str(PARAMETERS), "--repeat", "1", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert {field.name for field in fields(bench_secagg.Measurement)} == NAMED
    assert set(result) >= NAMED | {"machine", "versions", "commit"}
    printed = capsys.readouterr().out
    assert all(name in printed for name in result)
    assert result["client_speedup"] == result["flower_client_seconds"] / result["client_seconds"]


def test_a_hospital_allocates_one_vector_beyond_its_own_and_uploads_half_of_float32() -> None:
    change = bench_secagg._change(2_000_000)
    upload, peak = bench_secagg._sizes(change, 4)
    vector = 2 * len(change)
    assert vector < upload < 1.05 * vector
    # Its encoded vector, masked in place; the buffers and what is shared with another process are a megabyte or two.
    assert vector < peak < vector + 2_500_000


def test_flowers_masks_cancel_so_its_work_is_the_whole_work(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(bench_secagg, "_flower_decode", lambda total, survivors: decoded.append((total, survivors)))
    change = bench_secagg._change(1000)
    bench_secagg._flower(change, 4)
    (weights, parameters), survivors = decoded[0]
    step = 2 * bench_secagg.FLOWER_CLIP / bench_secagg.FLOWER_TARGET
    mean = parameters * step / survivors - bench_secagg.FLOWER_CLIP
    assert weights == survivors * bench_secagg.FLOWER_TARGET
    assert abs(mean - change).max() <= 2 * step


def test_our_round_stops_when_the_sum_is_not_the_plain_sum() -> None:
    def forget_one(vector: Vector, masks: Sequence[Mask]) -> None:
        apply_masks(vector, masks[1:])

    with pytest.raises(RunError, match="plain sum"):
        bench_secagg._Round(bench_secagg._change(100), 4, apply=forget_one).play()


@pytest.mark.parametrize("adversary", list(Adversary))
def test_a_round_of_many_hospitals_is_played_over_the_sparse_graph(adversary: Adversary) -> None:
    cost = bench_secagg._Round(bench_secagg._change(10), 66, adversary).play()
    assert cost.hospital_seconds > 0
    assert cost.server_seconds > 0
    assert cost.hospital_checks_seconds > 0


def test_scaling_plots_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_secagg, "HOSPITALS_PLOTTED", (4, 5))
    monkeypatch.setattr(bench_secagg, "PARAMETERS_PLOTTED", (100, 1000, 10**15))
    monkeypatch.setattr(bench_secagg, "MOST_PARAMETERS_OF_FLOWER", 100)
    points = bench_secagg.measure_scaling(tmp_path / "plots")
    assert [(point["adversary"], point["hospitals"]) for point in points["by_hospitals"]] == [
        ("active", 4),
        ("active", 5),
        ("semi-honest", 4),
        ("semi-honest", 5),
    ]
    assert [point["parameters"] for point in points["by_parameters"]] == [100, 1000]
    assert ["flower_client_seconds" in point for point in points["by_parameters"]] == [True, False]
    assert (tmp_path / "plots" / bench_secagg.SCALING_FILE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--hospitals", "3"], "--hospitals"), (["--params", "0"], "--params"), (["--repeat", "0"], "--repeat")],
)
def test_arguments_out_of_range_are_refused_by_name(arguments: list[str], named: str) -> None:
    with pytest.raises(RunError, match=named):
        bench_secagg.main(["secagg", *arguments])


def test_a_file_or_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_secagg, "HOSPITALS_PLOTTED", (4,))
    monkeypatch.setattr(bench_secagg, "PARAMETERS_PLOTTED", (100,))
    with pytest.raises(RunError, match="--json"):
        bench_secagg.main(["secagg", "--params", "100", "--repeat", "1", "--json", str(tmp_path / "no" / "x.json")])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="--out"):
        bench_secagg.measure_scaling(blocked)
