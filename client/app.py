"""Between the relay's frames and the agent: decode, one step, encode."""

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from client.agent import HospitalAgent
from client.handover import Parts
from common.errors import RunError
from common.flower.carried import array_head, too_long
from common.run.messages import RefusedReply, Request, decode_request, encode, join_array


def answer(
    agent: HospitalAgent,
    hospital: str,
    message: bytes,
    array_bytes: int,
    array: Iterator[memoryview],
    *,
    longest_array_bytes: int,
) -> tuple[bytes, Parts]:
    """Return the reply to one message; a message that cannot be read is refused, not answered with an error."""
    try:
        request, given = read(message, array_bytes, array, longest_array_bytes)
    except RunError as error:
        refused = RefusedReply(hospital=hospital, code=error.code, reason=str(error)[:1000], is_attack=False)
        return encode(refused), ()
    reply, vector = agent.answer(request, given)
    return encode(reply), () if vector is None else (array_head(vector.dtype, len(vector)), vector.data)


def read(
    message: bytes, array_bytes: int, array: Iterator[memoryview], longest_array_bytes: int
) -> tuple[Request, npt.NDArray[Any] | None]:
    """Return a server's request and the array that came with it, or raise :class:`RunError`."""
    if array_bytes > longest_array_bytes:
        raise RunError(too_long(longest_array_bytes))
    return decode_request(message), None if array_bytes == 0 else join_array(array, array_bytes)
