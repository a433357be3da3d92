"""The dashboard as a person sees it, in a browser that nothing but this machine answers."""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from common.settings import free_port
from common.telemetry.events import COMPLETED, Evaluated, Event
from tests.support.example_run import example_run

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CONFIDE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
LIMIT_SECONDS = 60.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (or set CONFIDE_CHROMIUM)"),
]


def write(run: Path, events: list[Event]) -> None:
    (run / "events.jsonl").write_text("".join(event.to_line() for event in events), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write(folder, example_run(6, finished=False)[:8])
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    port = free_port()
    command = (sys.executable, "-m", "deploy", "dashboard", str(run), "--port", str(port))
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(LIMIT_SECONDS)


def _wait_until_healthy(address: str) -> None:
    give_up = time.monotonic() + LIMIT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):  # noqa: S310 - the page below
                return
        except (urllib.error.URLError, TimeoutError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Every address the page asked for anything."""
    return []


@pytest.fixture(scope="module")
def page(address: str, asked: list[str]) -> Iterator[Page]:
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(1000 * LIMIT_SECONDS)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        browser.close()


def test_a_running_run_is_shown_and_grows_by_itself(run: Path, page: Page) -> None:
    events = example_run(6)
    expect(page.get_by_role("heading", name="pneumonia on breast cancer")).to_be_visible(timeout=1000 * LIMIT_SECONDS)
    expect(page.get_by_text("running")).to_be_visible()
    write(run, events)
    (tested,) = (event for event in events if isinstance(event, Evaluated))
    expect(page.get_by_text("round 6 of 6")).to_be_visible(timeout=1000 * LIMIT_SECONDS)
    expect(page.get_by_text(COMPLETED)).to_be_visible()
    for name, value in (("accuracy", tested.accuracy), ("f1", tested.f1), ("auc", tested.auc)):
        low, high = tested.intervals[name]
        shown = f"{value:.2f} ±{max(value - low, high - value):.2f}"
        expect(page.get_by_text(shown, exact=True).first).to_be_visible()


def test_what_it_cost_and_what_went_wrong_is_said(page: Page) -> None:
    expect(page.get_by_text("above this hospital's budget of 10")).to_be_visible(timeout=1000 * LIMIT_SECONDS)
    expect(page.get_by_text("hospital-3 dropped out at masked_input")).to_be_visible()
    expect(page.get_by_text("ε spent by training")).to_be_visible()


def test_both_charts_are_drawn(page: Page) -> None:
    charts = page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg")
    expect(charts).to_have_count(2, timeout=1000 * LIMIT_SECONDS)
    if picture := os.environ.get("CONFIDE_PICTURES"):
        page.screenshot(path=Path(picture) / "dashboard.png", full_page=True)


def test_the_page_fetches_nothing_from_elsewhere(address: str, page: Page, asked: list[str]) -> None:
    expect(page.get_by_text("Every round")).to_be_visible(timeout=1000 * LIMIT_SECONDS)
    assert asked
    foreign = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert foreign == []


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "deploy", "dashboard", str(tmp_path))
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert ended.returncode == 2
    assert "must be the folder of a run" in ended.stderr
