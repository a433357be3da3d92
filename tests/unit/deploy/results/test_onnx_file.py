"""An exported file answers as ``predict`` does; the ten lines of the documentation are run as they stand there."""

import hashlib
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn
from torchvision.models import resnet18

from common.errors import RunError
from common.models import registry
from common.models.backbone_file import FOLDER_VARIABLE
from common.models.flat import flat_parameters
from common.models.naming import architecture
from common.models.scattering import Scattering
from common.shards import fit, to_image
from common.task import TaskKind
from deploy.datasets import phantom
from deploy.results.classifier import Classifier, probabilities_of, softmax
from deploy.results.export import main
from deploy.results.model_file import load_model
from deploy.results.onnx_file import TOLERANCE, to_onnx
from deploy.results.onnx_preparation import preparation
from deploy.results.onnx_scattering import RealScattering
from deploy.results.predict import main as predict_main
from tests.support.exported_model import answers_of, model_of
from tests.support.onnx_files import FEATURES, encoded, graph, honest, image, model, nodes, output

PAGE = Path(__file__).parents[4] / "docs" / "export.md"
TEST_IMAGES = 624


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model_of(folder, "cnn")
    assert main(["export", str(folder), "--onnx"]) == 0
    return folder


def documented() -> str:
    """Return the ten lines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(blocks[0])


@pytest.mark.parametrize("size", [28, 64])
def test_the_preparation_gives_every_pixel_that_pillow_gives(size: int) -> None:
    session = onnxruntime.InferenceSession(preparation(1, size).SerializeToString())
    random = np.random.default_rng(4)
    for _ in range(40):
        height, width = random.integers(8, 400, 2)
        picture = random.integers(0, 256, (1, height, width), np.uint8)
        if random.random() < 0.3:
            picture = np.where(picture > 127, 255, 0).astype(np.uint8)
        (prepared,) = session.run(None, {"image": picture[None]})
        assert np.array_equal(prepared[0], fit(to_image(picture), size))


def test_scattering_in_real_numbers_is_scattering() -> None:
    torch.set_num_threads(1)
    pictures = torch.from_numpy(phantom.chest(20, 28, seed=5).images)
    assert torch.allclose(RealScattering()(pictures), Scattering()(pictures), atol=2e-5)


def test_the_ten_lines_of_the_documentation_answer_as_predict_does(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = documented()
    assert len([line for line in code.splitlines() if line]) == 10
    (tmp_path / "images").mkdir()
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    for index, picture in enumerate(phantom.chest(TEST_IMAGES, 40, seed=6).images):
        to_image(picture).save(tmp_path / "images" / f"{index:04}.png")
    files = sorted((tmp_path / "images").glob("*.png"))
    assert predict_main(["predict", str(exported), *map(str, files), "--json"]) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(code, "export.md", "exec"), {})  # noqa: S102 - this project's own page
    lines = [line.split() for line in said.getvalue().splitlines()]
    assert len(lines) == TEST_IMAGES == len({answer["file"] for answer in expected})
    for (file, decided, *probabilities), answer in zip(lines, expected, strict=True):
        assert Path(file).name == Path(answer["file"]).name
        assert decided == answer["predicted"]
        assert [float(one) for one in probabilities] == pytest.approx(list(answer["probabilities"].values()), abs=1e-5)
    assert len({decided for _, decided, *_ in lines}) == 2


@pytest.mark.parametrize(
    ("name", "channels", "threshold"),
    [
        ("scattering_mlp", 1, 0.45),
        ("cnn_wide", 3, None),
        pytest.param("scattering_linear", 3, None, marks=pytest.mark.slow),
        pytest.param("resnet18", 1, 0.5, marks=pytest.mark.slow),
        pytest.param("efficientnet_linear", 1, 0.5, marks=pytest.mark.slow),
        pytest.param("efficientnet_mlp", 3, None, marks=pytest.mark.slow),
        pytest.param("densenet121", 1, 0.5, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 1, 0.5, marks=pytest.mark.slow),
    ],
)
def test_a_model_answers_in_onnxruntime_as_in_predict(
    tmp_path: Path, name: str, channels: int, threshold: float | None
) -> None:
    card = model_of(tmp_path, name, channels, threshold)
    flat, _ = load_model(tmp_path)
    make = phantom.chest if channels == 1 else phantom.retina
    chosen = make(10, card.image_size, seed=7).images
    probabilities, decision = answers_of(to_onnx(flat, card), chosen)
    expected = softmax(Classifier(flat, card).scores(chosen))
    assert np.abs(probabilities - expected).max() <= TOLERANCE
    assert expected.std(axis=0).max() > 1e-3
    if threshold is None:
        assert np.array_equal(decision, expected.argmax(axis=1))
    else:
        assert np.array_equal(decision, expected[:, 1] >= threshold)


@pytest.mark.parametrize(
    ("head", "file", "pixels", "channels"),
    [
        ("backbone_linear", "rows", "minus_one_one", 3),
        ("backbone_mlp", "maps", "zero_one", 1),
        ("backbone_linear", "one at a time", "imagenet", 1),
    ],
)
def test_a_model_on_an_onnx_backbone_holds_that_file_and_answers_as_predict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, file: str, pixels: str, channels: int
) -> None:
    """The backbone gives a row or maps; one takes a batch of one picture of 28 pixels alone."""
    content = {
        "rows": honest(),
        "maps": encoded(model(graph(nodes()[:2], ends=([image()], [output("bounded")])))),
        "one at a time": encoded(model(graph(ends=([image(1, 3, 28, 28)], [output()])))),
    }[file]
    (tmp_path / "network.onnx").write_bytes(content)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    name = architecture(head, hashlib.sha256(content).hexdigest(), "onnx", pixels, FEATURES)
    _exports_as_it_predicts(tmp_path, name, channels)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_on_torchvisions_architecture_holds_its_weights_and_answers_as_predict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    torch.manual_seed(2)
    content = save({name: tensor.contiguous() for name, tensor in resnet18().state_dict().items()})
    (tmp_path / "network.safetensors").write_bytes(content)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    name = architecture("backbone_linear", hashlib.sha256(content).hexdigest(), "resnet18", "imagenet", 512)
    _exports_as_it_predicts(tmp_path, name, channels)


def _exports_as_it_predicts(folder: Path, name: str, channels: int) -> None:
    card = model_of(folder, name, channels)
    flat, _ = load_model(folder)
    file = to_onnx(flat, card)
    make = phantom.chest if channels == 1 else phantom.retina
    chosen = make(7, card.image_size, seed=7).images
    probabilities, decision = answers_of(file, chosen)
    expected = softmax(Classifier(flat, card).scores(chosen))
    assert np.abs(probabilities - expected).max() <= TOLERANCE
    assert expected.std(axis=0).max() > 1e-3
    assert np.array_equal(decision, expected[:, 1] >= 0.45)


def test_a_backbone_that_cannot_be_written_in_the_version_of_an_export_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> object:
        raise RuntimeError("no adapter")

    (tmp_path / "network.onnx").write_bytes(honest())
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr("onnx.version_converter.convert_version", fails)
    name = architecture("backbone_linear", hashlib.sha256(honest()).hexdigest(), "onnx", "imagenet", FEATURES)
    card = model_of(tmp_path, name)
    flat, _ = load_model(tmp_path)
    with pytest.raises(RunError, match=r"operators are of ONNX's set 17.*export the backbone with opset_version=20"):
        to_onnx(flat, card)


def test_a_model_of_labels_answers_each_by_itself_at_its_threshold_and_temperature(tmp_path: Path) -> None:
    said = {"kind": TaskKind.MULTILABEL, "classes": ("edema", "mass", "none"), "thresholds": (0.5, 0.45, 0.6),
            "temperature": 1.7}  # fmt: skip
    card = model_of(tmp_path, "cnn", threshold=None, changed=said)
    flat, _ = load_model(tmp_path)
    chosen = phantom.chest(10, 28, seed=7).images
    probabilities, decision = answers_of(to_onnx(flat, card), chosen)
    expected = probabilities_of(Classifier(flat, card).scores(chosen), card)
    assert np.abs(probabilities - expected).max() <= TOLERANCE
    assert np.array_equal(decision, expected >= np.array(card.thresholds))
    assert set(decision.ravel().tolist()) == {0, 1}


def test_the_file_says_what_it_is_and_nothing_of_the_machine(exported: Path) -> None:
    encoded = (exported / "model.onnx").read_bytes()
    said = {entry.key: entry.value for entry in onnx.load_model_from_string(encoded).metadata_props}
    assert json.loads(said["classes"]) == ["normal", "pneumonia"]
    assert (json.loads(said["threshold"]), json.loads(said["epsilon"]), said["data_set"]) == (0.45, 3.0, "phantom")
    assert json.loads(said["caveats"]) == ["Data set phantom: procedural images."]
    assert "not a medical device" in said["use"]
    assert str(Path(__file__).parents[4]).encode() not in encoded
    assert b"site-packages" not in encoded
    # onnxruntime says two lines on standard error of each such node, whenever a file is opened.
    assert "CastLike" not in {node.op_type for node in onnx.load_model_from_string(encoded).graph.node}


def test_a_model_with_an_operation_that_onnx_lacks_is_refused_in_one_line(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unknown(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as in torch
            eigenvalues: torch.Tensor = torch.linalg.eigvals(input.squeeze(1)).abs()
            return eigenvalues[:, :2] + super().forward(input)[:, 0, 0]

    flat, card = load_model(exported)
    unknown = Unknown(28, 2)
    monkeypatch.setattr(registry, "build", lambda *_, **__: unknown)
    with pytest.raises(RunError, match=r"cnn cannot be exported: PyTorch's ONNX exporter does not know one of its"):
        to_onnx(flat_parameters(unknown), card)
    assert len(flat)


def test_an_export_that_asks_for_nothing_says_what_can_be_asked_for(exported: Path) -> None:
    from click import UsageError

    with pytest.raises(UsageError, match="--onnx, --monai or both"):
        main(["export", str(exported)])


def test_the_tensors_can_be_used_by_what_the_card_says_alone(exported: Path) -> None:
    """The network is built from what ``model.json`` prints, with PyTorch's own modules."""
    from safetensors.torch import load_file

    said = json.loads((exported / "model.json").read_text())["preparation"]
    assert said["complete"] is True
    known = {"Conv2d": nn.Conv2d, "GroupNorm": nn.GroupNorm, "Tanh": nn.Tanh, "Linear": nn.Linear,
             "Flatten": nn.Flatten, "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d}  # fmt: skip
    layers: list[nn.Module] = []
    for kind, arguments in re.findall(r"^  \(\d+\): (\w+)\((.*)\)$", said["network"], flags=re.MULTILINE):
        if kind == "OverlappingMaxPool":
            assert arguments == "MaxPool2d, kernel_size=2, stride=1"
            layers.append(nn.MaxPool2d(2, 1))
        else:
            words = re.sub(r"start_dim=1, end_dim=-1|output_size=(\d+)|in_features=(\d+), out_features=(\d+)",
                           lambda found: ", ".join(filter(None, found.groups())), arguments)  # fmt: skip
            layers.append(eval(f"known[kind]({words})", {"known": known, "kind": kind}))  # noqa: S307 - own file
    network = nn.Sequential(*layers)
    network.load_state_dict(load_file(exported / "model.safetensors"))
    picture = phantom.chest(1, 50, seed=8).images[0]
    assert "divide each 8-bit value by 127.5 and subtract 1" in said["scaling"]
    small = Image.fromarray(picture[0]).convert(said["mode"]).resize((28, 28), Image.Resampling.BICUBIC)
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(np.asarray(small, np.float32) / 127.5 - 1)[None, None])
    flat, card = load_model(exported)
    expected = softmax(Classifier(flat, card).scores(fit(to_image(picture), 28)[None].copy()))
    assert torch.softmax(logits, 1).numpy() == pytest.approx(expected, abs=1e-6)
