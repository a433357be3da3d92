"""The scattering transform in real arithmetic, for exporters that know no complex numbers.

A discrete Fourier transform is a product with a matrix C - iS of cosines and sines; C and S are symmetric.
"""

import math

import torch
from torch import Tensor

from common.models.scattering import SCALES, Scattering, thin


class RealScattering(Scattering):
    """:class:`common.models.scattering.Scattering` with each complex tensor as its real and its imaginary part."""

    def __init__(self) -> None:
        super().__init__()
        side = self._wavelets[0, 0].shape[-1]
        self._waves = {size: _waves(size) for size in {side // 2**octaves for octaves in range(SCALES)}}

    def _scatter(self, images: Tensor) -> Tensor:
        maps = [self._averaged(images, 0)]
        spectrum = self._spectrum(images)
        for scale in range(SCALES):
            modulus = self._modulus(spectrum, self._wavelets[scale, 0], scale)
            maps.append(self._averaged(modulus, scale))
            for coarser in range(scale + 1, SCALES):
                real, imaginary = self._spectrum(modulus)
                beside = real[:, :, None], imaginary[:, :, None]
                filtered = self._modulus(beside, self._wavelets[coarser, scale], coarser - scale)
                maps.append(self._averaged(filtered.flatten(1, 2), coarser))
        return torch.cat(maps, dim=1)

    def _spectrum(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return (C - iS) X (C - iS) of real X."""
        cosines, sines = self._waves[signal.shape[-1]]
        along, against = signal @ cosines, signal @ sines
        return cosines @ along - sines @ against, -(cosines @ against) - sines @ along

    def _modulus(self, spectrum: tuple[Tensor, Tensor], wavelet: Tensor, octaves: int) -> Tensor:
        """Return |(C + iS) X (C + iS)| / side² of the filtered and thinned spectrum X."""
        real, imaginary = (thin(part * wavelet, octaves) for part in spectrum)
        side = real.shape[-1]
        cosines, sines = self._waves[side]
        along = real @ cosines - imaginary @ sines
        against = real @ sines + imaginary @ cosines
        made = cosines @ along - sines @ against, cosines @ against + sines @ along
        return torch.sqrt(made[0] ** 2 + made[1] ** 2) / side**2


def _waves(side: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(side, dtype=torch.float64)
    angles = 2 * math.pi / side * (torch.outer(places, places) % side)
    return angles.cos().to(torch.float32), angles.sin().to(torch.float32)
