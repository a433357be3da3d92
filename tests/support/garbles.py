"""The ways in which a deployed hospital garbles its vectors, and where it is told which."""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.run.vector import VectorLayout

ORDER = "garble"


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
    SIGNED_NOISE = "noise for a vector, masked and signed"
    NO_LAST_REPLY = "no reply to the last exchange"
    SIGNED_SCALED = "forty times the change, masked and signed"
    SIGNED_TEN = "ten times the change, masked and signed"
    SIGNED_TWENTY = "twenty times the change, masked and signed"
    SIGNED_THOUSAND = "a thousand times the change, masked and signed"
    SIGNED_FLIPPED = "minus forty times the change, masked and signed"
    OTHER_VECTOR = "a commitment to another vector"
    BAD_COMMITMENT = "a commitment that is too short"
    SCALED_AND_OTHER_KEY = "forty times the change, and another key when it is disputed"
    SCALED_AND_SILENT = "forty times the change, and nothing when it is disputed"


OF_THE_RELAY = (Garble.NO_MESSAGE, Garble.TWO_VECTORS, Garble.NOISE_FOR_OBJECT)
SCALED_BY = {
    Garble.SIGNED_SCALED: 40,
    Garble.SIGNED_TEN: 10,
    Garble.SIGNED_TWENTY: 20,
    Garble.SIGNED_THOUSAND: 1000,
    Garble.SIGNED_FLIPPED: -40,
    Garble.SCALED_AND_OTHER_KEY: 40,
    Garble.SCALED_AND_SILENT: 40,
}
BEFORE_THE_MASKS = (Garble.SIGNED_NOISE, Garble.OTHER_VECTOR, Garble.BAD_COMMITMENT, *SCALED_BY)


def scale(vector: NDArray[Any], layout: VectorLayout, factor: int) -> None:
    """Multiply the change in a vector, up to the largest entry that an honest one has."""
    change = layout.proved_part(vector)[: layout.parameters].view(layout.signed)
    largest = layout.element_bound
    change[:] = np.clip(change.astype(np.int64) * factor, -largest, largest)
