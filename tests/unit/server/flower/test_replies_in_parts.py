"""A reply whose parts are still to come is not handed to the ServerApp, however its polls fall between the steps.

Before, a poll that came between Flower's storing of a reply and our note of what it lacks was given the reply without
its array: the hospital was out of the round.
"""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from flwr.app import Message
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.superlink.federation import NoOpFederationManager

from server.flower import fleet
from server.flower.fleet import Deliveries, Replies

REQUEST, REPLY, PIECE = "request", "reply", "piece"
SESSION = "session"


class Objects:
    """Flower's store of objects, of which nothing is looked at."""

    def delete(self, _name: str) -> None: ...

    def __contains__(self, _name: str) -> bool:
        """Say that it is not there."""
        return False


class Parted:
    """A SuperLink's state to which one reply comes; what Flower's own state does is played."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:

        self.replies = Replies()
        self.state = fleet._state(Deliveries(), self.replies, folder)(NoOpFederationManager(), cast("Any", Objects()))
        self.stored = threading.Event()
        monkeypatch.setattr(InMemoryLinkState, "store_message_and_object_tree", self._store)
        monkeypatch.setattr(InMemoryLinkState, "get_message_res", self._get)
        monkeypatch.setattr(InMemoryLinkState, "store_object", lambda *_: True)
        monkeypatch.setattr(fleet, "_LONGEST_REPLY_POLL_SECONDS", 0.01)

    def _store(self, *_: object) -> tuple[bool, list[str]]:
        self.state.message_ins_id_to_message_res_id[REQUEST] = REPLY
        self.stored.set()
        return True, [PIECE]

    def _get(self, asked: set[str], _run: int) -> list[Message]:
        metadata = SimpleNamespace(message_id=REPLY)
        return [
            cast("Message", SimpleNamespace(metadata=metadata))
            for name in asked
            if name in self.state.message_ins_id_to_message_res_id
        ]

    def receive(self) -> None:
        """Take the reply of a hospital whose array is still to come."""
        metadata = SimpleNamespace(reply_to_message_id=REQUEST, dst_node_id=1)
        message = SimpleNamespace(metadata=metadata, content=None, has_error=lambda: False)
        self.state.store_message_and_object_tree(
            cast("Message", message), cast("Any", SimpleNamespace(object_id=REPLY)), SESSION
        )

    def poll(self) -> list[Message]:
        return self.state.get_message_res({REQUEST}, 1)


@pytest.fixture
def parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parted:
    return Parted(tmp_path, monkeypatch)


def test_a_poll_between_storing_a_reply_and_noting_what_it_lacks_gets_nothing(
    parted: Parted, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled: list[list[Message]] = []
    other = threading.Thread(target=lambda: polled.append(parted.poll()))
    expect = parted.replies.expect

    def noting_late(request: str, missing: list[str]) -> None:
        other.start()
        other.join(0.3)
        expect(request, missing)

    monkeypatch.setattr(parted.replies, "expect", noting_late)
    parted.receive()
    other.join(5)
    assert polled == [[]]
    parted.state.store_object(1, SESSION, PIECE, b"its content")
    assert len(parted.poll()) == 1


def test_a_reply_that_comes_while_a_poll_chooses_what_to_ask_for_is_not_taken_in_part(
    parted: Parted, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = fleet._worth_asking

    def choosing(*given: Any) -> set[str]:  # noqa: ANN401 - as the real one
        chosen = choose(*given)
        assert chosen == {REQUEST}  # It has no reply yet, so Flower is asked whether it is lost.
        parted.receive()
        return chosen

    monkeypatch.setattr(fleet, "_worth_asking", choosing)
    assert parted.poll() == []
