"""torchvision's ResNet-18 with its ImageNet weights, frozen, as a feature extractor.

He et al. 2016 (arXiv:1512.03385). The weights are a file that each hospital gets, because nothing is downloaded here.
torchvision names it with the beginning of its SHA-256, so that all hospitals extract the same features.
"""

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torchvision.models import ResNet18_Weights, resnet18

from common.errors import ConfigError
from common.models.block_statistics import BlockStatistics

WEIGHTS_VARIABLE = "CONFIDE_WEIGHTS"
"""Environment variable: the folder with the file; by default where torchvision keeps its downloads."""

WEIGHTS_FILE = Path(ResNet18_Weights.IMAGENET1K_V1.url).name

BLOCK_CHANNELS = (64, 64, 128, 128, 256, 256, 512, 512)

_BYTE = 255.0
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's pixel values from 0 to 1, as in torchvision's training."""


def resnet_features(environment: Mapping[str, str] = os.environ) -> BlockStatistics:
    """Return the frozen network; it takes grey images as RGB ones with three equal channels.

    Raises:
        ConfigError: the file with the weights is missing, or is not the one that torchvision published.
    """
    network = resnet18()
    network.load_state_dict(_weights(environment))
    layers = (network.layer1, network.layer2, network.layer3, network.layer4)
    return BlockStatistics(
        version=f"{WEIGHTS_FILE.removesuffix('.pth')}-1",
        network=network,
        blocks=[block for layer in layers for block in layer],
        block_channels=BLOCK_CHANNELS,
        mean=[_BYTE * mean for mean in _MEAN],
        deviation=[_BYTE * deviation for deviation in _DEVIATION],
    )


def _weights(environment: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Read the file; no code in it is run."""
    folder = environment.get(WEIGHTS_VARIABLE)
    path = (Path(folder) if folder else Path(torch.hub.get_dir()) / "checkpoints") / WEIGHTS_FILE
    remedy = f"put torchvision's {WEIGHTS_FILE} into the folder ${WEIGHTS_VARIABLE}"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not digest.startswith(WEIGHTS_FILE.removesuffix(".pth").rpartition("-")[2]):
                raise ConfigError(f"{WEIGHTS_FILE} must have the SHA-256 that its name begins, got {digest}; {remedy}")
            file.seek(0)
            weights: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"this model needs ImageNet weights: {error.strerror}; {remedy}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise ConfigError(f"{WEIGHTS_FILE} must hold a model's weights; {remedy}") from None
    return weights
