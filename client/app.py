"""Between Flower's messages and the agent: decode, one step, encode."""

from typing import Any

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from client.agent import HospitalAgent
from common.errors import RunError
from common.run.messages import RefusedReply, Request, decode_request, encode, read_array


def answer(agent: HospitalAgent, hospital: str, message: Message) -> Message:
    """Return the reply to one message; a message that cannot be read is refused, not answered with an error."""
    try:
        request, array = read(message.content)
    except RunError as error:
        refused = RefusedReply(hospital=hospital, code=error.code, reason=str(error)[:1000], is_attack=False)
        return Message(RecordDict({"body": ConfigRecord({"message": encode(refused)})}), reply_to=message)
    reply, vector = agent.answer(request, array)
    content = RecordDict({"body": ConfigRecord({"message": encode(reply)})})
    if vector is not None:
        content["array"] = ArrayRecord([vector])
    return Message(content, reply_to=message)


def read(content: RecordDict) -> tuple[Request, npt.NDArray[Any] | None]:
    """Return a server's request and the array that came with it, or raise :class:`RunError`."""
    return decode_request(_body(content)), _only_array(content)


def _body(content: RecordDict) -> bytes:
    body = content.get("body")
    encoded = body.get("message") if isinstance(body, ConfigRecord) else None
    if not isinstance(encoded, bytes):
        raise RunError("a message must carry a request; the server is of another version")
    return encoded


def _only_array(content: RecordDict) -> npt.NDArray[Any] | None:
    record = content.get("array")
    if record is None:
        return None
    arrays = list(record.values()) if isinstance(record, ArrayRecord) else []
    if len(arrays) != 1:
        raise RunError(f"one array must come with a request, got {len(arrays)}")
    return read_array(arrays[0].data).copy()  # PyTorch takes no array that cannot be written to.
