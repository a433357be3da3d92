"""How a message of ours lies in Flower's: one record of a small message, and an array beside it, whole or in pieces.

A message of Flower's carries a record ``body``, inside the message itself where Flower's own applications have it sent
as separate objects, so that one call carries all of a small message. It has these values:

- ``message``: the encoded request or reply;
- ``array``: a NumPy file, where a small array comes with it;
- ``pieces``: the names of objects in order, where a long one does: the head of the NumPy file and then its numbers.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from common.flower.waits import PIECE_BYTES
from common.run.messages import LONGEST_HEAD_BYTES, MAXIMUM_MESSAGE_BYTES

BODY, MESSAGE, ARRAY, PIECES = "body", "message", "array", "pieces"

LONGEST_WHOLE_BYTES = 256 * 1024
"""The longest array inside a message. A SuperLink holds each message until it is answered, for every hospital, and
those of longer arrays as pieces, once for all hospitals, and in files."""

MOST_PIECES = 2**12
"""An array of more pieces is refused before any is fetched: 4 GiB, a billion parameters."""

LONGEST_CALL_BYTES = MAXIMUM_MESSAGE_BYTES + 2**20
"""A call between hospital and server carries one message with a short array, or one piece. A longer one is refused
before it is held, on either side: nobody fills the other's memory with it."""

_NAME_DIGITS = 64


def longest_array_bytes(elements: int) -> int:
    """Return the bytes of the longest array that a hospital takes, a model, for the length of its run's vector."""
    return LONGEST_HEAD_BYTES + np.dtype(np.float32).itemsize * elements


def too_long(longest_bytes: int) -> str:
    """Return the words of a refusal of an array that is longer than a hospital takes."""
    return (
        f"an array must have at most {longest_bytes} bytes at this hospital, got a longer one; its operator can raise "
        "hospital.longest_vector"
    )


class Piece:
    """An object of Flower's that holds a part of an array, read each time it is wanted.

    Args:
        read: returns the part.
    """

    def __init__(self, read: Callable[[], bytes | memoryview]) -> None:
        self._read = read

    def content(self) -> bytes:
        """Return the object: what Flower calls an ``ArrayChunk``, with its head."""
        part = self._read()
        return b"".join((b"ArrayChunk  %d\0" % len(part), part))

    @cached_property
    def name(self) -> str:
        """Return the SHA-256 that Flower knows the object by."""
        return hashlib.sha256(self.content()).hexdigest()


def part_of(content: bytes) -> memoryview:
    """Return the part of an array that an object of Flower's holds.

    Raises:
        ValueError: it is another object, or longer than a piece.
    """
    head, divider, _ = content[:64].partition(b"\0")
    if not divider or not head.startswith(b"ArrayChunk  "):
        raise ValueError("an object must hold a part of an array")
    part = memoryview(content)[len(head) + 1 :]
    if len(part) > PIECE_BYTES:
        raise ValueError(f"a part of an array must have {PIECE_BYTES} bytes at most, got {len(part)}")
    return part


def is_name(name: str) -> bool:
    """Say whether this can be the name of an object."""
    return len(name) == _NAME_DIGITS and set(name) <= set("0123456789abcdef")


def array_head(dtype: np.dtype[np.generic], length: int) -> bytes:
    """Return what stands before the numbers of a flat array in NumPy's format."""
    head = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(head, facts)
    return head.getvalue()


def cut(array: memoryview) -> Iterator[memoryview]:
    """Return a long array's bytes a piece at a time."""
    return (array[start : start + PIECE_BYTES] for start in range(0, len(array), PIECE_BYTES))
