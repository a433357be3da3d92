"""The server's own operator is answered over its socket, nobody else, and errors come back as words."""

import datetime as dt
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common.config import replace
from common.errors import ConfigError, RunError
from common.files import socket_name
from common.identity.members import MEMBERS_FILE
from common.models.first_model import FIRST_MODEL_FILE, FirstModel
from server import operator_socket
from server.operator_socket import (
    SOCKET_FILE,
    ChangeRun,
    Operator,
    OperatorReply,
    OperatorSocket,
    ShowRuns,
    ask_server,
)
from server.run_queue import RunQueue
from tests.support.console_states import server_state
from tests.support.proposed_run import CONFIG, NAMES, RUN_ID, Members
from tests.support.proposing import FACTS, FIRST, proposal

MEMBERS = Members.made((*NAMES, "st-luke"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    # A path that is longer than a socket's name may be.
    return server_state(tmp_path / ("a-long-name-" * 12), MEMBERS)


@pytest.fixture
def served(state: Path) -> Iterator[Path]:
    with OperatorSocket(state, Operator(state)):
        yield state


def test_a_run_is_proposed_listed_shown_stopped_and_resumed(served: Path) -> None:
    (first,) = ask_server(served, proposal(served))
    assert (first.run_id, first.number, first.state) == (RUN_ID, 1, "proposed")
    assert first.hospitals == tuple(sorted(MEMBERS.identities))
    assert first.claims
    (second,) = ask_server(served, proposal(served, hospitals=NAMES, held=True))
    assert second.run_id != RUN_ID
    assert (second.hospitals, second.held) == (NAMES, True)
    # The configuration counts those that are named.
    assert RunQueue(served).config(second.run_id).experiment.num_clients == len(NAMES)
    assert [view.number for view in ask_server(served, ShowRuns())] == [1, 2]
    assert ask_server(served, ShowRuns("2")) == ask_server(served, ShowRuns(second.run_id[:12])) == (second,)
    (stopped,) = ask_server(served, ChangeRun("2", "stop"))
    assert stopped.state == "stopped"
    (resumed,) = ask_server(served, ChangeRun("2", "resume"))
    assert resumed.state == "proposed"


def test_what_the_server_refuses_comes_back_in_its_words(served: Path) -> None:
    with pytest.raises(RunError, match="st-peter are not on the authority's list"):
        ask_server(served, proposal(served, hospitals=(*NAMES, "st-peter")))
    with pytest.raises(RunError, match="greater than or equal to 3"):
        ask_server(served, proposal(served, hospitals=NAMES[:2]))
    with pytest.raises(RunError, match="must be one of this version"):
        ask_server(served, proposal(served, config={"experiment": {"rounds": 0}}))
    with pytest.raises(RunError, match="0 runs are called '7'"):
        ask_server(served, ShowRuns("7"))
    assert ask_server(served, ShowRuns()) == ()


def test_the_socket_is_the_owner_s_alone_and_gone_when_the_server_is(state: Path) -> None:
    with OperatorSocket(state, Operator(state)):
        assert (state / SOCKET_FILE).stat().st_mode & 0o777 == 0o600
        assert ask_server(state, ShowRuns()) == ()
    assert not (state / SOCKET_FILE).exists()
    with pytest.raises(ConfigError, match="a server must run on this state folder"):
        ask_server(state, ShowRuns())


def test_another_user_is_not_answered(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger(socket.socket):
        def getsockopt(self, *_asked: int) -> bytes:  # type: ignore[override]  # as the kernel answers about another user
            return struct.pack("3i", 1, os.getuid() + 1, 1)

    accept = socket.socket.accept

    def accept_stranger(listener: socket.socket) -> tuple[socket.socket, object]:
        connection, address = accept(listener)
        return Stranger(fileno=connection.detach()), address

    monkeypatch.setattr(operator_socket._Listener, "get_request", lambda self: accept_stranger(self.socket))
    if os.getuid() == 0:
        with pytest.raises((ConfigError, msgspec.DecodeError)):
            ask_server(served, ShowRuns())


@pytest.mark.parametrize("content", [b"", b"{}", b'{"type":"erase"}', b"\xff" * 100, b'{"type":"list","more":1}'])
def test_bytes_that_are_no_request_are_answered_with_an_error(served: Path, content: bytes) -> None:
    with socket_name(served / SOCKET_FILE) as address, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        reply = msgspec.json.decode(operator_socket._read(connection), type=OperatorReply)
    assert reply.error is not None
    assert "must be of one version" in reply.error
    assert ask_server(served, ShowRuns()) == ()


def test_a_server_without_members_proposes_nothing(state: Path) -> None:
    (state / MEMBERS_FILE).unlink()
    reply = Operator(state).answer(proposal(state), dt.datetime.now(dt.UTC))
    assert reply.error is not None
    assert "nobody has joined yet" in reply.error


def test_a_configuration_is_what_was_sent(served: Path) -> None:
    wanted = replace(CONFIG, experiment={"rounds": 7}, privacy={"target_epsilon": 2.5})
    (view,) = ask_server(served, proposal(served, config=wanted.model_dump(mode="json")))
    assert (view.rounds, view.epsilon) == (7, 2.5)
    assert RunQueue(served).config(view.run_id).training == wanted.training


def test_the_run_begins_with_the_model_that_came_with_its_proposal(served: Path) -> None:
    (view,) = ask_server(served, proposal(served))
    kept = FirstModel.read(RunQueue(served).folder(view.run_id) / FIRST_MODEL_FILE)
    assert (kept.facts, kept.shapes) == (FACTS, FIRST.shapes)
    assert list((served / "first-models").iterdir()) == []


def test_a_proposal_without_its_first_model_or_with_another_is_refused(served: Path) -> None:
    asked = proposal(served)
    with pytest.raises(RunError, match="the run's first model must lie in first-models"):
        ask_server(served, msgspec.structs.replace(asked, first_model=64 * "0"))
    (served / "first-models" / f"{asked.first_model}.safetensors").write_bytes(b"another")
    with pytest.raises(RunError, match="must be the file that was left with the proposal"):
        ask_server(served, asked)
    with pytest.raises(RunError, match="must be made for the run: cnn_wide"):
        ask_server(served, proposal(served, config=replace(CONFIG, model={"name": "cnn_wide"}).model_dump(mode="json")))
    assert ask_server(served, ShowRuns()) == ()
    assert list((served / "first-models").iterdir()) == []
