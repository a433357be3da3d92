"""The benchmark measures what it says, and memory does not follow the number of images; no test asserts a time."""

import json
from pathlib import Path

import pytest

from common.errors import DataError
from tests.benchmarks.bench_data import main, measure


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_times_the_images_take_no_more_memory_than_what_is_remembered_of_each(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    assert main(["data", "--records", "1000", "--times", "10", "--image-size", "32", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    one, ten = result["once"]["check"], result["10 times"]["check"]
    assert (one["images"], ten["images"]) == (1000, 10_000)
    # What is kept of each is its row, its digests and its thumbnail, whatever the size of the image.
    assert result["bytes_for_each_further_image"] < 1500
    assert ten["peak_bytes"] < 1.4 * one["peak_bytes"]
    assert result["10 times"]["later_start"]["images"] == 10_000


def test_the_result_names_time_memory_load_and_machine() -> None:
    result = measure(None, 200, 1, 28)
    once = result["once"]
    assert isinstance(once, dict)
    assert set(once) == {"check", "later_start", "load"}
    assert once["check"]["images"] == once["later_start"]["images"] == 200
    assert once["later_start"]["cpu_seconds"] < once["check"]["cpu_seconds"]
    assert result["bytes_for_each_further_image"] is None
    assert {"machine", "versions"} <= set(result)


def test_data_that_breaks_the_contract_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "data" / "normal").mkdir(parents=True)
    (tmp_path / "data" / "normal" / "a.png").write_text("no image")
    with pytest.raises(DataError, match="not_an_image"):
        measure(tmp_path / "data", 0, 1, 28)


def test_more_images_than_differ_are_refused() -> None:
    with pytest.raises(DataError, match="--records times --times"):
        measure(None, 100_000, 1, 28)
