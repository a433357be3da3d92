"""Work in pieces that fit into a device's memory: a piece that does not is done again in smaller ones."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from common.errors import RunError

_Result = TypeVar("_Result")


def in_pieces(items: Tensor, size: int, work: Callable[[Tensor], _Result]) -> Iterator[_Result]:
    """Yield what ``work`` makes of each piece of some items, in their order.

    How many items a piece has depends on the memory that is there, never on what the items hold.

    Args:
        items: along the first axis.
        size: of the first piece; halved, for good, whenever the device has too little memory.
        work: gives the same for an item whatever piece it is in, and leaves nothing behind where it fails.

    Raises:
        RunError: the device has too little memory for one item.
    """
    start = 0
    while start < len(items):
        piece = items[start : start + size]
        try:
            done = work(piece)
        except torch.OutOfMemoryError:
            if len(piece) == 1:
                raise RunError(
                    "the device must have memory for one record; use smaller images or a smaller model, or set "
                    "hospital.device to cpu"
                ) from None
            size = len(piece) // 2
            _let_go()
            continue
        yield done
        start += len(piece)


def _let_go() -> None:
    """Give back what PyTorch keeps of the device's memory for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
