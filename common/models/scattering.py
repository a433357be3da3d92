"""A scattering transform: image features that need no weights, no training data and so no privacy.

Bruna and Mallat 2013 ("Invariant Scattering Convolution Networks", PAMI 35): an image is filtered with wavelets of
several scales and directions, the moduli are filtered again with coarser wavelets, and everything is averaged locally.
Tramèr and Boneh 2021 (arXiv:2011.11660) found a linear model on such features to beat deep networks under DP-SGD, for
it has little to learn. Two steps on top, both of one image at a time: the logarithm, since contrast multiplies; and
each channel is brought to mean 0 and deviation 1 over its positions, so that exposure and detector drop out and *where*
in the image a structure is stronger remains.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from common.models import frozen
from common.models.memory import in_pieces

SCALES = 3
"""J: the coarsest wavelet and the local averaging span 2^J pixels."""

DIRECTIONS = 8
"""L, over half a turn."""

SIDE = 28
"""Pixels that an image is averaged down to first; finer detail is below what the transform keeps anyway."""

FLOOR = 1e-3
"""Added before the logarithm and to deviations; images are in [0, 1]."""

_BANDWIDTH = 0.8
_FREQUENCY = 0.75 * math.pi
_SLANT = 4 / DIRECTIONS
"""σ, ξ and slant of the mother Morlet wavelet, as Kymatio (Andreux et al. 2020, JMLR 21) chooses them."""

_MARGIN = 2**SCALES
"""Pixels of mirrored border, so that the periodic convolution does not wrap round."""

_PADDED = -(-(SIDE + 2 * _MARGIN) // 2**SCALES) * 2**SCALES

_POSITIONS = -(-SIDE // 2**SCALES)

CHANNELS = 1 + DIRECTIONS * SCALES + DIRECTIONS**2 * SCALES * (SCALES - 1) // 2


def width_of(channels: int) -> int:
    """Return the number of features of an image with this many colour channels."""
    return int(channels * CHANNELS * _POSITIONS**2)


class Scattering:
    """The transform with its filters, which depend on nothing but the constants above."""

    version = "scattering-1"
    at_once = 16

    def __init__(self) -> None:
        with _one_thread():
            wavelets = [torch.stack([_morlet(scale, turn) for turn in range(DIRECTIONS)]) for scale in range(SCALES)]
        self._wavelets = {
            (scale, thinned): thin(wavelets[scale], thinned)
            for scale in range(SCALES)
            for thinned in range(max(1, scale))
        }
        self._averages = [_averaging(thinned) for thinned in range(SCALES)]
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Compute on a device from now on, in pieces that fit into its memory; features come back to the CPU."""
        self._device = device
        self._wavelets = {place: wavelet.to(device) for place, wavelet in self._wavelets.items()}
        self._averages = [average.to(device) for average in self._averages]

    def width(self, channels: int) -> int:
        """Return the number of features of an image with this many colour channels."""
        return width_of(channels)

    def __call__(self, images: Tensor) -> Tensor:
        """Return features of images.

        Args:
            images: (n, channels, height, width) uint8.

        Returns:
            (n, width(channels)) float32 of L2 norm frozen.NORM.
        """
        if self._device.type == "cpu" or not len(images):
            return self.on_device(images)
        return torch.cat(list(in_pieces(images, self.at_once, lambda some: self.on_device(some).cpu())))

    def on_device(self, images: Tensor) -> Tensor:
        """Do as calling it, all at once, and leave the features where they are computed."""
        n, channels = images.shape[:2]
        images = images.to(self._device)
        small = functional.adaptive_avg_pool2d(images.to(torch.float32) / 255, SIDE)
        border = [_MARGIN, _PADDED - SIDE - _MARGIN] * 2
        padded = functional.pad(small, border, mode="reflect").reshape(n * channels, 1, _PADDED, _PADDED)
        maps = (self._scatter(padded) + FLOOR).log()
        deviation, mean = torch.std_mean(maps, dim=(2, 3), keepdim=True)
        features = ((maps - mean) / (deviation + FLOOR)).reshape(n, -1)
        return functional.normalize(features, dim=1) * frozen.NORM

    def _scatter(self, images: Tensor) -> Tensor:
        """Return orders 0, 1 and 2 of (n, 1, side, side) images: (n, CHANNELS, positions, positions)."""
        maps = [self._averaged(images, 0)]
        spectrum = torch.fft.fft2(images)
        for scale in range(SCALES):
            modulus = _modulus(spectrum * self._wavelets[scale, 0], scale)
            maps.append(self._averaged(modulus, scale))
            for coarser in range(scale + 1, SCALES):
                filtered = torch.fft.fft2(modulus)[:, :, None] * self._wavelets[coarser, scale]
                maps.append(self._averaged(_modulus(filtered, coarser - scale).flatten(1, 2), coarser))
        return torch.cat(maps, dim=1)

    def _averaged(self, maps: Tensor, thinned: int) -> Tensor:
        """Return the mean around every 2^J-th pixel, border removed, of maps thinned to every 2^thinned-th pixel."""
        average = self._averages[thinned]
        return average @ maps @ average.t()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on arrays as small as a filter several wait for each other, seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _modulus(spectrum: Tensor, octaves: int) -> Tensor:
    """Return |x * ψ| at every 2^octaves-th pixel; a wavelet of that scale leaves little that this would fold back."""
    modulus: Tensor = torch.fft.ifft2(thin(spectrum, octaves)).abs()
    return modulus


def thin(spectrum: Tensor, octaves: int) -> Tensor:
    """Return the spectrum of the signal of which every 2^octaves-th pixel is kept: its folds, averaged.

    It is linear with real weights, so it may be done to real and imaginary parts by themselves.
    """
    for _ in range(octaves):
        half = spectrum.shape[-1] // 2
        rows = spectrum[..., :half, :] + spectrum[..., half:, :]
        spectrum = (rows[..., :half] + rows[..., half:]) * 0.25
    return spectrum


def _averaging(thinned: int) -> Tensor:
    """Return (positions, side) weights of Gaussian means along an axis of maps thinned to every 2^thinned-th pixel."""
    pixels = torch.arange(0, _PADDED, 2**thinned, dtype=torch.float64)
    centres = _MARGIN + torch.arange(_POSITIONS, dtype=torch.float64) * 2**SCALES
    weights = torch.exp(-((pixels - centres[:, None]) ** 2) / (2 * (_BANDWIDTH * 2 ** (SCALES - 1)) ** 2))
    return (weights / weights.sum(dim=1, keepdim=True)).to(torch.float32)


def _morlet(scale: int, turn: int) -> Tensor:
    """Return the spectrum of one wavelet: a Gabor function less the Gaussian that makes its mean zero."""
    theta = (DIRECTIONS // 2 - 1 - turn) * math.pi / DIRECTIONS
    spread = _BANDWIDTH * 2**scale
    wave = _gabor(spread, theta, _FREQUENCY / 2**scale, _SLANT)
    envelope = _gabor(spread, theta, 0.0, _SLANT)
    return _spectrum(wave - wave.sum() / envelope.sum() * envelope)


def _gabor(spread: float, theta: float, frequency: float, slant: float) -> Tensor:
    """Return a periodic complex Gabor function on the padded grid, (side, side) complex128."""
    total = torch.zeros(_PADDED, _PADDED, dtype=torch.complex128)
    for period_x in range(-2, 3):
        for period_y in range(-2, 3):
            x = torch.arange(_PADDED, dtype=torch.float64)[:, None] + period_x * _PADDED
            y = torch.arange(_PADDED, dtype=torch.float64)[None, :] + period_y * _PADDED
            along = x * math.cos(theta) + y * math.sin(theta)
            across = -x * math.sin(theta) + y * math.cos(theta)
            envelope = -(along**2 + (slant * across) ** 2) / (2 * spread**2)
            total += torch.exp(torch.complex(envelope, along * frequency))
    return total * slant / (2 * math.pi * spread**2)


def _spectrum(signal: Tensor) -> Tensor:
    """Return the filter's spectrum, which is real, as float32."""
    spectrum: Tensor = torch.fft.fft2(signal).real.to(torch.float32)
    return spectrum
