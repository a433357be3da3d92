"""The data manager's page, step by step as it stands there: from a PACS to a hospital that has joined and trains."""

import contextlib
import csv
import os
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.settings import free_port
from deploy.datasets import phantom
from tests.support.consortium import ENVIRONMENT, ROOT, SETTINGS, Consortium
from tests.support.orthanc import HAS_ORTHANC, WHY_SKIPPED, Orthanc, accession, study

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not HAS_ORTHANC, reason=WHY_SKIPPED),
]

STUDIES, SIDE = 240, 64
NAME, OTHERS = "st-mary", ("st-anne", "st-john")
COLUMNS = 80


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path_factory.mktemp("pacs"))
    orthanc.start()
    try:
        xrays = phantom.chest(STUDIES, SIDE, 21)
        orthanc.put([study(number, **pixels(xrays.images[number, 0])) for number in range(STUDIES)])
        yield orthanc
    finally:
        orthanc.stop()


def pixels(image: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> dict[str, object]:
    return {"Rows": SIDE, "Columns": SIDE, "PixelData": image.tobytes(), "ViewPosition": "PA"}


class Walker:
    """Types the page's commands in a terminal of 80 columns."""

    def __init__(self, folder: Path, machine: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        # Where ./confide would look for its environment and its list of ledgers.
        self._environment = {
            **ENVIRONMENT, "TERM": "dumb", "XDG_STATE_HOME": str(machine),
        }  # fmt: skip

    def type(self, line: str, expected: int = 0) -> str:
        """Type one line of the page, and return what it prints; fail where it ends with another code."""
        words = line.replace("\\\n", " ").split()
        assert words[0] == "./confide"
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (40, COLUMNS))
        process = subprocess.Popen(
            (sys.executable, "-m", "deploy", *words[1:]), cwd=self.folder, env=self._environment,
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        printed = bytearray()
        with contextlib.suppress(OSError):  # What Linux raises when the last writer has closed its end.
            while piece := os.read(ours, 65536):
                printed += piece
        os.close(ours)
        code = process.wait(60)
        text = printed.decode().replace("\r\n", "\n")
        self.said.append(f"$ {line}\n{text}")
        assert code == expected, self.said[-1]
        return text


def commands_of_the_page() -> set[str]:
    """Return the commands of confide that the page shows, each as its first words."""
    text = (ROOT / "docs" / "data-manager.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return {" ".join(line.split()[1:3]) for line in re.findall(r"^\./confide .*$", text, flags=re.MULTILINE)}


def what_a_data_manager_has(pacs: Orthanc, home: Path) -> Path:
    """Write the table of findings, how the PACS is reached, and the consortium's configuration."""
    home.mkdir()
    labels = phantom.chest(STUDIES, SIDE, 21).labels
    with (home / "findings.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("accession_number", "label"))
        table.writerows((accession(number), ("normal", "pneumonia")[labels[number]]) for number in range(STUDIES))
    (home / "pacs.yaml").touch(mode=0o600)
    (home / "pacs.yaml").write_text(pacs.access("web"))
    settings: dict[str, dict[str, object]] = {}
    for setting in SETTINGS:
        name, _, value = setting.partition("=")
        section, _, key = name.partition(".")
        settings.setdefault(section, {})[key] = yaml.safe_load(value)
    settings["experiment"]["num_clients"] = 3
    (home / "config.yaml").write_text(yaml.safe_dump(settings))
    return home


def test_the_page_leads_from_a_pacs_to_a_hospital_that_trains(pacs: Orthanc, tmp_path: Path) -> None:
    home = what_a_data_manager_has(pacs, tmp_path / "home")
    walker = Walker(home, tmp_path / "machine")

    # 1. Get the studies
    said = walker.type(
        "./confide hospital fetch --pacs pacs.yaml --out export --modality CR,DX --body-part CHEST "
        "--accessions findings.csv --per-minute 6000"
    )
    assert f"{STUDIES} studies: {STUDIES} fetched" in said
    # 2. List the images
    said = walker.type("./confide hospital list-images export --labels findings.csv")
    assert f"{STUDIES} with a label" in said
    # 3. Check
    said = walker.type("./confide hospital check-data export --config config.yaml --findings findings-of-check.csv")
    assert "personal_data" in said
    # 4. Personal data in the headers
    walker.type("./confide hospital check-data export --config config.yaml --deidentify clean")
    said = walker.type("./confide hospital check-data clean --config config.yaml")
    assert "personal_data" not in said

    of_the_data = len(walker.said)

    # 5. Join
    consortium = Consortium(tmp_path, 3)
    ports = ("--fleet-port", str(free_port()), "--enrolment-port", str(free_port()), "--runtime-port", str(free_port()))
    try:
        consortium.start_server(["127.0.0.1"], ports)
        for name in OTHERS:
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(free_port())))
        state = consortium.hospital_state(NAME)
        said = walker.type(
            f"./confide hospital join {consortium.invite(NAME)} --data clean --state {state} --config config.yaml "
            f"--runtime-port {free_port()} --no-start"
        )
        walker.type(f"./confide hospital check-data clean --config config.yaml --cache {state}/cache")
        prepared = [path.name for path in (state / "cache").glob("prepared-*")]
        consortium.start(NAME, ("hospital", "join", "--state", str(state)))
        consortium.wait_for_rounds(2, 3, 240)
        assert [path.name for path in (state / "cache").glob("prepared-*")] == prepared  # The agent found them ready.
        # 6. Afterwards
        assert "round" in walker.type(f"./confide hospital report --state {state}")
        walker.type(f"./confide hospital ledger show --state {state}")
        walker.type(f"./confide hospital model list --state {state}")
        walker.type(f"./confide hospital policy --state {state}")
        assert NAME in walker.type(f"./confide hospital status --state {state}")
    finally:
        (tmp_path / "said.txt").write_text("\n".join(walker.said))
        consortium.stop()
    typed = {" ".join(line.splitlines()[0].split()[2:4]) for line in walker.said}
    assert commands_of_the_page() - {"predict $(./confide"} <= {*typed, "hospital ledger", "hospital model"}
    assert not secrets_in("\n".join(walker.said))
    too_wide = [
        line
        for line in "\n".join(walker.said[:of_the_data]).splitlines()
        if len(line) > COLUMNS and not line.startswith("$ ") and str(tmp_path) not in line
    ]
    assert not too_wide


def secrets_in(text: str) -> list[str]:
    """Return names and numbers of patients that a terminal showed."""
    return [word for word in ("Secret^Person", "PATIENT-") if word in text]
