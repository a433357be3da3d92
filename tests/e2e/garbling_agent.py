"""``python -m tests.e2e.garbling_agent --state DIR``: the deployed agent, whose vectors are garbled as a file bids it.

The file ``ORDER`` in the agent's state holds a ``Garble`` (``tests/support/garbles.py``); without it the agent is an
honest one. What a hospital's relay must garble is in ``garbling_relay.py``.
"""

import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import resident
from client.agent import HospitalAgent
from client.app import answer
from client.handover import Parts
from client.proved_model import ProvedModel
from common.flower.carried import array_head
from common.flower.seam import replace_in
from common.run.messages import UnmaskReply, decode_reply, read_array
from common.run.vector import VectorLayout
from common.secagg import disputes
from common.secagg.messages import OpenedChange
from tests.support.garbles import BEFORE_THE_MASKS, OF_THE_RELAY, ORDER, SCALED_BY, Garble, scale

CLAIMED_BYTES = 2**46
"""More than any machine has."""


def parts_of(vector: npt.NDArray[Any]) -> Parts:
    return array_head(vector.dtype, len(vector)), vector.tobytes()


def garbled(reply: bytes, vector: npt.NDArray[Any], garble: Garble) -> tuple[bytes, Parts]:
    """Return a reply as garbled as asked for; its message may be honest, and so may its vector, but not both."""
    match garble:
        case Garble.NO_REPLY:
            raise ValueError("this reply is not to be sent")
        case Garble.NOISE_FOR_MESSAGE:
            return os.urandom(1000), parts_of(vector)
        case Garble.NO_VECTOR:
            return reply, ()
        case Garble.ONE_SHORT:
            return reply, parts_of(vector[:-1])
        case Garble.OTHER_RING:
            # Of the same length: what is longer than a vector is refused before it is read.
            return reply, parts_of(vector.view(f"i{vector.itemsize}"))
        case Garble.NOISE_FOR_VECTOR:
            return reply, parts_of(np.frombuffer(os.urandom(vector.nbytes), vector.dtype))
        case Garble.NOISE_FOR_FILE | Garble.ARCHIVE | Garble.HUGE_CLAIM:
            return reply, (array_file(garble),)
    raise ValueError(garble)


def array_file(garble: Garble) -> bytes:
    file = io.BytesIO()
    if garble is Garble.ARCHIVE:
        np.savez(file, vector=np.zeros(3))
    elif garble is Garble.HUGE_CLAIM:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (CLAIMED_BYTES,)})
    else:
        file.write(os.urandom(1000))
    return file.getvalue()


def bidden(order: Path) -> Garble | None:
    return Garble(order.read_text()) if order.exists() else None


def answer_garbled(order: Path, *asked: Any, **settings: Any) -> tuple[bytes, Parts]:  # noqa: ANN401 - as the real one
    reply, parts = answer(*asked, **settings)
    whole = b"".join(memoryview(part).cast("B") for part in parts)
    garble = bidden(order)
    if garble is Garble.NO_LAST_REPLY and isinstance(decode_reply(reply), UnmaskReply):
        raise ValueError("this reply is not to be sent")
    if not whole or garble is Garble.NO_LAST_REPLY or garble is None or garble in (*OF_THE_RELAY, *BEFORE_THE_MASKS):
        return reply, (whole,) if whole else ()
    return garbled(reply, read_array(whole), garble)


def encoded_as_bidden(order: Path, encode: Callable[..., npt.NDArray[Any]]) -> Callable[..., npt.NDArray[Any]]:
    """Return what encodes a vector honestly, or garbles it before it is masked and signed like any other vector."""

    def encode_garbled(layout: VectorLayout, *arguments: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - as the real one
        vector = encode(layout, *arguments)
        garble = bidden(order)
        if garble is Garble.SIGNED_NOISE:
            vector[:] = np.frombuffer(os.urandom(vector.nbytes), vector.dtype)
        if garble in SCALED_BY:
            scale(vector, layout, SCALED_BY[garble])
        return vector

    return encode_garbled


def committed_as_bidden(order: Path) -> Callable[[ProvedModel, npt.NDArray[Any]], bytes]:
    commit = ProvedModel.commit

    def commit_garbled(model: ProvedModel, vector: npt.NDArray[Any]) -> bytes:
        committed, garble = commit(model, vector), bidden(order)
        if garble is Garble.OTHER_VECTOR:
            vector[-1] += 1
        return committed[:-4] if garble is Garble.BAD_COMMITMENT else committed

    return commit_garbled


def opened_as_bidden(order: Path) -> Callable[[disputes.Disputable, Ed25519PrivateKey], OpenedChange]:
    """Return what shows the key of a change, or another key, well signed, or nothing."""
    show = disputes.open_change

    def open_garbled(state: disputes.Disputable, identity: Ed25519PrivateKey) -> OpenedChange:
        shown, garble = show(state, identity), bidden(order)
        if garble is Garble.SCALED_AND_SILENT:
            raise ValueError("this hospital shows nothing")
        if garble is Garble.SCALED_AND_OTHER_KEY:
            other = replace(shown, change_key=os.urandom(32), signature=b"")
            return replace(other, signature=identity.sign(disputes.signed_part(state.round.run, other)))
        return shown

    return open_garbled


if __name__ == "__main__":
    order = Path(sys.argv[sys.argv.index("--state") + 1]) / ORDER
    for name in ("encode", "encode_integers"):
        setattr(VectorLayout, name, encoded_as_bidden(order, getattr(VectorLayout, name)))
    ProvedModel.commit = committed_as_bidden(order)  # type: ignore[method-assign, assignment]
    replace_in(disputes, "open_change", opened_as_bidden(order), used_by=HospitalAgent._dispute)
    replace_in(resident, "answer", partial(answer_garbled, order), used_by=resident._serve_alone)
    sys.exit(resident.main())
