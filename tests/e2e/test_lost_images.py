"""Images are removed and damaged in a hospital's folder while its run trains, on real processes."""

import csv
import os
import signal
from pathlib import Path

import pytest

from client.data.watch import GONE_FILE
from common.settings import free_port
from common.telemetry.events import Refusal
from tests.support.consortium import Consortium
from tests.support.printed import unwrapped

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

HOSPITALS = ("st-anne", "st-john", "st-mary")
NAME = "st-mary"


def agent_of(state: Path) -> int:
    """Return the process that holds a hospital's data."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"client.resident" in words and str(state).encode() in words:
            return int(process.name)
    raise AssertionError("the hospital has no agent")


def gone(state: Path) -> dict[str, str]:
    if not (state / GONE_FILE).exists():
        return {}
    with (state / GONE_FILE).open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["what"] for row in csv.DictReader(file)}


def test_images_lost_in_a_run_are_left_out_told_and_not_seen_and_a_killed_agent_goes_on(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, len(HOSPITALS))
    ports = ("--fleet-port", str(free_port()), "--enrolment-port", str(free_port()), "--runtime-port", str(free_port()))
    state, folder = consortium.hospital_state(NAME), consortium.shards[HOSPITALS.index(NAME)]
    try:
        consortium.start_server(["127.0.0.1"], ports)
        for name in HOSPITALS:
            consortium.join(name, consortium.invite(name), ("--runtime-port", str(free_port())))
        consortium.wait_for_rounds(2, 3, 240)
        images = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
        removed, short = images[:5], images[5]
        for name in removed:
            (folder / name).unlink()
        (folder / short).write_bytes((folder / short).read_bytes()[:50])
        lost = {**dict.fromkeys(removed, "removed"), short: "changed"}
        consortium.wait_for(lambda: gone(state) == lost, 60)
        consortium.wait_for_rounds(3, 3, 120)
        note = "6 images have been removed, damaged or changed since this run began"
        assert note in unwrapped(consortium.deploy("hospital", "status", "--state", str(state)))
        log = (state / "logs" / "agent.log").read_text()
        assert note in log
        assert not any(Path(name).name in log for name in lost)

        # Its manifest names files that are not there: at the start of a run such a folder is refused.
        os.kill(agent_of(state), signal.SIGKILL)
        (folder / images[6]).unlink()
        lost[images[6]] = "removed"
        consortium.wait_for(lambda: gone(state) == lost, 120)
        consortium.wait_for_rounds(3, 3, 180)
        refused = [event for event in consortium.events() if isinstance(event, Refusal)]
        assert "data" not in {refusal.code for refusal in refused}

        # Prepared images that are cut short while they are mapped kill the agent; it takes them from the rest.
        shards = [
            path for name in HOSPITALS[:1] for path in consortium.hospital_state(name).glob("cache/*/train.images")
        ]
        assert shards
        before = agent_of(consortium.hospital_state(HOSPITALS[0]))
        for path in shards:
            os.truncate(path, 0)
        consortium.wait_for(lambda: agent_after(consortium.hospital_state(HOSPITALS[0]), before), 120)
        consortium.wait_for_rounds(3, 3, 180)
    finally:
        consortium.stop()


def agent_after(state: Path, before: int) -> bool:
    """Tell whether a hospital has another agent than before."""
    try:
        return agent_of(state) != before
    except AssertionError:
        return False
