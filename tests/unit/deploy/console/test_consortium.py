"""The consortium's page shows what the commands show, and changes runs through the server's socket alone."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.audit.chain import AUDIT_FILE
from common.files import write_private
from common.settings import SUPERNODES_FOLDER
from common.telemetry.events import EVENTS_FILE, RoundDone
from deploy.console import consortium
from deploy.console.consortium import ConsortiumSide
from server.members.roster import Membership
from server.members.versions import SpokenVersions
from server.operator_socket import Operator, OperatorSocket, ask_server
from server.run_queue import RunQueue
from tests.support.console_browser import Browser, text_of
from tests.support.console_states import answer, server_state
from tests.support.example_run import example_run
from tests.support.proposed_run import HOUR, NAMES, NOW, RUN_ID, Members
from tests.support.proposing import proposal

MEMBERS = Members.made()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return server_state(tmp_path / "server", MEMBERS)


@pytest.fixture
def served(state: Path) -> Iterator[Path]:
    with OperatorSocket(state, Operator(state)):
        yield state


def test_the_overview_shows_members_invitations_runs_epsilon_and_chains(served: Path) -> None:
    membership = Membership(served)
    token = membership.invite("st-luke", NOW + HOUR)
    (served / SUPERNODES_FOLDER / "st-john.pub").unlink()
    ask_server(served, proposal(served))
    membership.versions.note("st-anne", SpokenVersions(2, "0.1.0"))
    answer(served, MEMBERS, "st-anne", agrees=True)
    events = example_run(3)
    folder = RunQueue(served).folder(RUN_ID)
    (folder / EVENTS_FILE).write_text("".join(event.to_line() for event in events))
    chain = MEMBERS.chain("st-anne", folder)
    chain.close()

    shown = text_of(Browser(ConsortiumSide(served)).open())
    assert "st-luke" in shown
    assert token.hex() not in shown
    assert "st-anne member protocol version 2 (Confide 0.1.0)" in shown
    assert "st-john cut off has not said which version it speaks" in shown
    assert "st-anne speaks another version of the protocol" in shown
    assert f"1 {RUN_ID[:12]} proposed 3 of 4" in shown
    assert "1 of 3" in shown
    last = [event for event in events if isinstance(event, RoundDone)][-1]
    assert f"1 of 3 {last.epsilon:.2f} whole: 1 line, signed by st-anne" in shown
    assert "confide.example.org:9093: not running" in shown


def test_a_chain_that_was_changed_is_called_so_also_after_it_was_found_whole(served: Path) -> None:
    ask_server(served, proposal(served))
    folder = RunQueue(served).folder(RUN_ID)
    MEMBERS.chain("st-anne", folder).close()
    browser = Browser(ConsortiumSide(served))
    assert "whole: 1 line" in text_of(browser.open())
    path = folder / AUDIT_FILE
    path.write_bytes(path.read_bytes().replace(b'"sequence":1', b'"sequence":2'))
    assert f"NOT WHOLE: {AUDIT_FILE}, line 1" in text_of(browser.at())


def test_a_run_is_stopped_and_resumed_through_the_server(served: Path) -> None:
    ask_server(served, proposal(served))
    browser = Browser(ConsortiumSide(served))
    browser.open()
    page = browser.press(f"runs/{RUN_ID}", "stop")
    assert "run 1 is stopped: stopped before it began" in text_of(page)
    assert RunQueue(served).get(RUN_ID).state == "stopped"
    assert "action" in page.text
    assert "/resume" in page.text
    assert "/stop" not in page.text
    page = browser.press(f"runs/{RUN_ID}", "resume")
    assert RunQueue(served).get(RUN_ID).state == "proposed"


def test_a_run_that_was_held_back_is_started_once_all_have_agreed(served: Path) -> None:
    ask_server(served, proposal(served, held=True))
    for name in NAMES:
        answer(served, MEMBERS, name, agrees=True)
    RunQueue(served).settle(datetime.datetime.now(datetime.UTC))
    browser = Browser(ConsortiumSide(served))
    browser.open()
    assert "begins when its turn comes" in text_of(browser.press(f"runs/{RUN_ID}", "start"))
    assert not RunQueue(served).get(RUN_ID).held


def test_a_hospital_s_reason_is_shown_and_does_nothing_else(served: Path) -> None:
    ask_server(served, proposal(served))
    answer(served, MEMBERS, "st-mary", agrees=False, reason="<script>alert('not before May')</script>")
    RunQueue(served).settle(datetime.datetime.now(datetime.UTC))
    browser = Browser(ConsortiumSide(served))
    for page in (browser.open(), browser.at(f"runs/{RUN_ID}")):
        assert "<script>alert('not before May')</script>" in text_of(page)
        assert "<script" not in page.text


def test_without_a_running_server_everything_is_shown_and_nothing_can_be_changed(state: Path) -> None:
    with OperatorSocket(state, Operator(state)):
        ask_server(state, proposal(state))
    browser = Browser(ConsortiumSide(state))
    assert "nothing can be changed" in text_of(browser.open())
    page = browser.at(f"runs/{RUN_ID}")
    assert "must be there st-anne, st-john, st-mary" in text_of(page)
    assert "<form" not in page.text
    sent = browser.send(f"runs/{RUN_ID}/stop", {"token": browser.gate.form_token})
    assert sent.status_code == 409
    assert "a server must run on this state folder" in text_of(sent)


@pytest.mark.parametrize("path", ["runs/7", "runs/..%2f..%2fserver.json", "runs/x%00"])
def test_a_run_that_is_not_there_is_an_answer_in_words(served: Path, path: str) -> None:
    browser = Browser(ConsortiumSide(served))
    browser.open()
    assert browser.at(path).status_code in {404, 409}
    sent = browser.send(f"{path}/verify", {"token": browser.gate.form_token})
    assert sent.status_code in {404, 409}


def test_only_the_named_actions_can_be_asked_for(served: Path) -> None:
    ask_server(served, proposal(served))
    browser = Browser(ConsortiumSide(served))
    browser.open()
    sent = browser.send(f"runs/{RUN_ID}/propose", {"token": browser.gate.form_token})
    assert sent.status_code == 409
    assert RunQueue(served).get(RUN_ID).state == "proposed"


def test_the_verdict_of_audit_verify_is_shown_with_its_run(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_server(served, proposal(served))
    MEMBERS.chain("st-anne", RunQueue(served).folder(RUN_ID)).close()
    asked: list[Path] = []

    def verify(folder: Path) -> str:
        asked.append(folder)
        return "verified"

    monkeypatch.setattr(consortium, "verify_run", verify)
    browser = Browser(ConsortiumSide(served))
    browser.open()
    assert "audit verify verified" in text_of(browser.press(f"runs/{RUN_ID}", "verify"))
    assert asked == [RunQueue(served).folder(RUN_ID)]


def test_no_page_holds_what_lies_in_the_state_folder_s_secret_files(served: Path) -> None:
    private = "words-that-nobody-may-see"
    for name in ("ca.key", "tls.key", "authority/ca.key", "relay/secret"):
        write_private(served / name, private.encode())
    ask_server(served, proposal(served))
    browser = Browser(ConsortiumSide(served))
    for page in (browser.open(), browser.at(f"runs/{RUN_ID}")):
        assert private not in page.text
        assert "PRIVATE KEY" not in page.text
        assert str(served) not in page.text
