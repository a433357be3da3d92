"""What an ONNX file must be to serve as a backbone: a plain feed-forward network, checked before anything of it runs.

The file is data from outside. The rules, in this order, each refused by its own name (:class:`Breach`):

1. It is a whole ONNX model of a version that is known here, and not too large.
2. Its operators are ONNX's own, of the list ``OPERATORS``: no custom ones, no functions of its own, no control flow.
   Nothing on the list makes an output larger than its inputs' sizes and the weights explain, but by joining them.
3. All its numbers are inside the file: float32, or whole numbers for shapes; as many as their shapes say; finite.
4. Each value is made once, and before it is used. So the graph has no cycle.
5. It takes one batch of RGB images of float32 and gives one row, or one map for each feature, of float32.

What a graph needs of memory and time only running shows. It runs in a process with limits on both
(``onnx_worker.py``), one image at a time: so no operator can mix the images of a batch.
"""

from collections.abc import Iterator
from enum import StrEnum
from math import prod

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from common.models.naming import RGB

OLDEST_OPSET, NEWEST_OPSET = 11, 26
"""Versions of ONNX's operator set; the newest is one that onnxruntime's release runs."""

MOST_NODES = 5000
MOST_ELEMENTS = 1 << 27
"""The largest number of weights of one tensor: 512 MiB of float32."""

_MAP_AXES = 4
_ROW_AXES = 2

OPERATORS = frozenset(
    (
        "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "Div", "Elu",
        "Erf", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid",
        "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "MatMul", "MaxPool",
        "Mul", "PRelu", "Pad", "Pow", "ReduceMean", "Relu", "Reshape", "Selu", "Shape", "Sigmoid", "Slice",
        "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    )
)  # fmt: skip

_ONNX_DOMAINS = frozenset({"", "ai.onnx"})
_FLOAT, _WHOLE = TensorProto.FLOAT, frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})
_GRAPHS = frozenset({AttributeProto.GRAPH, AttributeProto.GRAPHS})
_TENSORS = frozenset({AttributeProto.TENSOR, AttributeProto.TENSORS})
_SPARSE = frozenset({AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS})


class Breach(StrEnum):
    """Why a file is refused."""

    NOT_ONNX = "not a whole ONNX file"
    VERSION = "a version of ONNX that is not known here"
    TOO_LARGE = "too large"
    CUSTOM_OPERATOR = "an operator from outside of ONNX"
    FUNCTION = "a function of its own"
    CONTROL_FLOW = "control flow"
    OPERATOR = "an operator that is not on the list"
    EXTERNAL_DATA = "data outside of the file"
    SPARSE = "a sparse tensor"
    NUMBERS = "numbers of a kind that is not taken"
    SHAPE = "a shape that its numbers do not fill"
    NOT_FINITE = "a weight that is not finite"
    ORDER = "a value that is used before it is made, or made twice"
    INPUT = "another input than one batch of RGB images"
    OUTPUT = "another output than features"
    MEMORY = "more memory than is allowed"
    TIME = "more time than is allowed"
    FAILED = "a network that cannot be run"


class BackboneRefusedError(Exception):
    """A file breaks a rule.

    Args:
        breach: which one.
        detail: what was got, in a few words; none that the file could make long.
    """

    def __init__(self, breach: Breach, detail: str = "") -> None:
        self.breach = breach
        self.detail = detail[:200]
        super().__init__(f"{breach}{': ' if self.detail else ''}{self.detail}")


def read(encoded: bytes) -> ModelProto:
    """Return the model in a file that keeps the rules.

    Raises:
        BackboneRefusedError: it breaks one.
    """
    model = ModelProto()
    try:
        model.ParseFromString(encoded)
    except (DecodeError, RecursionError, ValueError):
        raise BackboneRefusedError(Breach.NOT_ONNX) from None
    if not model.graph.node or not model.opset_import:
        raise BackboneRefusedError(Breach.NOT_ONNX, "it has no graph")
    _check_version(model)
    _check_operators(model)
    _check_numbers(model.graph)
    _check_order(model.graph)
    _check_ends(model.graph)
    return model


def _check_version(model: ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise BackboneRefusedError(Breach.VERSION, f"IR version {model.ir_version}")
    for opset in model.opset_import:
        if opset.domain in _ONNX_DOMAINS and not OLDEST_OPSET <= opset.version <= NEWEST_OPSET:
            raise BackboneRefusedError(
                Breach.VERSION, f"operator set {opset.version}, taken are {OLDEST_OPSET} to {NEWEST_OPSET}"
            )


def _check_operators(model: ModelProto) -> None:
    if model.functions:
        raise BackboneRefusedError(Breach.FUNCTION, _short(model.functions[0].name))
    if model.training_info:
        raise BackboneRefusedError(Breach.CONTROL_FLOW, "training")
    if len(model.graph.node) > MOST_NODES:
        raise BackboneRefusedError(Breach.TOO_LARGE, f"{len(model.graph.node)} nodes, {MOST_NODES} at most")
    for node in model.graph.node:
        if node.domain not in _ONNX_DOMAINS:
            raise BackboneRefusedError(Breach.CUSTOM_OPERATOR, f"{_short(node.domain)}.{_short(node.op_type)}")
        if any(
            attribute.type in _GRAPHS or attribute.HasField("g") or attribute.graphs for attribute in node.attribute
        ):
            raise BackboneRefusedError(Breach.CONTROL_FLOW, _short(node.op_type))
        if node.op_type not in OPERATORS:
            raise BackboneRefusedError(Breach.OPERATOR, _short(node.op_type))


def _check_numbers(graph: GraphProto) -> None:
    if graph.sparse_initializer:
        raise BackboneRefusedError(Breach.SPARSE)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for node in graph.node:
        for tensor in _attached(node):
            _check_tensor(tensor)


def _attached(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.type in _SPARSE or attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise BackboneRefusedError(Breach.SPARSE)
        if attribute.type in _TENSORS or attribute.HasField("t"):
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
        raise BackboneRefusedError(Breach.EXTERNAL_DATA)
    if tensor.data_type != _FLOAT and tensor.data_type not in _WHOLE:
        raise BackboneRefusedError(Breach.NUMBERS, f"type {tensor.data_type}")
    if tensor.HasField("segment") or any(size < 0 for size in tensor.dims):
        raise BackboneRefusedError(Breach.SHAPE)
    elements = prod(tensor.dims)
    if elements > MOST_ELEMENTS:
        raise BackboneRefusedError(Breach.SHAPE, f"{elements:.3g} numbers")
    try:
        # NumPy makes a view of the file's own bytes: a shape that they do not fill is an error, not an allocation.
        values = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise BackboneRefusedError(Breach.SHAPE, f"{elements} numbers claimed") from None
    if values.size != elements:
        raise BackboneRefusedError(Breach.SHAPE, f"{elements} numbers claimed, {values.size} there")
    if tensor.data_type == _FLOAT and not bool(np.isfinite(values).all()):
        raise BackboneRefusedError(Breach.NOT_FINITE)


def _check_order(graph: GraphProto) -> None:
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if not made.issuperset(node.input):
            raise BackboneRefusedError(Breach.ORDER, _short(node.op_type))
        outputs = [name for name in node.output if name]
        if len(set(outputs)) != len(outputs) or not made.isdisjoint(outputs):
            raise BackboneRefusedError(Breach.ORDER, _short(node.op_type))
        made.update(outputs)
    if not made.issuperset(value.name for value in graph.output):
        raise BackboneRefusedError(Breach.ORDER, "the output")


def _check_ends(graph: GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise BackboneRefusedError(Breach.INPUT, f"{len(inputs)} inputs")
    image = _sizes(inputs[0])
    fits = len(image) == _MAP_AXES and image[0] in (0, 1) and image[1] in (0, RGB)
    if not fits or inputs[0].type.tensor_type.elem_type != _FLOAT:
        raise BackboneRefusedError(Breach.INPUT, f"sizes {image[:8]}")
    if len(graph.output) != 1 or graph.output[0].type.tensor_type.elem_type != _FLOAT:
        raise BackboneRefusedError(Breach.OUTPUT, f"{len(graph.output)} outputs")
    if len(_sizes(graph.output[0])) not in (0, _ROW_AXES, _MAP_AXES):
        raise BackboneRefusedError(Breach.OUTPUT, f"{len(_sizes(graph.output[0]))} axes")


def image_side(model: ModelProto) -> int:
    """Return the pixels on a side that the network takes alone; 0 where it takes any."""
    weights = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in weights)
    return max(_sizes(image)[2:])


def _sizes(value: ValueInfoProto) -> list[int]:
    """Return the sizes of a value's axes, 0 for one that may be any."""
    return [dim.dim_value if dim.HasField("dim_value") else 0 for dim in value.type.tensor_type.shape.dim]


def _short(name: str | bytes) -> str:
    """Return what may be shown of a name that the file chose; one that is no text comes as bytes."""
    name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return "".join(letter for letter in name[:40] if letter.isalnum() or letter in "._-")
