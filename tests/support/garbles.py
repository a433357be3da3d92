"""The ways in which a deployed hospital garbles its vectors, and where it is told which."""

from enum import StrEnum

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
    SIGNED_SCALED = "forty times the change, masked and signed"


OF_THE_RELAY = (Garble.NO_MESSAGE, Garble.TWO_VECTORS, Garble.NOISE_FOR_OBJECT)
BEFORE_THE_MASKS = (Garble.SIGNED_NOISE, Garble.SIGNED_SCALED)
SCALED_BY = 40
