"""``confide dev bench data``: what checking a hospital's images takes, and that more of them take no more memory.

Each figure comes from a process of its own, so that its peak of memory is that of one check or one start.
"""

import csv
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

from client.data import DataContract, open_data
from client.data.hospital_data import check_data
from common.errors import DataError
from common.provenance import machine, versions
from common.shards import COLUMNS, MANIFEST_NAME, SPLITS
from deploy.command import FILE, command, json_file_option
from deploy.datasets import phantom
from deploy.json_report import write_json_report

XRAYS = 5856
"""The images of Kermany et al., the set that the aims are for."""

_SIZE, _BATCH, _DELTA = 224, 8, 1e-9
_BASE_IMAGES = 400
_QUALITY = 90
_KIBIBYTE = 1024


@dataclass(frozen=True)
class Cost:
    """One process's seconds on the clock and of all cores' time, and its peak of resident memory."""

    images: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Measurement:
    """What one data set cost to check and prepare, and what every later start costs.

    Attributes:
        check: of opening, checking and keeping every image.
        later_start: of finding all of it kept.
        load: of the machine (one minute's average) when it began; above 0.5 the clock counts others too.
    """

    check: Cost
    later_start: Cost
    load: float


@command(
    "data",
    "Measure what checking and preparing a hospital's images takes, and that more of them take no more memory.",
    "./confide dev bench data --data /data/x-rays",
)
@click.option("--data", type=FILE, show_default="phantom X-rays", metavar="DIR", help="A hospital's folder.")
@click.option("--records", type=int, default=XRAYS, metavar="N", help="Phantom images to make.")
@click.option("--times", type=int, default=1, metavar="K", help="Measure K times as many too.")
@click.option("--image-size", type=int, default=_SIZE, metavar="PIXELS", help="On a side.")
@json_file_option()
def main(data: Path | None, records: int, times: int, image_size: int, json_file: Path | None) -> int:
    """Run the benchmark.

    Raises:
        DataError: the folder given does not keep the contract, or a disk refuses.
        RunError: the file of ``--json`` cannot be written.
    """
    result = measure(data, records, times, image_size)
    print(json.dumps(result, indent=2))
    if json_file is not None:
        write_json_report(json_file, result)
    return 0


def measure(data: Path | None, records: int, times: int, image_size: int) -> dict[str, object]:
    """Measure one data set and one that is ``times`` as large.

    Args:
        data: a folder that keeps the contract; made of phantom images when None.
        records: how many images to make.
        times: how many times as many for the second; 1 leaves it out.
        image_size: pixels on a side.
    """
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as temporary:
        folder = Path(temporary)
        measured = {"once": _measure(data or _make(folder / "once", records, image_size), image_size, folder / "c1")}
        if times > 1:
            larger = _make(folder / "times", records * times, image_size)
            measured[f"{times} times"] = _measure(larger, image_size, folder / "c2")
    costs = list(measured.values())
    more = costs[-1].check.images - costs[0].check.images
    grown = costs[-1].check.peak_bytes - costs[0].check.peak_bytes
    return {
        "image_size": image_size,
        **{name: asdict(one) for name, one in measured.items()},
        "bytes_for_each_further_image": grown / more if more else None,
        "machine": machine(),
        "versions": versions(),
    }


def _measure(data: Path, image_size: int, cache: Path) -> Measurement:
    load = os.getloadavg()[0]
    contract = DataContract("pneumonia", phantom.CHEST_CLASSES, 1, image_size, _BATCH, _DELTA)
    check = _in_own_process(_check, data, contract, cache)
    return Measurement(check, _in_own_process(_start, data, contract, cache), load)


def _in_own_process(
    work: Callable[[Path, DataContract, Path], Cost], data: Path, contract: DataContract, cache: Path
) -> Cost:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, data, contract, cache).result()


def _check(data: Path, contract: DataContract, cache: Path) -> Cost:
    started, cpu = time.perf_counter(), time.process_time()
    report = check_data(data, contract, cache)
    cost = _cost(report.images, started, cpu)
    if not report.is_usable:
        kinds = ", ".join(sorted({finding.mistake.value for finding in report.findings if finding.blocks}))
        raise DataError(f"--data must keep the contract to be measured; it breaks {kinds}: see hospital check-data")
    return cost


def _start(data: Path, contract: DataContract, cache: Path) -> Cost:
    started, cpu = time.perf_counter(), time.process_time()
    opened = open_data(data, contract, cache)
    return _cost(len(opened.train) + len(opened.validation) + len(opened.test), started, cpu)


def _cost(images: int, started: float, cpu: float) -> Cost:
    return Cost(images, time.perf_counter() - started, time.process_time() - cpu, _peak_bytes())


def _peak_bytes() -> int:
    """Return the peak of this process's resident memory.

    On Linux, ``getrusage`` would count what the process had before it became this program: its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * _KIBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE


def _make(folder: Path, records: int, image_size: int) -> Path:
    """Write chest images, each the mean of another two of a few phantoms, so that a million differ."""
    folder.mkdir()
    base = phantom.chest(_BASE_IMAGES, image_size, seed=1).images[:, 0].astype(np.uint16)
    firsts, seconds = np.triu_indices(_BASE_IMAGES, 1)
    pairs = np.random.default_rng(1).permutation(len(firsts))[:records]
    if len(pairs) < records:
        raise DataError(f"--records times --times must be at most {len(firsts)}, got {records}")
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, pair in enumerate(pairs):
            pixels = (base[firsts[pair]] + base[seconds[pair]]) // 2
            name = f"{number:07d}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name, quality=_QUALITY)
            split = SPLITS[number % len(SPLITS)]
            table.writerow((name, phantom.CHEST_CLASSES[number // 3 % 2], f"patient-{number}", split))
    return folder
