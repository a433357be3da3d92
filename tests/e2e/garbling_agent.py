"""``python -m tests.e2e.garbling_agent --state DIR``: the deployed agent, whose vectors are garbled as a file bids it.

The file :data:`ORDER` in the agent's state holds a :class:`Garble`; without it the agent is an honest one.
"""

import io
import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client import resident
from client.agent import HospitalAgent
from client.app import answer
from common.flower.seam import replace_in

ORDER = "garble"
CLAIMED_BYTES = 2**46
"""More than any machine has."""


class Garble(StrEnum):
    """What becomes of a vector and the message that it comes with."""

    NOISE_FOR_MESSAGE = "noise for a message"
    NO_MESSAGE = "no message"
    NO_VECTOR = "no vector"
    TWO_VECTORS = "two vectors"
    ONE_SHORT = "one short"
    OTHER_RING = "another ring"
    NOISE_FOR_FILE = "noise for an array file"
    ARCHIVE = "an archive for an array file"
    HUGE_CLAIM = "an array file that claims to be huge"
    NOISE_FOR_OBJECT = "noise for an object of Flower's"
    NO_REPLY = "no reply"
    NOISE_FOR_VECTOR = "noise for a vector"


class NoisyRecord(ConfigRecord):
    """Noise under a head of Flower's that fits it; only who reads the body can tell."""

    def deflate(self) -> bytes:
        body = b"\xff" * 32
        return f"ConfigRecord  {len(body)}".encode() + b"\x00" + body


class Unsendable(Message):
    """A reply that the agent fails to send, after the SuperNode has handed over the whole message."""

    @property
    def object_id(self) -> str:
        raise ValueError("this reply is not to be sent")


def garbled(reply: Message, message: Message, garble: Garble) -> Message:
    """Return a reply as garbled as asked for; its message may be honest, and so may its vector, but not both."""
    body, record = reply.content["body"], reply.content["array"]
    assert isinstance(body, ConfigRecord)
    assert isinstance(record, ArrayRecord)
    (vector,) = (array.numpy() for array in record.values())
    bodies = {
        Garble.NOISE_FOR_MESSAGE: ConfigRecord({"message": os.urandom(1000)}),
        Garble.NO_MESSAGE: ConfigRecord({}),
        Garble.NOISE_FOR_OBJECT: NoisyRecord({}),
    }
    content = RecordDict({"body": bodies.get(garble, body)})
    if garble is not Garble.NO_VECTOR:
        content["array"] = garbled_record(vector, garble)
    return (Unsendable if garble is Garble.NO_REPLY else Message)(content, reply_to=message)


def garbled_record(vector: npt.NDArray[Any], garble: Garble) -> ArrayRecord:
    match garble:
        case Garble.TWO_VECTORS:
            return ArrayRecord([vector, vector])
        case Garble.ONE_SHORT:
            return ArrayRecord([vector[:-1]])
        case Garble.OTHER_RING:
            return ArrayRecord([vector.astype(np.float64)])
        case Garble.NOISE_FOR_VECTOR:
            return ArrayRecord([np.frombuffer(os.urandom(vector.nbytes), vector.dtype)])
        case Garble.NOISE_FOR_FILE | Garble.ARCHIVE | Garble.HUGE_CLAIM:
            return ArrayRecord({"0": Array("uint16", (len(vector),), "numpy.ndarray", array_file(garble))})
    return ArrayRecord([vector])


def array_file(garble: Garble) -> bytes:
    file = io.BytesIO()
    if garble is Garble.ARCHIVE:
        np.savez(file, vector=np.zeros(3))
    elif garble is Garble.HUGE_CLAIM:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (CLAIMED_BYTES,)})
    else:
        file.write(os.urandom(1000))
    return file.getvalue()


def answer_garbled(order: Path, agent: HospitalAgent, hospital: str, message: Message) -> Message:
    reply = answer(agent, hospital, message)
    if "array" not in reply.content or not order.exists():
        return reply
    return garbled(reply, message, Garble(order.read_text()))


if __name__ == "__main__":
    order = Path(sys.argv[sys.argv.index("--state") + 1]) / ORDER
    replace_in(resident, "answer", partial(answer_garbled, order), used_by=resident._serve_alone)
    sys.exit(resident.main())
