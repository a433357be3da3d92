"""A backbone as data: frozen features of a network that comes in a file, an ONNX one or weights for torchvision's.

A run names the file's SHA-256, and a hospital that accepts it has the file in a folder of its own. Nothing of the file
is code: ONNX is parsed, held against a list of operators, and run in a process without rights (``onnx_rules.py``,
``onnx_worker.py``); a safetensors file holds numbers for an architecture that torchvision defines.
"""

import hashlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from common.errors import ConfigError
from common.models import frozen
from common.models.backbone_file import find
from common.models.memory import in_pieces
from common.models.naming import ONNX, RGB, BackboneModel, backbone_width
from common.models.onnx_rules import BackboneRefusedError, Breach
from common.models.onnx_worker import OK, SIZE, STATUS
from common.processes import python_module, python_path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class BackboneLimits:
    """What a network from a file may take.

    Attributes:
        memory_bytes: beyond what the libraries of its process hold.
        load_seconds: to check the file and to make the network ready.
        image_seconds: for one image.
        cpu_seconds: of the processor, for all images until the process is started again.
    """

    memory_bytes: int = 4 * 2**30
    load_seconds: float = 120.0
    image_seconds: float = 60.0
    cpu_seconds: int = 24 * 3600


LIMITS = BackboneLimits()

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
SCALES: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (_IMAGENET_MEAN, _IMAGENET_DEVIATION),
    "zero_one": ((0.0,) * RGB, (1.0,) * RGB),
    "minus_one_one": ((0.5,) * RGB, (0.5,) * RGB),
}
BYTE = 255.0


@dataclass(frozen=True)
class Architecture:
    """A network of torchvision.

    Attributes:
        make: the network, with random weights.
        classifier: the layer at its end that is left out.
        features: what stands before that layer.
    """

    make: Callable[[], nn.Module]
    classifier: str
    features: int


def _named(name: str) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None)


ARCHITECTURES: Mapping[str, Architecture] = {
    **{name: Architecture(_named(name), "fc", 512) for name in ("resnet18", "resnet34")},
    **{name: Architecture(_named(name), "fc", 2048) for name in ("resnet50", "resnet101", "resnext50_32x4d")},
    **{
        f"densenet{depth}": Architecture(_named(f"densenet{depth}"), "classifier", features)
        for depth, features in ((121, 1024), (169, 1664), (201, 1920))
    },
    "mobilenet_v3_small": Architecture(_named("mobilenet_v3_small"), "classifier", 576),
    "mobilenet_v3_large": Architecture(_named("mobilenet_v3_large"), "classifier", 960),
    "efficientnet_b0": Architecture(_named("efficientnet_b0"), "classifier", 1280),
    "efficientnet_b2": Architecture(_named("efficientnet_b2"), "classifier", 1408),
}
"""What a safetensors file can hold the weights of."""


class _Network(Protocol):
    def __call__(self, images: Tensor) -> Tensor:
        """Return (n, features) float32 of (n, 3, height, width) float32."""

    def to(self, device: torch.device) -> None:
        """Compute on a device from now on, where it can."""

    def close(self) -> None:
        """Give back what it holds until it is called again."""


class BackboneFeatures:
    """Frozen features from a file; see :class:`common.models.frozen.FrozenFeatures`.

    Args:
        named: what the run says of the backbone.
        network: from the file.
    """

    at_once = 4

    def __init__(self, named: BackboneModel, network: _Network) -> None:
        self.version = f"backbone-{named.kind}-{named.pixels}-{named.sha256}-1"
        self.named = named
        self._network = network

    def width(self, channels: int) -> int:
        """See :func:`common.models.naming.backbone_width`."""
        return backbone_width(self.named.features, channels)

    def __call__(self, images: Tensor) -> Tensor:
        """Return (n, features) float32 of L2 norm ``frozen.NORM`` of (n, 1 or 3, height, width) uint8 images.

        Raises:
            ConfigError: the network cannot be run on such images, within its limits.
        """
        return at_norm(self.plain(images))

    def plain(self, images: Tensor) -> Tensor:
        """Return what the network gives, (n, features) float32; errors as for a call."""
        found = self._network(scaled(images, self.named.pixels))
        if found.shape != (len(images), self.named.features):
            raise ConfigError(
                f"model.features must be what the backbone gives, {found[0].numel()}, got {self.named.features}"
            )
        return found

    @property
    def module(self) -> nn.Module | None:
        """The network where it is one of torchvision's, on the CPU; None where it is an ONNX file."""
        return self._network.module if isinstance(self._network, _TorchvisionNetwork) else None

    def to(self, device: torch.device) -> None:
        """Compute on a device from now on; an ONNX file stays on the CPU, in its own process."""
        self._network.to(device)

    def close(self) -> None:
        """Give back what the network holds, such as its process; the next call takes it again."""
        self._network.close()


def scaled(images: Tensor, pixels: str) -> Tensor:
    """Return what a network takes, (n, 3, height, width) float32, of (n, 1 or 3, height, width) uint8 images.

    Args:
        images: grey ones become three equal channels.
        pixels: a name of :data:`common.models.naming.Pixels`.
    """
    mean, deviation = (torch.tensor(values).reshape(1, RGB, 1, 1) for values in SCALES[pixels])
    return ((images.to(torch.float32) / BYTE).expand(-1, RGB, -1, -1) - mean) / deviation


def at_norm(found: Tensor) -> Tensor:
    """Return features, (n, features), of L2 norm ``frozen.NORM``; what is not finite counts as 0."""
    return functional.normalize(torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0), dim=1) * frozen.NORM


def backbone_features(
    named: BackboneModel, environment: Mapping[str, str] = os.environ, limits: BackboneLimits = LIMITS
) -> BackboneFeatures:
    """Return the frozen features of the file that a run names.

    Raises:
        ConfigError: no file here has that hash, or it breaks a rule; names which one.
    """
    encoded = find(named.sha256, environment)
    if hashlib.sha256(encoded).hexdigest() != named.sha256:
        raise ConfigError("the backbone's file must not change while it is read; try again")
    if named.kind == ONNX:
        network: _Network = _OnnxNetwork(encoded, limits)
    else:
        network = _TorchvisionNetwork(named.kind, encoded)
    return BackboneFeatures(named, network)


class _TorchvisionNetwork:
    """An architecture of torchvision with the weights of a safetensors file, but for its classifier."""

    def __init__(self, kind: str, encoded: bytes) -> None:
        architecture = ARCHITECTURES.get(kind)
        if architecture is None:
            raise ConfigError(f"model.backbone must be one of {', '.join((ONNX, *ARCHITECTURES))}, got {kind!r}")
        try:
            tensors = load_tensors(encoded)
        except (SafetensorError, KeyError, ValueError, RuntimeError):
            raise _refused(BackboneRefusedError(Breach.FAILED, "not a safetensors file")) from None
        network = architecture.make()
        network.set_submodule(architecture.classifier, nn.Identity())
        weights = {name: tensor for name, tensor in tensors.items() if not _is_in(architecture.classifier, name)}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise _refused(BackboneRefusedError(Breach.NOT_FINITE))
        expected = {name: tensor.shape for name, tensor in network.state_dict().items() if not _is_count(name)}
        found = {name: tensor.shape for name, tensor in weights.items() if not _is_count(name)}
        if found != expected:
            wrong = sorted(set(expected.items()) ^ set(found.items()))
            name = wrong[0][0] if wrong else ""
            raise _refused(BackboneRefusedError(Breach.SHAPE, f"weights that are not those of {kind}, at {name[:60]}"))
        network.load_state_dict(weights, strict=False)  # Counts of batches may be missing; all else was compared.
        self._network = network.eval().requires_grad_(requires_grad=False)
        self._device = torch.device("cpu")

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat(list(in_pieces(images, len(images), self._features)))

    def to(self, device: torch.device) -> None:
        """Compute on a device from now on."""
        self._device = device
        self._network.to(device)

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self._network

    def _features(self, images: Tensor) -> Tensor:
        found: Tensor = self._network(images.to(self._device)).cpu()
        return found

    def close(self) -> None:
        """Nothing is held that another could use."""


def _is_in(layer: str, name: str) -> bool:
    return name.startswith(f"{layer}.")


def _is_count(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


class _OnnxNetwork:
    """An ONNX file in a process of its own, which is started when it is needed and again when it was closed."""

    def __init__(self, encoded: bytes, limits: BackboneLimits) -> None:
        self._encoded = encoded
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._side = 0
        self._start()

    def __call__(self, images: Tensor) -> Tensor:
        if self._process is None:
            self._start()
        height, width = images.shape[2:]
        if self._side and (height, width) != (self._side, self._side):
            raise ConfigError(
                f"model.image_size must be the backbone's, {self._side}, got {height} x {width}: it takes no other"
            )
        rows = [self._row(image.contiguous().numpy().tobytes(), height, width) for image in images]
        return torch.from_numpy(np.stack(rows))

    def to(self, device: torch.device) -> None:
        """Stay on the CPU."""

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def __del__(self) -> None:
        """End the process with whoever asked it."""
        self.close()

    def _start(self) -> None:
        asked = {
            "file_bytes": len(self._encoded),
            "memory_bytes": self._limits.memory_bytes,
            "cpu_seconds": self._limits.cpu_seconds,
            "threads": torch.get_num_threads(),
        }
        self._process = subprocess.Popen(
            python_module("common.models.onnx_worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "PYTHONPATH": python_path(ROOT), "MALLOC_ARENA_MAX": "2", "LC_ALL": "C.UTF-8"},
            cwd="/",
        )
        (side,) = STATUS.unpack(
            self._ask(json.dumps(asked).encode() + b"\n" + self._encoded, self._limits.load_seconds, STATUS.size)
        )
        self._side = side

    def _row(self, pixels: bytes, height: int, width: int) -> npt.NDArray[np.float32]:
        give_up = time.monotonic() + self._limits.image_seconds
        (length,) = STATUS.unpack(self._ask(SIZE.pack(height, width) + pixels, self._limits.image_seconds, STATUS.size))
        return np.frombuffer(self._read(length, give_up), np.float32)

    def _ask(self, request: bytes, seconds: float, answer_bytes: int) -> bytes:
        """Send a request and return the beginning of its answer, or raise what the process says of the file."""
        give_up = time.monotonic() + seconds
        process = self._process
        if process is None or process.stdin is None:
            raise ConfigError("the backbone's process must run; start it again")
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            self._has_ended()
        (status,) = STATUS.unpack(self._read(STATUS.size, give_up))
        if status != OK:
            breach, detail = json.loads(self._read(status, give_up))
            self.close()
            raise _refused(BackboneRefusedError(Breach[breach], detail))
        return self._read(answer_bytes, give_up)

    def _read(self, length: int, give_up: float) -> bytes:
        process = self._process
        if process is None or process.stdout is None:
            raise ConfigError("the backbone's process must run; start it again")
        descriptor, pieces, missing = process.stdout.fileno(), [], length
        while missing:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, give_up - time.monotonic()))
            if not ready:
                self.close()
                raise _refused(BackboneRefusedError(Breach.TIME))
            piece = os.read(descriptor, min(missing, 1 << 16))
            if not piece:
                self._has_ended()
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _has_ended(self) -> NoReturn:
        """Say what ended the process: a limit of its own, or a fault in a library."""
        process = self._process
        code = 0 if process is None else process.wait()
        self.close()
        raise _refused(BackboneRefusedError(Breach.MEMORY if code else Breach.FAILED, f"its process ended ({code})"))


def _refused(error: BackboneRefusedError) -> ConfigError:
    return ConfigError(f"the backbone's file is refused, {error}; agree on another file with the consortium")
