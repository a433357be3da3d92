"""What a conversation reports of who comes and goes."""

from collections.abc import Iterator, Mapping

from common.config import TransportConfig
from common.telemetry.events import Event, HospitalLost, HospitalOnline
from server.conversation import Conversation
from server.transport import Incoming, Outgoing, Patience


class Line:
    """A transport over which nobody is asked anything."""

    def __init__(self) -> None:
        self.connected = {1: "st-anne", 2: "st-john", 3: "st-mary"}

    def online(self) -> Mapping[int, str]:
        return self.connected

    def exchange(
        self, outgoing: Mapping[int, Outgoing], patience: Patience, reply_array_bytes: int
    ) -> Iterator[Incoming]:
        raise AssertionError((outgoing, patience, reply_array_bytes))


def test_who_was_stopped_is_told_from_who_failed() -> None:
    line, reported, departed = Line(), list[Event](), {"st-mary"}
    conversation = Conversation(
        line, TransportConfig(), reported.append, clock=lambda: 1.0, departed=lambda: frozenset(departed)
    )
    assert conversation.online() == {"st-anne", "st-john", "st-mary"}
    line.connected = {1: "st-anne"}
    assert conversation.online() == {"st-anne"}
    assert [(event.hospital, event.left) for event in reported if isinstance(event, HospitalLost)] == [
        ("st-john", False), ("st-mary", True),
    ]  # fmt: skip
    line.connected = {1: "st-anne", 4: "st-mary"}
    conversation.online()
    assert isinstance(reported[-1], HospitalOnline)
    assert reported[-1].hospital == "st-mary"
