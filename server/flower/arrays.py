"""How arrays cross Flower's grid piece by piece, so that neither a model nor a reply is ever in memory twice.

Flower 1.39 by itself serialises an array, keeps all its pieces until the last one is sent, and joins those that arrive
three times over. ``carry_by_the_piece`` changes the grid of the ServerApp in whose process it is called.
"""

import contextlib
import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial, partialmethod
from typing import Any, Self, cast

import httpx
import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord
from flwr.app.message import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import SType
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    add_header_to_object_body,
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_id,
)
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext

from common.errors import RunError
from common.flower.seam import replace_in, require_used
from common.run.flat_model import FlatModel, stretches
from common.run.messages import join_array


def carry_by_the_piece() -> None:
    """Make Flower's grid in this process push a piece of an array at a time, and keep apart those that arrive."""
    grid = importlib.import_module("flwr.superlink.grid.http_grid")
    replace_in(grid, "push_objects", _push_in_turn, used_by=grid.HttpGrid._try_push_messages)  # noqa: SLF001
    send = partialmethod(_send_and_let_go, ProtobufClient._send)  # noqa: SLF001 - each request of the grid goes by it
    replace_in(ProtobufClient, "_send", send, used_by=ProtobufClient._unary_unary)  # noqa: SLF001 - which calls it
    _keep_apart()


@contextlib.contextmanager
def arrays_kept_apart() -> Iterator[None]:
    """Read arrays as a ServerApp does for as long as this lasts."""
    registry = inflatable_utils.inflatable_class_registry
    before = dict(registry)
    _keep_apart()
    try:
        yield
    finally:
        registry.update(before)


def _keep_apart() -> None:
    registry = inflatable_utils.inflatable_class_registry
    require_used(inflatable_utils, "inflatable_class_registry", inflatable_utils.inflate_object_from_contents)
    for name, arrived in (("Array", ArrivedArray), ("ArrayRecord", _ArrivedRecord)):
        if name not in registry:
            raise AttributeError(f"Flower's registry of classes has no {name!r}")
        registry[name] = arrived


def _send_and_let_go(
    client: ProtobufClient,
    send: Callable[..., httpx.Response],
    context: ProtobufRequestContext,
    *,
    stream: bool = False,
) -> httpx.Response:
    """Send a request; the response is one that goes with its last user.

    httpx's responses refer to themselves through their stream, which has been read by then, and keep a piece in memory
    until the garbage collector runs.
    """
    response = send(client, context, stream=stream)
    if not stream:
        response.stream = httpx.ByteStream(b"")
    return response


def _push_in_turn(
    objects: Mapping[str, InflatableObject],
    push_object_fn: Callable[[str, bytes], None],
    *,
    object_ids_to_push: set[str],
) -> None:
    """Push objects one after the other; Flower serialises them all before the first one is sent."""
    for object_id, item in objects.items():
        if object_id in object_ids_to_push:
            push_object_fn(object_id, item.deflate())


def record_of(model: FlatModel) -> ArrayRecord:
    """Return a model as it travels to hospitals; its pieces are read from it as they are sent, and not kept."""
    array = Array("float32", (len(model),), SType.NUMPY, b"")
    header = _npy_header(len(model))
    pieces = [_Piece(lambda: header), *(_Piece(partial(_read, model, stretch)) for stretch in stretches(len(model)))]
    array.__dict__["_chunks"] = [(piece.object_id, piece) for piece in pieces]
    record = ArrayRecord()  # From a dictionary it would copy arrays.
    record["0"] = array
    return record


class _Piece(InflatableObject):
    """An ``ArrayChunk`` to its receiver, which is read each time it is wanted."""

    def __init__(self, read: Callable[[], bytes | memoryview]) -> None:
        self._read = read

    def deflate(self) -> bytes:
        """Return the piece with Flower's header."""
        return add_header_to_object_body(self._read(), self)

    @cached_property
    def object_id(self) -> str:
        """Return the SHA-256 that Flower knows the piece by."""
        return get_object_id(self.deflate())


_Piece.__qualname__ = ArrayChunk.__qualname__  # Flower writes a class's name before its objects.


def _read(model: FlatModel, stretch: slice) -> memoryview:
    return model[stretch].data.cast("B")


def _npy_header(parameters: int) -> bytes:
    """Return what stands before the numbers of a flat float32 array in NumPy's format."""
    header = io.BytesIO()
    facts = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (parameters,)}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


class ArrivedArray(Array):
    """An array in the pieces in which it has arrived; nothing of it is trusted before :meth:`taken`."""

    @classmethod
    def inflate(cls, object_content: bytes, children: dict[str, InflatableObject] | None = None) -> Self:
        """Keep what has arrived."""
        arrived = cls("", (), SType.NUMPY, b"")
        arrived.__dict__.update(_content=object_content, _pieces={} if children is None else dict(children))
        return arrived

    def taken(self, longest_bytes: int) -> npt.NDArray[Any]:
        """Return the array, once: each piece is let go as it takes its place.

        Args:
            longest_bytes: that it may have, or what has arrived where that is more; nothing longer is made.

        Raises:
            RunError: what has arrived is no array.
        """
        content, pieces = self.__dict__.pop("_content"), self.__dict__.pop("_pieces")
        try:
            names = get_object_children_ids_from_object_content(content)
            order = [names[index] for index in json.loads(get_object_body(content, Array))["arraychunk_ids"]]
            arrived_bytes = sum(len(piece.data) for piece in pieces.values())
            return join_array(_let_go(pieces, order), max(longest_bytes, arrived_bytes))
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise RunError(f"an array must come in Flower's pieces: {type(error).__name__}") from None


def _let_go(pieces: dict[str, Any], order: Sequence[str]) -> Iterator[memoryview]:
    """Return pieces in order, equal ones as often as they are named, and none of those after its last place."""
    last_place = {name: place for place, name in enumerate(order)}
    for place, name in enumerate(order):
        yield (pieces.pop(name) if place == last_place[name] else pieces[name]).data


class _ArrivedRecord(ArrayRecord):
    """Arrays that have arrived; Flower's own record would copy them."""

    @classmethod
    def inflate(cls, object_content: bytes, children: dict[str, InflatableObject] | None = None) -> Self:  # noqa: ARG003
        """Keep them, whatever they are called."""
        record = cls()
        for place, array in enumerate((children or {}).values()):
            record[str(place)] = cast("Array", array)  # Flower's dictionary checks that.
        return record
