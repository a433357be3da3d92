"""Between a relay's frames and the agent: what is too long is refused before any of it is kept."""

from types import SimpleNamespace
from typing import cast

from client.agent import HospitalAgent
from client.app import answer
from common.flower.carried import longest_array_bytes
from common.run.messages import RefusedReply, decode_reply


def test_an_array_that_is_longer_than_the_hospital_takes_is_refused_unread() -> None:
    untouched = iter([memoryview(b"")])
    longest = longest_array_bytes(1000)
    agent = cast("HospitalAgent", SimpleNamespace())
    reply, parts = answer(agent, "north", b"request", longest + 1, untouched, longest_array_bytes=longest)
    refused = decode_reply(reply)
    assert isinstance(refused, RefusedReply)
    assert not parts
    assert list(untouched) == [b""]
    assert refused.reason.startswith(f"an array must have at most {longest} bytes at this hospital")
