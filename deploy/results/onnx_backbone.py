"""A backbone from an ONNX file as part of an exported one: prepared pictures in, what the backbone gives out.

The backbone takes one picture at a time, as it does at a hospital (``common/models/onnx_worker.py``): ONNX's ``Scan``
hands it one after the other. So a file that takes a batch of one alone is exported as well, and no operator of it can
mix pictures.
"""

import hashlib

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper, version_converter

from common.errors import RunError
from common.models.backbone import BYTE, SCALES, BackboneFeatures
from common.models.backbone_file import find
from common.models.naming import RGB
from common.models.onnx_rules import read
from deploy.results.onnx_preparation import IR_VERSION, OPSET

IMAGES, PLAIN = "pictures", "plain"
"""Names in the graph: uint8 (records, channels, size, size) in; float32 (records, features) out."""

_PREFIX = "file/"


def backbone_graph(features: BackboneFeatures, channels: int, image_size: int) -> ModelProto:
    """Return a graph of what :meth:`BackboneFeatures.plain` gives, whose backbone is an ONNX file.

    Args:
        features: of the file.
        channels: of a picture, 1 or 3.
        image_size: pixels on a side.

    Raises:
        ConfigError: the file is not in the folder of backbones any more.
        RunError: its operators cannot be written in the version that an export has.
    """
    named = features.named
    body = _one_picture(_converted(find(named.sha256), named.sha256), named.features, image_size)
    mean, deviation = SCALES[named.pixels]
    numbers = {
        "white": np.array(BYTE, np.float32),
        "mean": np.array(mean, np.float32).reshape(1, RGB, 1, 1),
        "deviation": np.array(deviation, np.float32).reshape(1, RGB, 1, 1),
    }
    nodes = [
        helper.make_node("Cast", [IMAGES], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["bytes", "white"], ["parts"]),
        # Grey of one channel becomes three equal ones here.
        helper.make_node("Sub", ["parts", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["scaled"]),
        helper.make_node("Scan", ["scaled"], [PLAIN], num_scan_inputs=1, body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ("records", channels, image_size, image_size))],
        [helper.make_tensor_value_info(PLAIN, TensorProto.FLOAT, ("records", named.features))],
        [numpy_helper.from_array(values, name) for name, values in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _converted(encoded: bytes, sha256: str) -> ModelProto:
    """Return a backbone's model in the version of an export, with names that no other part of it has."""
    if hashlib.sha256(encoded).hexdigest() != sha256:
        raise RunError("the backbone's file must not change while it is read; try again")
    model = read(encoded)
    (version,) = {opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")}
    if version != OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except Exception as error:  # noqa: BLE001 - the converter's errors have no common class but this one
            raise RunError(
                f"the backbone cannot be exported: its operators are of ONNX's set {version}, and onnx cannot write "
                f"them in set {OPSET} ({type(error).__name__}); export the backbone with opset_version={OPSET}"
            ) from None
    return compose.add_prefix(model, _PREFIX)


def _one_picture(model: ModelProto, features: int, image_size: int) -> GraphProto:
    """Return the graph of one picture, (3, size, size), to its features, (features,)."""
    backbone = model.graph
    weights = {tensor.name for tensor in backbone.initializer}
    (image,) = (value.name for value in backbone.input if value.name not in weights)
    numbers = {
        "first": np.array([0], np.int64),
        "by feature": np.array([features, -1], np.int64),
        "positions": np.array([1], np.int64),
    }
    nodes: list[NodeProto] = [
        helper.make_node("Unsqueeze", ["picture", "first"], [image]),
        *backbone.node,
        # A map for each feature is averaged over its positions, in float64 as at a hospital; a row has one position.
        helper.make_node("Reshape", [backbone.output[0].name, "by feature"], ["maps"]),
        helper.make_node("Cast", ["maps"], ["exact maps"], to=TensorProto.DOUBLE),
        helper.make_node("ReduceMean", ["exact maps", "positions"], ["means"], keepdims=0),
        helper.make_node("Cast", ["means"], ["row"], to=TensorProto.FLOAT),
    ]
    return helper.make_graph(
        nodes,
        "one picture",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, (RGB, image_size, image_size))],
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, (features,))],
        [*(numpy_helper.from_array(values, name) for name, values in numbers.items()), *backbone.initializer],
    )
