"""Backbones as data: what they give is what PyTorch gives, and hostile files are refused by name within limits."""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save
from torch import Tensor, nn
from torchvision import models

from client.features import model_inputs
from common.errors import ConfigError
from common.models import backbone, frozen, onnx_rules, registry
from common.models.backbone import ARCHITECTURES, BackboneFeatures, BackboneLimits, backbone_features
from common.models.backbone_file import FOLDER_VARIABLE, file_hash, find
from common.models.naming import BackboneModel, architecture, from_outside
from common.models.onnx_rules import BackboneRefusedError, Breach
from tests.support.onnx_files import FEATURES, HOSTILE, HUNGRY, encoded, graph, honest, image, model, nodes, output

torch.set_num_threads(1)

SIDE = 64
SMALL = BackboneLimits(memory_bytes=2**30, load_seconds=60.0, image_seconds=5.0, cpu_seconds=120)

CLASSIFIERS = {"resnet18": "fc", "densenet121": "classifier", "mobilenet_v3_small": "classifier"}


def public_network(name: str) -> nn.Module:
    """Return an architecture of torchvision without its classifier, its statistics those of some images."""
    torch.manual_seed(4)
    network: nn.Module = models.get_model(name, weights=None)
    network.set_submodule(CLASSIFIERS[name], nn.Identity())
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(4, 3, SIDE, SIDE))
    network.eval()
    return network


def exported(network: nn.Module, path: Path) -> bytes:
    """Return the ONNX file of a network for images of any size, by PyTorch's exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        axes = {"image": {0: "n", 2: "height", 3: "width"}}
        torch.onnx.export(
            network, (torch.zeros(1, 3, SIDE, SIDE),), path, input_names=["image"], dynamic_axes=axes, dynamo=False
        )
    return path.read_bytes()


def images(n: int, channels: int = 3, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def in_folder(folder: Path, file: bytes, ending: str = ".onnx") -> tuple[str, dict[str, str]]:
    """Write a file under any name; returns its hash and the environment that names the folder."""
    (folder / f"some name{ending}").write_bytes(file)
    return hashlib.sha256(file).hexdigest(), {FOLDER_VARIABLE: str(folder)}


@pytest.fixture
def opened() -> Iterator[Callable[..., BackboneFeatures]]:
    """Open features, whose processes end with the test."""
    found: list[BackboneFeatures] = []

    def opens(folder: Path, file: bytes, limits: BackboneLimits = SMALL, **changes: object) -> BackboneFeatures:
        sha256, environment = in_folder(folder, file)
        named = BackboneModel(**{"head": "backbone_linear", "kind": "onnx", "pixels": "imagenet",
                                 "features": FEATURES, "sha256": sha256, **changes})  # type: ignore[arg-type]  # fmt: skip
        found.append(backbone_features(named, environment, limits))
        return found[-1]

    yield opens
    for features in found:
        features.close()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_public_architecture_gives_pytorchs_features_as_onnx_and_as_safetensors(
    name: str, tmp_path: Path, opened: Callable[..., BackboneFeatures]
) -> None:
    network = public_network(name)
    width = ARCHITECTURES[name].features
    some = images(3)
    mean, deviation = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    with torch.inference_mode():
        plain = network((some / 255 - mean[:, None, None]) / deviation[:, None, None])
    expected = plain / plain.norm(dim=1, keepdim=True) * frozen.NORM
    as_onnx = opened(tmp_path, exported(network, tmp_path / "exported"), features=width)
    assert as_onnx.width(3) == width
    assert float((as_onnx(some) - expected).abs().max()) < 1e-4
    assert float((as_onnx.plain(some) - plain).abs().max()) < 1e-4 * max(1.0, float(plain.abs().max()))
    (tmp_path / "some name.onnx").unlink()
    weights = {place: tensor.contiguous() for place, tensor in network.state_dict().items()}
    weights |= {f"{CLASSIFIERS[name]}.weight": torch.zeros(3)}  # A whole model's file has a classifier, too.
    sha256, environment = in_folder(tmp_path, save(weights), ".safetensors")
    as_weights = backbone_features(BackboneModel("backbone_mlp", name, "imagenet", width, sha256), environment)
    assert float((as_weights(some) - expected).abs().max()) < 1e-4


@pytest.mark.slow
def test_a_file_of_pytorchs_newer_exporter_is_taken_too(
    tmp_path: Path, opened: Callable[..., BackboneFeatures]
) -> None:
    network, any_size = public_network("resnet18"), torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        network, (torch.zeros(1, 3, SIDE, SIDE),), external_data=False, verbose=False,
        dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},),
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "exported")
    features = opened(tmp_path, (tmp_path / "exported").read_bytes(), features=512, pixels="zero_one")
    with torch.inference_mode():
        assert float((features.plain(images(2)) - network(images(2) / 255)).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_by_name_before_it_sees_an_image(kind: str, tmp_path: Path) -> None:
    make, breach = HOSTILE[kind]
    sha256, environment = in_folder(tmp_path, make())
    named = BackboneModel("backbone_linear", "onnx", "imagenet", FEATURES, sha256)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"the backbone's file is refused, {Breach[breach]}") as refused:
        backbone_features(named, environment, SMALL)
    assert time.monotonic() - began < SMALL.load_seconds
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("kind", HUNGRY)
def test_a_file_that_asks_for_too_much_is_refused_within_its_limits(
    kind: str, tmp_path: Path, opened: Callable[..., BackboneFeatures]
) -> None:
    make, breach = HUNGRY[kind]
    file = make()
    limits = replace(SMALL, image_seconds=3.0 if Breach[breach] is Breach.TIME else 120.0)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"the backbone's file is refused, {Breach[breach]}"):
        opened(tmp_path, file, limits)(images(1))
    assert time.monotonic() - began < limits.load_seconds + limits.image_seconds


def test_a_small_file_keeps_the_rules_and_is_run_one_image_at_a_time(
    tmp_path: Path, opened: Callable[..., BackboneFeatures]
) -> None:
    features = opened(tmp_path, honest())
    some = images(3, channels=1, side=28)
    together = features(some)
    assert together.shape == (3, FEATURES)
    assert torch.allclose(together.norm(dim=1), torch.full((3,), frozen.NORM), rtol=1e-4)
    assert torch.equal(together[1:2], features(some[1:2]))
    assert torch.equal(together, features(some.expand(-1, 3, -1, -1)))
    features.close()
    assert torch.equal(together, features(some))


def test_an_operator_that_mixes_a_batch_finds_one_image_alone(
    tmp_path: Path, opened: Callable[..., BackboneFeatures]
) -> None:
    """The mean over the batch, which would let one record change every row."""
    body = nodes()
    body[0].input[0] = "centred"
    mixing = [
        helper.make_node("ReduceMean", ["image"], ["mean_image"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["image", "mean_image"], ["centred"]),
    ]
    features = opened(tmp_path, encoded(model(graph([*mixing, *body]))))
    assert torch.equal(features.plain(images(4, side=28)), torch.zeros(4, FEATURES))


def test_the_process_can_open_no_file_and_reach_nothing(
    tmp_path: Path, opened: Callable[..., BackboneFeatures]
) -> None:
    features = opened(tmp_path, honest())
    features(images(1, side=28))
    process = features._network._process  # type: ignore[attr-defined]
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
    assert rows["Max open files"] == ["3", "3"]
    assert rows["Max file size"] == ["0", "0"]
    assert rows["Max cpu time"] == ["120", "120"]
    assert int(rows["Max address space"][0]) < 2**40
    assert b"CONFIDE" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert Path(f"/proc/{process.pid}/cwd").readlink() == Path("/")


def test_a_backbone_of_another_width_or_size_is_refused(
    tmp_path: Path, opened: Callable[..., BackboneFeatures]
) -> None:
    features = opened(tmp_path, honest(), features=FEATURES + 1)
    with pytest.raises(ConfigError, match=r"model\.features must be what the backbone gives, 8, got 9"):
        features(images(1, side=28))
    fixed = model(graph(ends=([image(1, 3, 56, 56)], [output()])))
    features = opened(tmp_path, encoded(fixed))
    assert features(images(2, side=56)).shape == (2, FEATURES)
    with pytest.raises(ConfigError, match=r"model\.image_size must be the backbone's, 56, got 28 x 28"):
        features(images(1, side=28))


def test_weights_of_another_architecture_or_none_are_refused(tmp_path: Path) -> None:
    network = public_network("resnet18")
    weights = {place: tensor.contiguous() for place, tensor in network.state_dict().items()}
    cases: list[tuple[str, bytes, str]] = [
        ("resnet34", save(weights), "weights that are not those of resnet34, at layer"),
        ("resnet18", save(weights)[:-9], "not a safetensors file"),
        ("resnet18", b"PK pickled", "not a safetensors file"),
        ("resnet18", save({**weights, "conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}), "not finite"),
        ("resnet18", save({**weights, "more.weight": torch.zeros(2)}), "at more.weight"),
        ("vgg16", save(weights), r"model\.backbone must be one of onnx, resnet18"),
    ]
    for kind, file, words in cases:
        for old in tmp_path.iterdir():
            old.unlink()
        sha256, environment = in_folder(tmp_path, file, ".safetensors")
        with pytest.raises(ConfigError, match=words):
            backbone_features(BackboneModel("backbone_linear", kind, "imagenet", 512, sha256), environment)


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256, environment = in_folder(tmp_path, honest())
    assert find(sha256, environment) == honest()
    assert file_hash(tmp_path / "some name.onnx") == sha256
    for elsewhere in ({}, {FOLDER_VARIABLE: str(tmp_path)}, {FOLDER_VARIABLE: str(tmp_path / "missing")}):
        with pytest.raises(ConfigError, match="CONFIDE_WEIGHTS"):
            find("0" * 64, elsewhere)
    monkeypatch.setattr("common.models.backbone_file.MOST_BYTES", 10)
    with pytest.raises(ConfigError, match="at most"):
        file_hash(tmp_path / "some name.onnx")
    with pytest.raises(ConfigError, match="must lie in the folder"):
        find(sha256, environment)


def test_a_file_that_is_exchanged_after_it_was_found_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = hashlib.sha256(honest()).hexdigest()
    named = BackboneModel("backbone_linear", "onnx", "imagenet", FEATURES, accepted)
    monkeypatch.setattr(backbone, "find", lambda *_: honest() + b" ")
    with pytest.raises(ConfigError, match="must not change while it is read"):
        backbone_features(named)


def test_the_registry_counts_a_heads_parameters_without_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    name = architecture("backbone_linear", "c" * 64, "onnx", "imagenet", 512)
    assert from_outside(name) == BackboneModel("backbone_linear", "onnx", "imagenet", 512, "c" * 64)
    assert registry.parameter_count(name, 2, 1, 224) == 2 * 513 + 512  # The centre of its features, too.
    assert registry.parameter_count(name.replace("linear", "mlp"), 2, 1, 224) == 64 * 513 + 2 * 65 + 512
    with pytest.raises(ConfigError, match=r"SHA-256 c{64} must lie in the folder"):
        registry.frozen_features(name)
    with pytest.raises(ConfigError, match="grey or RGB images, got 2"):
        registry.parameter_count(name, 2, 2, 224)


def test_features_of_a_backbone_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256, environment = in_folder(tmp_path, honest())
    monkeypatch.setenv(FOLDER_VARIABLE, environment[FOLDER_VARIABLE])
    name = architecture("backbone_linear", sha256, "onnx", "imagenet", FEATURES)
    some = images(3, channels=1, side=28).numpy()
    first = model_inputs(name, some, tmp_path / "cache")
    features = registry.frozen_features(name)
    assert isinstance(features, BackboneFeatures)
    features.close()

    assert np.array_equal(model_inputs(name, some, tmp_path / "cache"), first)
    assert features._network._process is None, "features must come from the cache"  # type: ignore[attr-defined]


def test_every_operator_of_the_list_is_one_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= onnx_rules.OPERATORS
    assert not onnx_rules.OPERATORS & {"If", "Loop", "Scan", "SequenceMap", "RandomNormal", "Expand", "Tile", "Resize"}


def test_a_name_out_of_a_file_is_shortened_before_it_is_shown() -> None:
    body = nodes()
    body[1].op_type = "Bad\n\x1b[31m" * 1000
    with pytest.raises(BackboneRefusedError) as refused:
        onnx_rules.read(encoded(model(graph(body))))
    assert len(refused.value.detail) <= 40
    assert refused.value.detail.isprintable()


def test_limits_are_finite() -> None:
    assert backbone.LIMITS.memory_bytes <= 8 * 2**30
    assert backbone.LIMITS.image_seconds <= 300
