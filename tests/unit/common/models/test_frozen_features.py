import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from common.errors import ConfigError
from common.models import efficientnet, frozen, imagenet_resnet, registry, scattering
from common.models.frozen import extract

torch.set_num_threads(1)

NAMES = (
    "scattering_linear",
    "efficientnet_linear",
    "efficientnet_lite1_linear",
    "efficientnet_lite2_linear",
    "scattering_efficientnet_linear",
)


def images(n: int = 3, channels: int = 1, side: int = 28, seed: int = 0) -> Tensor:
    """Smooth random pictures, so that they have structure at every scale."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (fine * 200 + 20 * torch.rand(n, channels, side, side, generator=generator)).to(torch.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_declared_width_and_norm(name: str) -> None:
    features = registry.frozen_features(name)
    assert features is not None
    for channels in (1, 3):
        made = features(images(channels=channels))
        assert made.dtype == torch.float32
        assert made.shape == registry.input_shape(name, 3, channels, 28)
        assert torch.allclose(made.norm(dim=1), torch.full((3,), frozen.NORM), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_images_features_do_not_depend_on_the_other_images(name: str) -> None:
    features = registry.frozen_features(name)
    assert features is not None
    several = images(4)
    together, alone = features(several), features(several[2:3])
    assert torch.allclose(together[2], alone[0], atol=1e-3)


def test_images_extracted_in_groups_are_those_extracted_at_once() -> None:
    features = scattering.Scattering()
    many = images(35)
    assert np.allclose(np.concatenate(list(extract(features, many.numpy()))), features(many).numpy(), atol=1e-4)


def test_a_model_on_images_has_no_frozen_features() -> None:
    assert registry.frozen_features("cnn") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_image_has_finite_features(name: str) -> None:
    features = registry.frozen_features(name)
    assert features is not None
    for value in (0, 255):
        assert torch.isfinite(features(torch.full((1, 1, 28, 28), value, dtype=torch.uint8))).all()


def _textbook_scattering(picture: Tensor) -> Tensor:
    """Orders 0, 1 and 2 of one padded picture as Bruna and Mallat write them, nothing thinned out on the way."""
    side = picture.shape[-1]
    spread = 0.8 * 2 ** (scattering.SCALES - 1)
    axis = torch.arange(side, dtype=torch.float64)
    wrapped = torch.minimum(axis, side - axis)
    window = torch.exp(-(wrapped[:, None] ** 2 + wrapped[None, :] ** 2) / (2 * spread**2))
    window_spectrum = torch.fft.fft2(window / window.sum())
    psi = [
        [scattering._morlet(scale, turn).to(torch.float64) for turn in range(scattering.DIRECTIONS)]
        for scale in range(scattering.SCALES)
    ]
    spectrum = torch.fft.fft2(picture.to(torch.float64))
    orders: list[list[Tensor]] = [[picture.to(torch.float64)]]
    per_scale = []
    for scale in range(scattering.SCALES):
        first = [torch.fft.ifft2(spectrum * wave).abs() for wave in psi[scale]]
        second = [
            torch.fft.ifft2(torch.fft.fft2(modulus) * wave).abs()
            for coarser in range(scale + 1, scattering.SCALES)
            for modulus in first
            for wave in psi[coarser]
        ]
        per_scale.append(first + second)
    maps = orders[0] + [each for group in per_scale for each in group]
    low = [torch.fft.ifft2(torch.fft.fft2(each) * window_spectrum).real for each in maps]
    start, step = scattering._MARGIN, 2**scattering.SCALES
    return torch.stack([each[start : start + 28 : step, start : start + 28 : step] for each in low])


def test_the_transform_is_the_textbooks_but_for_frequencies_folded_by_thinning() -> None:
    transform = scattering.Scattering()
    picture = images(1).to(torch.float32) / 255
    padded = torch.nn.functional.pad(picture, [8, 12, 8, 12], mode="reflect")
    ours = transform._scatter(padded)[0]
    textbook = _textbook_scattering(padded[0, 0]).to(torch.float32)
    assert ours.shape == textbook.shape == (scattering.CHANNELS, 4, 4)
    assert torch.allclose(ours[0], textbook[0], atol=5e-3)  # The window ends at the margin here.
    relative = (ours - textbook).norm() / textbook.norm()
    assert relative < 0.06
    # First and second order by themselves are small beside order 0, and must be right as well.
    assert (ours[1:] - textbook[1:]).norm() / textbook[1:].norm() < 0.15


def test_wavelets_ignore_the_mean_and_answer_to_their_own_direction() -> None:
    side = scattering._PADDED
    x = torch.arange(side, dtype=torch.float32)
    for turn in range(scattering.DIRECTIONS):
        wave = scattering._morlet(1, turn)
        assert abs(float(wave[0, 0])) < 1e-6
    peaks = [int(scattering._morlet(1, turn).argmax()) for turn in range(scattering.DIRECTIONS)]
    assert len(set(peaks)) == scattering.DIRECTIONS
    stripes = torch.cos(2 * math.pi * 9 / side * x)[:, None].expand(side, side)
    answers = [
        float(torch.fft.ifft2(torch.fft.fft2(stripes) * scattering._morlet(1, turn)).abs().mean())
        for turn in range(scattering.DIRECTIONS)
    ]
    along_x = scattering.DIRECTIONS // 2 - 1
    assert int(np.argmax(answers)) == along_x


def test_exposure_does_not_change_scattering_features() -> None:
    picture = images(1).to(torch.float32)
    transform = scattering.Scattering()
    dark, bright = transform((picture * 0.5).to(torch.uint8)), transform(picture.to(torch.uint8))
    cosine = float((dark * bright).sum()) / frozen.NORM**2
    other = float((bright * transform(images(1, seed=9))).sum()) / frozen.NORM**2
    assert cosine > 0.9
    assert other < 0.6


def test_thinning_out_is_keeping_every_second_pixel() -> None:
    signal = torch.rand(8, 8, dtype=torch.float64)
    thinned = torch.fft.ifft2(scattering.thin(torch.fft.fft2(signal), 1)).real
    assert torch.allclose(thinned, signal[::2, ::2])


def test_concatenated_features_are_their_parts_with_equal_weight() -> None:
    several = images(20)
    both, *parts = (
        registry.frozen_features(name)
        for name in ("scattering_efficientnet_linear", "scattering_linear", "efficientnet_linear")
    )
    assert both is not None
    made, start = both(several), 0
    for part in parts:
        assert part is not None
        alone = torch.cat([part(some) for some in torch.split(several, part.at_once)])
        assert torch.allclose(made[:, start : start + alone.shape[1]], alone / math.sqrt(2), atol=1e-3)
        start += alone.shape[1]
    assert start == made.shape[1] == both.width(1)
    assert both.version == "scattering-1+efficientnet-lite0-1"


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_the_networks_blocks_are_those_the_width_is_computed_from(variant: int) -> None:
    features = efficientnet.efficientnet_features(variant)
    features(images())
    assert tuple(output.shape[1] for output in features._outputs) == efficientnet.BLOCK_CHANNELS[variant]
    assert not any(parameter.requires_grad for parameter in features._network.parameters())


def test_images_of_two_channels_are_refused_by_the_network() -> None:
    with pytest.raises(ConfigError, match="grey or RGB"):
        registry.build("efficientnet_linear", 2, 2, 28, seed=1)


def test_images_too_small_for_a_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 28 for model\.name cnn, got 27"):
        registry.build("cnn", 2, 1, 27, seed=1)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file as torchvision names its weights, with random ones in it."""
    torch.manual_seed(3)
    plain = tmp_path / "weights"
    torch.save(resnet18().state_dict(), plain)
    named = tmp_path / f"resnet18-{hashlib.sha256(plain.read_bytes()).hexdigest()[:8]}.pth"
    plain.rename(named)
    monkeypatch.setattr(imagenet_resnet, "WEIGHTS_FILE", named.name)
    return named


def test_torchvisions_network_takes_its_weights_from_a_file(weights: Path) -> None:
    features = imagenet_resnet.resnet_features({imagenet_resnet.WEIGHTS_VARIABLE: str(weights.parent)})
    made = features(images(channels=3))
    assert made.shape == (3, features.width(3))
    assert tuple(output.shape[1] for output in features._outputs) == imagenet_resnet.BLOCK_CHANNELS
    assert torch.allclose(made.norm(dim=1), torch.full((3,), frozen.NORM), rtol=1e-4)
    grey = images(channels=1)
    assert torch.equal(features(grey), features(grey.expand(-1, 3, -1, -1)))


def test_weights_that_are_missing_or_not_the_published_ones_are_refused(weights: Path) -> None:
    environment = {imagenet_resnet.WEIGHTS_VARIABLE: str(weights.parent)}
    weights.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(ConfigError, match="SHA-256 that its name begins"):
        imagenet_resnet.resnet_features(environment)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"needs ImageNet weights.*put torchvision's resnet18-.*CONFIDE_WEIGHTS"):
        imagenet_resnet.resnet_features(environment)
