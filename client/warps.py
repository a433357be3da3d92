"""Warped copies of a record's image: a little larger, turned, shifted, lighter, as the next patient's may be.

How an image is warped is a function of the image and of constants alone: the amounts come from a hash of the kind of
warp, the number of the copy and the image's own SHA-256. So each run and each restart sees the same copies, their
frozen features are computed once and kept, and nothing about them is a choice of the server's beyond the two terms of
the run's description, ``training.warp`` and ``training.copies``. Warping reads one image at a time, so a change of one
record changes that record's copies and no other's.

What copies cost in privacy: nothing, because a record's gradient is the mean over its copies *before* it is clipped.

Proof: ``docs/proofs/copies.md``.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from common.config import Warp
from common.files import make_private_folder

_LABEL = b"confide warp 1"
"""Part of every hash, so that another version of the warps has other amounts."""

_AT_ONCE = 256
"""Images that are warped together; it bounds memory and changes nothing."""


IN_MEMORY_BYTES = 1 << 28
"""The most bytes of copies that are held in memory, 256 MiB."""


@dataclass(frozen=True)
class _Amounts:
    """How far a kind of warp goes, each amount uniform in ± so much.

    Attributes:
        scale: of the size, as a share.
        aspect: of the logarithm of width over height.
        turn: in radians.
        shift: in halves of the side, along each axis.
        gamma: of the logarithm of the exponent of the grey level.
        flips: whether every other copy is a mirror image.
        least_width: the narrowest crop of the width, as a share; 1 for none.
    """

    scale: float = 0.0
    aspect: float = 0.0
    turn: float = 0.0
    shift: float = 0.0
    gamma: float = 0.0
    flips: bool = False
    least_width: float = 1.0


_KINDS: Mapping[Warp, _Amounts] = MappingProxyType(
    {
        # No mirror image: the heart lies on the left.
        Warp.CHEST: _Amounts(scale=0.08, aspect=0.08, turn=0.084, shift=0.07, gamma=0.175),
        Warp.XRAY: _Amounts(
            scale=0.12, aspect=0.12, turn=0.12, shift=0.1, gamma=0.25, flips=True, least_width=0.62
        ),
        Warp.MIRROR: _Amounts(flips=True),
    }
)  # fmt: skip

_NUMBERS = 8
"""Uniform numbers of one copy: the 32 bytes of a SHA-256, four bytes each."""


def copies_of(images: NDArray[np.uint8], warp: Warp, copies: int, folder: Path | None = None) -> NDArray[np.uint8]:
    """Return each image followed by its warped copies.

    Args:
        images: (n, channels, height, width) uint8.
        warp: the kind.
        copies: K of each image, itself among them; at least 1.
        folder: where copies beyond :data:`IN_MEMORY_BYTES` lie, in a file without a name; None for memory whatever
            they take.

    Returns:
        (n·K, channels, height, width) uint8, the copies of an image one after the other, the image itself first.

    Raises:
        OSError: the disk has no room for them.
    """
    if copies == 1 or warp is Warp.NONE or not len(images):
        return np.repeat(images, copies, axis=0) if copies > 1 else images
    made = _room((len(images), copies, *images.shape[1:]), folder)
    made[:, 0] = images
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    for number in range(1, copies):
        for start in range(0, len(images), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            uniform = np.stack([_uniform(digest, warp, number) for digest in digests[some]])
            made[some, number] = _warped(torch.from_numpy(images[some]), _KINDS[warp], uniform, number)
    return made.reshape(-1, *images.shape[1:])


def _room(shape: tuple[int, ...], folder: Path | None) -> NDArray[np.uint8]:
    """Return an array in memory, or in a file, so that many copies of many images do not end this process."""
    size = math.prod(shape)
    if folder is None or size <= IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    make_private_folder(folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # A full disk is an error here, and a dead process later.
        return np.memmap(file, np.uint8, "r+", shape=shape).view(np.ndarray)


def _uniform(digest: bytes, warp: Warp, number: int) -> NDArray[np.float64]:
    """Return the numbers of one copy, each uniform in [-1, 1)."""
    seed = hashlib.sha256(_LABEL + warp.value.encode() + number.to_bytes(4, "big") + digest).digest()
    return np.frombuffer(seed, ">u4", _NUMBERS) / 2.0**31 - 1.0


def _warped(images: Tensor, kind: _Amounts, uniform: NDArray[np.float64], number: int) -> NDArray[np.uint8]:
    scale, aspect, turn, across, down, gamma, _, width = torch.from_numpy(uniform).to(torch.float32).T
    size = 1 + kind.scale * scale
    stretch = torch.exp(kind.aspect * aspect / 2)
    angle = kind.turn * turn
    crop = 1 - (1 - kind.least_width) * (width + 1) / 2
    mirror = -1.0 if kind.flips and number % 2 else 1.0
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # Where each pixel of the copy is taken from, both from -1 to 1 over the image.
    rows = (
        torch.stack([mirror * crop * stretch * cosine / size, -crop * sine / size, kind.shift * across], dim=1),
        torch.stack([mirror * sine / size, cosine / (stretch * size), kind.shift * down], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    light = images.to(torch.float32) / 255
    light = functional.grid_sample(light, grid, mode="bilinear", padding_mode="border", align_corners=False)
    exponent = torch.exp(kind.gamma * gamma).reshape(-1, 1, 1, 1)
    moved: NDArray[np.uint8] = (light.clamp(0, 1).pow(exponent) * 255).round().to(torch.uint8).numpy()
    return moved
