"""The operators' pages as people see them: at a desk, on a phone, without a mouse, and in the dark."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from common.run.proposal import RunState
from common.settings import free_port
from common.telemetry.events import EVENTS_FILE
from server.members.roster import Membership
from server.members.versions import SpokenVersions
from server.operator_socket import Operator, OperatorSocket, ask_server
from server.run_queue import RunQueue
from tests.support.console_states import answer, hospital_state, server_state
from tests.support.consortium import ENVIRONMENT, ROOT
from tests.support.example_run import example_run
from tests.support.proposed_run import HOUR, NOW, RUN_ID, Members
from tests.support.proposing import proposal

CHROMIUM = os.environ.get("CONFIDE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MEMBERS = Members.made()
LIMIT_SECONDS = 60.0
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (or set CONFIDE_CHROMIUM)"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    state = server_state(tmp_path_factory.mktemp("console") / "server", MEMBERS)
    with OperatorSocket(state, Operator(state)):
        Membership(state).invite("st-luke", NOW + HOUR)
        ask_server(state, proposal(state))
        answer(state, MEMBERS, "st-anne", agrees=True)
        answer(state, MEMBERS, "st-mary", agrees=False, reason="not before May")
        ask_server(state, proposal(state))
        Membership(state).versions.note("st-anne", SpokenVersions(2, "0.1.0"))
        folder = RunQueue(state).folder(RUN_ID)
        (folder / EVENTS_FILE).write_text("".join(event.to_line() for event in example_run(3)))
        MEMBERS.chain("st-anne", folder).close()
        yield state


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    return hospital_state(tmp_path, MEMBERS, "st-mary")


@contextmanager
def console(*words: str) -> Iterator[str]:
    """Start a page, and return its link."""
    command = (sys.executable, "-m", "deploy", *words, "--port", str(free_port()))
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            link = process.stdout.readline().strip()
            assert link.startswith("http://127.0.0.1:"), link
            wait_until_it_listens(int(link.split(":")[2].partition("/")[0]))
            yield link
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def wait_until_it_listens(port: int) -> None:
    give_up = time.monotonic() + LIMIT_SECONDS
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < give_up, "the page must listen"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(context: BrowserContext, link: str) -> Page:
    """Open the link."""
    page = context.new_page()
    page.goto(link)
    return page


def listener(asked: list[str]) -> Callable[[Request], None]:
    """Return what notes each address that a page asks for."""
    return lambda request: asked.append(request.url)


def photograph(page: Page, name: str) -> None:
    if picture := os.environ.get("CONFIDE_PICTURES"):
        page.screenshot(path=Path(picture) / f"console-{name}.png", full_page=True)


def is_within_its_window(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def tab_to(page: Page, name: str) -> None:
    """Press the tabulator until what is called so has the focus, which must then be seen."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.innerText || e.id, s.outlineStyle, s.outlineWidth] }"
        )
        if focus[0] == name:
            assert focus[1:] == ["solid", "3px"]
            return
    pytest.fail(f"{name} must be reached by the tabulator")


@pytest.mark.parametrize(("name", "size", "scheme"), [
    ("desk", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark"),
])  # fmt: skip
def test_both_pages_fit_a_desk_and_a_phone_in_light_and_dark(
    chromium: Browser, server: Path, hospital: Path, name: str, size: dict[str, int], scheme: str
) -> None:
    sides = ((("console", "--state", str(server)), "Consortium"), (("hospital", "console", "--state", str(hospital)),
                                                                   "Hospital st-mary"))  # fmt: skip
    for words, title in sides:
        with console(*words) as link:
            context = chromium.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
            asked: list[str] = []
            context.on("request", listener(asked))
            page = opened(context, link)
            expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
            assert is_within_its_window(page)
            photograph(page, f"{words[0]}-{name}")
            page.get_by_role("link", name=re.compile(rf"^(1|{RUN_ID[:12]})$")).click()
            expect(page.get_by_role("heading", name=re.compile("^Run "))).to_be_visible()
            assert is_within_its_window(page)
            photograph(page, f"{words[0]}-run-{name}")
            own = link.partition("/open?")[0]
            assert asked
            assert [url for url in asked if not url.startswith(own) and not url.endswith("/favicon.ico")] == []
            context.close()


def test_a_run_is_stopped_and_resumed_by_keyboard_alone(chromium: Browser, server: Path) -> None:
    queue = RunQueue(server)
    run = queue.find("2")
    with console("console", "--state", str(server)) as link:
        context = chromium.new_context(viewport=DESK)  # type: ignore[arg-type]
        page = opened(context, link)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # Skip to the content.
        assert page.url.endswith("#main")
        tab_to(page, "2")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name=re.compile("^Run 2"))).to_be_visible()
        tab_to(page, "Stop")
        photograph(page, "focus")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("run 2 is stopped")
        assert queue.get(run.run_id).state is RunState.STOPPED
        tab_to(page, "Resume")
        page.keyboard.press("Space")
        expect(page.get_by_role("status")).to_contain_text("waits for the hospitals' answers")
        # The link was for one browser.
        other = chromium.new_context().new_page()
        other.goto(link)
        expect(other.get_by_text("open the link that the command has printed")).to_be_visible()
        context.close()


def test_a_hospital_declines_with_its_reason(chromium: Browser, hospital: Path) -> None:
    with console("hospital", "console", "--state", str(hospital)) as link:
        context = chromium.new_context(viewport=PHONE)  # type: ignore[arg-type]
        page = opened(context, link)
        page.get_by_role("link", name=RUN_ID[:12]).click()
        page.get_by_label("Reason").fill("<b>not before May</b>")
        page.get_by_role("button", name="Decline").click()
        expect(page.get_by_role("status")).to_contain_text("declines")
        expect(page.get_by_text("declined, by operator: <b>not before May</b>")).to_be_visible()
        expect(page.get_by_role("button")).to_have_count(0)
        context.close()


def test_a_page_elsewhere_can_neither_frame_the_page_nor_send_its_form(chromium: Browser, server: Path) -> None:
    run = RunQueue(server).find("2")
    before = RunQueue(server).get(run.run_id)
    with console("console", "--state", str(server)) as link:
        context = chromium.new_context()
        opened(context, link)
        place = link.partition("/open?")[0]
        hostile = context.new_page()
        hostile.route(
            "http://attacker.example/",
            lambda route: route.fulfill(
                content_type="text/html",
                body=f'<iframe src="{place}/"></iframe>'
                f'<form method="post" action="{place}/runs/{run.run_id}/stop"><button>win</button></form>',
            ),
        )
        hostile.goto("http://attacker.example/")
        assert all("Consortium" not in frame.content() for frame in hostile.frames)
        hostile.get_by_role("button", name="win").click()
        expect(hostile.get_by_text("open the link that the command has printed")).to_be_visible()
        context.close()
    assert RunQueue(server).get(run.run_id) == before
