"""ONNX files for tests: small honest ones, and hostile ones, each of which breaks one rule."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FEATURES = 8
OPSET = 17


def image(*sizes: int | str) -> ValueInfoProto:
    """Return the input: one batch of RGB images of any size, unless sizes say another."""
    return helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes or ("n", 3, "height", "width"))


def output(name: str = "features") -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def weight(name: str, *shape: int, seed: int = 0) -> TensorProto:
    values = (np.random.default_rng(seed).standard_normal(shape) / 4).astype(np.float32)
    return numpy_helper.from_array(values, name)


def encoded(made: ModelProto) -> bytes:
    """Return the file of a model."""
    return bytes(made.SerializeToString())


def nodes() -> list[NodeProto]:
    """Return a convolution, an activation, and the mean over positions."""
    return [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], strides=[2, 2]),
        helper.make_node("Tanh", ["maps"], ["bounded"]),
        helper.make_node("GlobalAveragePool", ["bounded"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
    ]


def graph(
    body: list[NodeProto] | None = None,
    weights: list[TensorProto] | None = None,
    ends: tuple[list[ValueInfoProto], list[ValueInfoProto]] | None = None,
) -> GraphProto:
    inputs, outputs = ends or ([image()], [output()])
    kernel = [weight("kernel", FEATURES, 3, 5, 5)]
    return helper.make_graph(nodes() if body is None else body, "backbone", inputs, outputs, weights or kernel)


def model(of: GraphProto | None = None, opset: int = OPSET) -> ModelProto:
    made = helper.make_model(of or graph(), opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def honest() -> bytes:
    """Return a file that keeps every rule."""
    return encoded(model())


def _changed(change: Callable[[ModelProto], object]) -> bytes:
    made = model()
    change(made)
    return encoded(made)


def _external_data() -> bytes:
    def change(made: ModelProto) -> None:
        (kernel,) = made.graph.initializer
        kernel.ClearField("raw_data")
        kernel.data_location = TensorProto.EXTERNAL
        kernel.external_data.add(key="location", value="../../etc/passwd")

    return _changed(change)


def _external_data_in_a_constant() -> bytes:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["leaked"], value=tensor)
    return encoded(model(graph([constant, *nodes()])))


def _cycle() -> bytes:
    body = nodes()
    body[0].input[0] = "bounded"
    return encoded(model(graph(body)))


def _made_twice() -> bytes:
    return encoded(model(graph([*nodes(), helper.make_node("Identity", ["mean"], ["bounded"])])))


def _huge_shape() -> bytes:
    tensor = TensorProto(name="kernel", data_type=TensorProto.FLOAT, dims=[2**40, 2**20], raw_data=b"\0" * 16)
    return encoded(model(graph(weights=[tensor])))


def _huge_initialiser() -> bytes:
    tensor = TensorProto(name="kernel", data_type=TensorProto.FLOAT, dims=[2**26], raw_data=b"\0" * 64)
    return encoded(model(graph(weights=[tensor])))


def _negative_shape() -> bytes:
    tensor = TensorProto(name="kernel", data_type=TensorProto.FLOAT, dims=[-4, -4], raw_data=b"\0" * 64)
    return encoded(model(graph(weights=[tensor])))


def _custom_operator() -> bytes:
    body = nodes()
    body[1] = helper.make_node("Tanh", ["maps"], ["bounded"], domain="com.example")
    made = helper.make_model(
        graph(body), opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.example", 1)]
    )
    made.ir_version = 8
    return encoded(made)


def _microsoft_operator() -> bytes:
    """One of onnxruntime's own, which is installed and would run."""
    body = nodes()
    body[1] = helper.make_node("FusedGemm", ["maps"], ["bounded"], domain="com.microsoft")
    return encoded(model(graph(body)))


def _control_flow_bomb() -> bytes:
    """Loops in loops, each of which would go on for 2^62 steps."""
    inner = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", [], [output("on")])
    for depth in range(20):
        loop = helper.make_node("Loop", ["most", "go"], [f"out{depth}"], body=inner)
        inner = helper.make_graph([loop], f"body{depth}", [], [output(f"out{depth}")])
    most = numpy_helper.from_array(np.array(2**62), "most")
    go = numpy_helper.from_array(np.array(True), "go")
    body = [helper.make_node("Loop", ["most", "go"], ["never"], body=inner), *nodes()]
    return encoded(model(graph(body, [weight("kernel", FEATURES, 3, 5, 5), most, go])))


def _condition() -> bytes:
    branch = helper.make_graph(nodes(), "branch", [], [output()])
    body = [helper.make_node("If", ["go"], ["features"], then_branch=branch, else_branch=branch)]
    return encoded(model(graph(body, [numpy_helper.from_array(np.array(True), "go")])))


def _function_bomb() -> bytes:
    """Functions that call each other twice: 2^60 nodes when written out."""
    made = model()
    for depth in range(60):
        calls = [helper.make_node(f"f{depth + 1}", ["x"], ["y"], domain="bomb") for _ in range(2)]
        made.functions.append(
            helper.make_function("bomb", f"f{depth}", ["x"], ["y"], calls, [helper.make_opsetid("", OPSET)])
        )
    return encoded(made)


def _too_many_nodes() -> bytes:
    chain = [helper.make_node("Relu", [f"v{place}" if place else "image"], [f"v{place + 1}"]) for place in range(6000)]
    return encoded(model(graph([*chain, *nodes()])))


def _another_operator() -> bytes:
    """A tensor as large as numbers in the file say, out of nothing."""
    sizes = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "sizes")
    body = [helper.make_node("ConstantOfShape", ["sizes"], ["huge"]), *nodes()]
    return encoded(model(graph(body, [weight("kernel", FEATURES, 3, 5, 5), sizes])))


def _chance() -> bytes:
    return encoded(model(graph([helper.make_node("RandomNormal", [], ["noise"], shape=[2]), *nodes()])))


def _text() -> bytes:
    tensor = TensorProto(name="kernel", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    return encoded(model(graph(weights=[tensor])))


def _not_finite() -> bytes:
    values = np.full((FEATURES, 3, 5, 5), np.nan, np.float32)
    return encoded(model(graph(weights=[numpy_helper.from_array(values, "kernel")])))


def _sparse() -> bytes:
    def change(made: ModelProto) -> None:
        made.graph.sparse_initializer.add(dims=[2**30, 2**30])

    return _changed(change)


def _doubling(times: int) -> bytes:
    """Join a value with itself again and again: no weight is large, and the last value is."""
    body, last = nodes()[:2], "bounded"
    for place in range(times):
        body.append(helper.make_node("Concat", [last, last], [f"joined{place}"], axis=1))
        last = f"joined{place}"
    pool = helper.make_node("GlobalAveragePool", [last], ["mean"])
    return encoded(model(graph([*body, pool, nodes()[3]])))


def _padding() -> bytes:
    pads = numpy_helper.from_array(np.array([0, 0, 2**20, 2**20] * 2, np.int64), "pads")
    body = [helper.make_node("Pad", ["image", "pads"], ["padded"]), *nodes()]
    body[1].input[0] = "padded"
    return encoded(model(graph(body, [weight("kernel", FEATURES, 3, 5, 5), pads])))


def _slow() -> bytes:
    """Thousands of products of a large square: small in memory, and hours of arithmetic."""
    side = 1024
    body, last = [], "square"
    for place in range(4000):
        body.append(helper.make_node("MatMul", [last, "square"], [f"power{place}"]))
        body.append(helper.make_node("Tanh", [f"power{place}"], [f"bounded{place}"]))
        last = f"bounded{place}"
    # The image enters at the end, and the square is no constant of the file: else it would be computed beforehand.
    start = [
        helper.make_node("ReduceMean", ["image"], ["level"], keepdims=0),
        helper.make_node("Mul", ["weights", "level"], ["square"]),
    ]
    body = body[:4900]
    end = [
        helper.make_node("ReduceMean", [body[-1].output[0]], ["one"], axes=[0], keepdims=1),
        helper.make_node("Identity", ["one"], ["features"]),
    ]
    return encoded(model(graph([*start, *body, *end], [weight("weights", side, side)])))


def _no_file() -> bytes:
    return b"\x80\x04 this is a pickle, or anything else"


HOSTILE: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "external data": (_external_data, "EXTERNAL_DATA"),
    "external data in a constant": (_external_data_in_a_constant, "EXTERNAL_DATA"),
    "cycle": (_cycle, "ORDER"),
    "value made twice": (_made_twice, "ORDER"),
    "huge shape": (_huge_shape, "SHAPE"),
    "huge initialiser": (_huge_initialiser, "SHAPE"),
    "negative shape": (_negative_shape, "SHAPE"),
    "custom operator": (_custom_operator, "CUSTOM_OPERATOR"),
    "operator of the runtime's own": (_microsoft_operator, "CUSTOM_OPERATOR"),
    "control-flow bomb": (_control_flow_bomb, "CONTROL_FLOW"),
    "condition": (_condition, "CONTROL_FLOW"),
    "function bomb": (_function_bomb, "FUNCTION"),
    "truncated": (lambda: honest()[:-100], "NOT_ONNX"),
    "no ONNX": (_no_file, "NOT_ONNX"),
    "empty": (lambda: b"", "NOT_ONNX"),
    "too many nodes": (_too_many_nodes, "TOO_LARGE"),
    "another operator": (_another_operator, "OPERATOR"),
    "chance": (_chance, "OPERATOR"),
    "text": (_text, "NUMBERS"),
    "not finite": (_not_finite, "NOT_FINITE"),
    "sparse": (_sparse, "SPARSE"),
    "old operator set": (lambda: encoded(model(opset=7)), "VERSION"),
    "two inputs": (lambda: encoded(model(graph(ends=([image(), output("more")], [output()])))), "INPUT"),
    "batches of eight": (lambda: encoded(model(graph(ends=([image(8, 3, 28, 28)], [output()])))), "INPUT"),
    "four channels": (lambda: encoded(model(graph(ends=([image(1, 4, 28, 28)], [output()])))), "INPUT"),
    "two outputs": (
        lambda: encoded(model(graph(ends=([image()], [output(), output("mean")])))),
        "OUTPUT",
    ),
}
"""What makes each file, and the rule that refuses it before it sees an image."""

HUNGRY: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "joined with itself": (lambda: _doubling(40), "MEMORY"),
    "padded to terabytes": (_padding, "MEMORY"),
    "hours of products": (_slow, "TIME"),
    "a convolution that does not fit": (
        lambda: encoded(model(graph(weights=[weight("kernel", FEATURES, 5, 5, 5)]))),
        "FAILED",
    ),
}
"""Files that keep every rule, and ask for too much, or for what cannot be, when they run."""

assert onnx.IR_VERSION >= 8
