"""``python -m tests.e2e.garbling_relay --relay DIR …``: the deployed relay, which garbles messages as a file bids it.

See ``garbling_agent.py``; the file is in the folder above the relay's.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flwr.proto.message_pb2 import Message
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, StringList

from client.flower import supernode
from common.flower.carried import ARRAY, MESSAGE, PIECES, Piece
from common.flower.seam import replace_in
from tests.support.garbles import OF_THE_RELAY, ORDER, Garble

HONEST = supernode.reply_with


class Noise(Piece):
    """Noise under a head of Flower's that fits it; only who reads the body can tell."""

    def content(self) -> bytes:
        body = self._read()
        return b"ConfigRecord  %d\0" % len(body) + body


def reply_garbled(
    order: Path, asked: Message, message: bytes, array: bytes | bytearray
) -> tuple[Message, Sequence[Piece]]:
    reply, pieces = HONEST(asked, message, array)
    garble = Garble(order.read_text()) if order.exists() else None
    if not array or garble not in OF_THE_RELAY:
        return reply, pieces
    noise = Noise(partial(bytes, os.urandom(32)))
    named = ConfigRecordValue(string_list=StringList(vals=[noise.name]))
    values = {
        Garble.NO_MESSAGE: {ARRAY: ConfigRecordValue(bytes=bytes(array))},
        Garble.TWO_VECTORS: {
            MESSAGE: ConfigRecordValue(bytes=message), ARRAY: ConfigRecordValue(bytes=bytes(array)), PIECES: named,
        },
        Garble.NOISE_FOR_OBJECT: {MESSAGE: ConfigRecordValue(bytes=message), PIECES: named},
    }[garble]  # fmt: skip
    record = reply.content.items[0].config_record
    del record.items[:]
    record.items.extend(ConfigRecord.Item(key=key, value=value) for key, value in values.items())
    return reply, [] if garble is Garble.NO_MESSAGE else [noise]


if __name__ == "__main__":
    order = Path(sys.argv[sys.argv.index("--relay") + 1]).parent / ORDER
    replace_in(supernode, "reply_with", partial(reply_garbled, order), used_by=supernode.Relay._reply_to)
    sys.exit(supernode.main())
