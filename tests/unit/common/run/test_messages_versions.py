"""A message of another version of the protocol is refused by name, with both versions, and one of none is not."""

import msgspec
import pytest

from common.config import PROTOCOL_VERSION
from common.errors import OtherVersionError, RunError
from common.run.messages import decode_reply, decode_request

LATER = msgspec.msgpack.encode({"version": PROTOCOL_VERSION + 1, "type": "advertise_keys", "anything": 1})
NO_MESSAGE = msgspec.msgpack.encode({"version": PROTOCOL_VERSION, "type": "no such thing"})


def test_both_sides_name_both_versions() -> None:
    with pytest.raises(OtherVersionError, match=f"the server speaks version {PROTOCOL_VERSION + 1}, this hospital"):
        decode_request(LATER)
    with pytest.raises(OtherVersionError, match=f"the hospital speaks version {PROTOCOL_VERSION + 1}, this server"):
        decode_reply(LATER)


@pytest.mark.parametrize("content", [b"", b"\xff", b"\x80", NO_MESSAGE])
def test_what_is_no_message_of_any_version_is_refused_as_such(content: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(RunError) as refused:
            decode(content)
        assert not isinstance(refused.value, OtherVersionError)
