"""Attacks on an operator's page: each way in other than the one link, and each way to change something from outside."""

import datetime
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from common.errors import RunError
from deploy.console import serving
from deploy.console.gate import COOKIE, HEADERS, LINK_SECONDS, LONGEST_FORM_BYTES, SESSION_SECONDS, Gate
from deploy.console.pages import Action, Cell, Facts, Page, RowsTable, Side
from deploy.terminal import Fact
from tests.support.console_browser import ADDRESS, PORT, Browser, text_of

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;'"""


@dataclass
class Written(Side):
    """A side whose every word an enemy has written."""

    done: list[tuple[str, str, str]] = field(default_factory=list)

    def overview(self, now: datetime.datetime) -> Page:
        table = RowsTable(HOSTILE, (HOSTILE,), ((Cell(HOSTILE, HOSTILE),),), HOSTILE, HOSTILE)
        return Page(HOSTILE, (HOSTILE,), (Facts(HOSTILE, (Fact(HOSTILE, HOSTILE),)), table))

    def run(self, run_id: str, now: datetime.datetime) -> Page:
        if run_id == "none":
            raise RunError(f"no such run: {HOSTILE}")
        return Page(HOSTILE, (), (), (Action("stop", HOSTILE, HOSTILE, HOSTILE),))

    def act(self, run_id: str, action: str, words: str) -> str:
        self.done.append((run_id, action, words))
        return f"{action}: {words}"


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def side() -> Written:
    return Written()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def browser(side: Written, clock: Clock) -> Browser:
    return Browser(side, Gate(clock))


def token_of(browser: Browser) -> str:
    found = re.search(r'name="token" value="([^"]+)"', browser.at("runs/1").text)
    assert found is not None
    return found[1]


def test_the_link_opens_the_page_once_and_for_one_browser(browser: Browser, side: Written) -> None:
    assert browser.open().status_code == 200
    again = browser.ask(browser.gate.link(PORT))
    assert again.status_code == 403
    other = Browser(side, browser.gate)
    link = browser.gate.link(PORT)
    assert "once=None" in link
    assert other.ask(link).status_code == 403
    assert other.at().status_code == 403


def test_a_link_that_is_ten_minutes_old_opens_nothing(browser: Browser, clock: Clock) -> None:
    clock.seconds = LINK_SECONDS + 1
    assert browser.ask(browser.gate.link(PORT)).status_code == 403
    assert browser.at().status_code == 403


@pytest.mark.parametrize("once", ["", "None", "x" * 43, "é"])
def test_another_token_opens_nothing(browser: Browser, once: str) -> None:
    assert browser.ask(f"{browser.gate.place}/open", headers={}).status_code == 403
    assert browser.ask(f"{browser.gate.place}/open?once={once}").status_code == 403
    assert browser.open().status_code == 200


def test_what_fetches_the_link_ahead_of_a_person_does_not_use_it_up(browser: Browser) -> None:
    link = browser.gate.link(PORT)
    assert browser.ask(link, headers={"sec-purpose": "prefetch;prerender"}).status_code == 403
    assert browser.ask(link, "HEAD").status_code == 403
    assert browser.open().status_code == 200


def test_a_session_ends_after_twelve_hours(browser: Browser, clock: Clock) -> None:
    browser.open()
    clock.seconds = SESSION_SECONDS - 1
    assert browser.at().status_code == 200
    clock.seconds = SESSION_SECONDS + 1
    assert browser.at().status_code == 403
    assert browser.send("runs/1/stop", {"token": browser.gate.form_token}).status_code == 403


@pytest.mark.parametrize("rest", ["", "runs/1", "style.css"])
def test_without_the_cookie_there_is_no_page(browser: Browser, rest: str) -> None:
    browser.open()
    browser.cookies.clear()
    assert browser.at(rest).status_code == 403
    forged = browser.ask(f"{browser.gate.place}/{rest}", headers={"cookie": f"{COOKIE}={'x' * 43}"})
    assert forged.status_code == 403


def test_the_cookie_is_for_the_random_path_alone_and_no_script_reads_it(browser: Browser) -> None:
    begun = browser.ask(browser.gate.link(PORT))
    (cookie,) = begun.headers.get_list("set-cookie")
    assert f"Path={browser.gate.place}/;" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    # The same host at another port, as any user of the machine may open one, gets no cookie from the browser.
    assert "cookie" not in browser.ask("http://127.0.0.1:9999/").request.headers
    assert len(browser.gate.place) >= 22
    assert Gate().place != Gate().place


@pytest.mark.parametrize("path", ["/", "/open", "/style.css", "/runs/1", "/favicon.ico", "/%2e%2e/", "//"])
def test_outside_the_random_path_there_is_nothing(browser: Browser, path: str) -> None:
    browser.open()
    assert browser.ask(f"{ADDRESS}{path}").status_code == 404


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example", f"attacker.example:{PORT}", "127.0.0.1.attacker.example", "localhost.attacker.example",
        "127.0.0.1:8502@attacker.example", "0.0.0.0:8502", "[::1]:8502", "2130706433", "",
    ],
)  # fmt: skip
def test_a_name_that_is_made_to_resolve_to_this_machine_is_refused(browser: Browser, host: str) -> None:
    browser.open()
    for path in (f"{browser.gate.place}/", f"{browser.gate.place}/open?once=x", "/"):
        assert browser.ask(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8502", "localhost:9999", "localhost"])
def test_the_loopback_interface_s_own_names_are_answered_also_through_a_tunnel(browser: Browser, host: str) -> None:
    browser.open()
    assert browser.ask(f"{browser.gate.place}/", headers={"host": host}).status_code == 200


def test_a_form_of_a_page_does_its_work_once_and_says_so(browser: Browser, side: Written) -> None:
    browser.open()
    followed = browser.press("runs/1", "stop", words="a\x00b<i>")
    assert side.done == [("1", "stop", side.done[0][2])]
    assert "\x00" not in side.done[0][2]
    assert f"stop: {side.done[0][2]}" in text_of(followed)
    assert "<i>" not in followed.text
    assert "stop: " not in text_of(browser.at("runs/1"))


@pytest.mark.parametrize("token", [None, "", "x" * 43])
def test_a_form_without_the_session_s_token_changes_nothing(browser: Browser, side: Written, token: str | None) -> None:
    browser.open()
    fields = {} if token is None else {"token": token}
    assert browser.send("runs/1/stop", fields).status_code == 403
    assert side.done == []


@pytest.mark.parametrize(
    "header",
    [
        {"origin": "http://attacker.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8502"}, {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none"},
    ],
)  # fmt: skip
def test_a_form_of_another_page_changes_nothing_even_with_the_token(
    browser: Browser, side: Written, header: dict[str, str]
) -> None:
    browser.open()
    assert browser.send("runs/1/stop", {"token": token_of(browser)}, **header).status_code == 403
    assert side.done == []


def test_nothing_is_changed_by_reading(browser: Browser, side: Written) -> None:
    browser.open()
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"):
        answer = browser.ask(f"{browser.gate.place}/runs/1/stop?token={token_of(browser)}", method)
        assert answer.status_code == 405
    assert side.done == []


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/json", ""])
def test_only_a_browser_s_plain_form_is_read(browser: Browser, side: Written, kind: str) -> None:
    browser.open()
    assert browser.send("runs/1/stop", {"token": token_of(browser)}, content_type=kind).status_code == 415
    assert side.done == []


def test_a_long_or_broken_form_is_refused(browser: Browser, side: Written) -> None:
    browser.open()
    token = token_of(browser)
    assert browser.send("runs/1/stop", {"token": token, "words": "x" * LONGEST_FORM_BYTES}).status_code == 413
    many = {"token": token, **{f"f{number}": "" for number in range(20)}}
    assert browser.send("runs/1/stop", many).status_code == 400
    assert side.done == []


def test_whoever_wrote_a_word_it_is_shown_letter_for_letter(browser: Browser) -> None:
    first, run, error = browser.open(), browser.at("runs/1"), browser.at("runs/none")
    assert error.status_code == 409
    for answer in (first, run, error):
        read = Elements()
        read.feed(answer.text)
        assert {"script", "img"}.isdisjoint(tag for tag, _ in read.found)
        assert not [name for _, attributes in read.found for name, _ in attributes if name.startswith("on")]
        assert HOSTILE in text_of(answer)


class Elements(HTMLParser):
    """What a browser makes of a page: each element with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def test_every_answer_forbids_scripts_frames_and_caches(browser: Browser) -> None:
    answers = [browser.at(), browser.open(), browser.at("runs/none"), browser.ask("/"), browser.at("style.css")]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert "script-src" not in HEADERS["Content-Security-Policy"]
    assert HEADERS["Content-Security-Policy"].startswith("default-src 'none'")


def test_pages_load_nothing_but_their_own_style(browser: Browser) -> None:
    for answer in (browser.open(), browser.at("runs/1")):
        loaded = re.findall(r'<(?:link|img|script|iframe|source)\b[^>]*?(?:href|src)="([^"]*)"', answer.text)
        assert loaded == [f"{browser.gate.place}/style.css"]


def test_it_listens_on_loopback_alone_logs_no_request_and_believes_no_proxy(
    side: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("uvicorn.run", lambda _pages, **settings: given.update(settings))
    monkeypatch.setattr(serving, "check_port_free", lambda *_given: None)
    serving.serve_pages(side, PORT)
    assert given["host"] == "127.0.0.1"
    assert given["access_log"] is False
    assert given["proxy_headers"] is False
    link, *words = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"http://127\.0\.0\.1:8502/[\w-]{22}/open\?once=[\w-]{43}", link)
    assert all(len(line) <= 80 for line in words)
