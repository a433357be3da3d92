"""A trained model as one ONNX file: pictures of any size in, probabilities and decisions out.

The file holds the preparation of the picture, frozen features, the trained network, softmax and the decision threshold,
and says in its metadata what it is. onnxruntime alone runs it. PyTorch's exporter writes the network and its features;
the preparation is a graph of our own (:mod:`deploy.results.onnx_preparation`), which is merged before it, and so is a
backbone that is an ONNX file itself (:mod:`deploy.results.onnx_backbone`).
"""

import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import compose, helper
from torch import Tensor, nn

from client.training import LARGEST_LOGIT
from common.errors import RunError
from common.models import registry
from common.models.backbone import BackboneFeatures, at_norm, scaled
from common.models.flat import share_parameters
from common.models.frozen import FrozenFeatures
from common.models.scattering import Scattering
from common.task import TaskKind
from deploy.results.classifier import UNCERTAIN, Classifier, probabilities_of
from deploy.results.model_file import ModelCard
from deploy.results.onnx_backbone import IMAGES, PLAIN, backbone_graph
from deploy.results.onnx_preparation import IR_VERSION, OPSET, preparation
from deploy.results.onnx_scattering import RealScattering

INPUT, PROBABILITIES, DECISION = "image", "probabilities", "decision"
"""Names in the file: uint8 (records, channels, height, width) in; float32 (records, classes), int64 (records,) out."""

TOLERANCE = 1e-5
"""The largest difference of a probability from that of ``./confide predict``."""

_CHECKED_SIDES = 1.0, 1.7, 3.3
"""Sides of the random pictures that an export is checked with, over the model's own."""

_PRODUCER = "confide"


_Features = Callable[[Tensor], Tensor]
"""What makes a network's input of what the exported part takes."""


class _WholeModel(nn.Module):
    """From prepared pictures, uint8 (n, channels, size, size), to probabilities and decisions.

    On a backbone from an ONNX file, from what that gives, float32 (n, features).

    As :class:`deploy.results.classifier.Classifier` and :func:`deploy.results.classifier.decided` answer.
    """

    def __init__(self, network: nn.Module, features: _Features | None, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        self._features = features
        self._temperature = card.temperature
        self._threshold = card.threshold
        self._is_multilabel = card.kind is TaskKind.MULTILABEL
        self._thresholds = torch.tensor(card.thresholds or (UNCERTAIN,) * len(card.classes), dtype=torch.float64)

    def forward(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities, float32 (n, classes), and decisions, int64 (n,), of labels 0 or 1, (n, classes)."""
        inputs = prepared.to(torch.float32) / 127.5 - 1.0 if self._features is None else self._features(prepared)
        logits = torch.nan_to_num(self.network(inputs), nan=0.0).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        tempered = logits.to(torch.float64) / self._temperature
        if self._is_multilabel:
            probabilities = torch.sigmoid(tempered)
            return probabilities.to(torch.float32), (probabilities >= self._thresholds).to(torch.int64)
        probabilities = torch.softmax(tempered, dim=1)
        if self._threshold is None:
            decision = probabilities.argmax(dim=1)
        else:
            decision = (probabilities[:, 1] >= self._threshold).to(torch.int64)
        return probabilities.to(torch.float32), decision


def to_onnx(flat: NDArray[np.float32], card: ModelCard) -> bytes:
    """Return a model as an ONNX file, which has been run beside ``predict`` before it is returned.

    Args:
        flat: the parameters, float32, shape (d,).
        card: what the model is.

    Raises:
        RunError: the model has an operation that ONNX does not know, or onnxruntime gives other answers.
    """
    network = registry.build(card.architecture, len(card.classes), card.channels, card.image_size, seed=0)
    share_parameters(network, torch.from_numpy(flat.copy()))
    features = registry.frozen_features(card.architecture)
    before = compose.add_prefix(preparation(card.channels, card.image_size), "preparation/", rename_inputs=False)
    end = "preparation/prepared"
    example = torch.zeros((2, card.channels, card.image_size, card.image_size), dtype=torch.uint8)
    if isinstance(features, BackboneFeatures) and features.module is None:
        backbone = compose.add_prefix(backbone_graph(features, card.channels, card.image_size), "backbone/")
        before = compose.merge_models(before, backbone, io_map=[(end, f"backbone/{IMAGES}")])
        end, example = f"backbone/{PLAIN}", torch.ones((2, features.named.features))
    whole = _WholeModel(network, None if features is None else _exportable(features), card).eval()
    model = compose.merge_models(
        before,
        compose.add_prefix(_core(whole, card, example), "model/", rename_outputs=False),
        io_map=[(end, "model/prepared")],
        producer_name=_PRODUCER,
        doc_string=f"{card.task} on {card.data_set}. A research model, not a medical device.",
    )
    helper.set_model_props(model, metadata_of(card))
    encoded: bytes = model.SerializeToString()
    _check(encoded, Classifier(flat, card), card)
    return encoded


def metadata_of(card: ModelCard) -> dict[str, str]:
    """Return what the file says of itself; values that are not words are JSON."""
    return {
        "mode": "L" if card.channels == 1 else "RGB",
        "classes": json.dumps(card.classes),
        "threshold": json.dumps(card.threshold),
        "thresholds": json.dumps(card.thresholds),
        "temperature": json.dumps(card.temperature),
        "prevalence": json.dumps(card.prevalence),
        "kind": card.kind.value if card.kind is not None else "",
        "task": card.task,
        "data_set": card.data_set,
        "epsilon": json.dumps(card.privacy.get("epsilon")),
        "privacy": json.dumps(card.privacy),
        "architecture": card.architecture,
        "image_size": str(card.image_size),
        "run_id": card.run_id,
        "weights_sha256": card.sha256,
        "caveats": json.dumps(card.caveats),
        "use": "research, not a medical device: no decision about a patient may rest on it",
    }


def _exportable(features: FrozenFeatures) -> _Features:
    """Return frozen features as operations that PyTorch's exporter knows."""
    if isinstance(features, BackboneFeatures):
        network, pixels = features.module, features.named.pixels
        return at_norm if network is None else lambda images: at_norm(network(scaled(images, pixels)))
    return RealScattering() if type(features) is Scattering else features


def _core(whole: nn.Module, card: ModelCard, example: Tensor) -> onnx.ModelProto:
    """Return what PyTorch's exporter makes of the model, without what it records about this machine."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # The exporter warns of its own next version.
            program = torch.onnx.export(
                whole,
                (example,),
                input_names=["prepared"],
                output_names=[PROBABILITIES, DECISION],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("records", min=1)},),
                verbose=False,
                optimize=False,
            )
    except Exception as error:  # noqa: BLE001 - the exporter's errors have no common class but this one
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise RunError(
            f"{card.architecture} cannot be exported: PyTorch's ONNX exporter does not know one of its operations "
            f"({reason}); use model.safetensors and model.json"
        ) from None
    if program is None:
        raise RunError(f"{card.architecture} cannot be exported: PyTorch's ONNX exporter gave no program")
    made = program.model_proto
    made.ir_version = IR_VERSION
    _forget_origin(made)
    _write_casts(made)
    return made


def _write_casts(model: onnx.ModelProto) -> None:
    """Write each CastLike as the Cast that it is: onnxruntime warns of the former whenever a file is opened."""
    known = onnx.shape_inference.infer_shapes(model).graph
    kinds = {tensor.name: tensor.data_type for tensor in known.initializer}
    for value in (*known.input, *known.value_info, *known.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    for node in model.graph.node:
        if node.op_type == "CastLike" and kinds.get(node.input[1], 0):
            node.attribute.append(helper.make_attribute("to", kinds[node.input[1]]))
            node.op_type = "Cast"
            del node.input[1]


def _forget_origin(model: onnx.ModelProto) -> None:
    """Remove stack traces, which hold paths of this machine, and names of Python objects."""
    model.ClearField("doc_string")
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]


def _check(encoded: bytes, classifier: Classifier, card: ModelCard) -> None:
    """Run the file beside the model it was made of, on random pictures of several sizes.

    Raises:
        RunError: a probability differs by more than TOLERANCE.
    """
    import onnxruntime

    from common.shards import fit, to_image

    onnx.checker.check_model(encoded, full_check=True)
    session = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for part in _CHECKED_SIDES:
        side = int(part * card.image_size)
        pictures = random.integers(0, 256, (2, card.channels, side, side + 3), np.uint8)
        (found,) = session.run([PROBABILITIES], {INPUT: pictures})
        prepared = np.stack([fit(to_image(picture), card.image_size) for picture in pictures])
        apart = float(np.abs(found - probabilities_of(classifier.scores(prepared), card)).max())
        if not apart <= TOLERANCE:
            raise RunError(
                f"{card.architecture} cannot be exported: onnxruntime must give the probabilities of "
                f"./confide predict within {TOLERANCE:g}, they are {apart:.1e} apart; use model.safetensors"
            )
