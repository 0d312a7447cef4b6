"""What other engines than onnxruntime do not read is written another way, with the same values."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from omenn_fx.export.passes.portable import WIDEST, portable

X = np.arange(30, dtype=np.float32).reshape(1, 5, 6)


def of(*nodes, constants=()):
    """A file x -> y of these nodes."""
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "height", "width"])],
    )
    held = [numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    graph = helper.make_graph(list(nodes), "g", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rewritten(model):
    """The operators that are there now, once the values are found to be the same."""
    inside = ir.serde.deserialize_model(model)
    portable(inside)
    after = ir.serde.serialize_model(inside)
    onnx.checker.check_model(after, full_check=True)
    got, want = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": X})[0] for m in (after, model))
    np.testing.assert_array_equal(got, want)
    return after, [n.op_type for n in after.graph.node if n.op_type != "Constant"]


@pytest.mark.parametrize(
    ("pads", "kinds"),
    [
        ([0, -1, 0, 0, 0, -2], ["Slice"]),
        ([0, -1, 2, 0, 1, -3], ["Slice", "Pad"]),
        ([0, 1, 2, 0, 0, 0], ["Pad"]),
        ([0, -6, 0, 0, 7, 0], ["Pad"]),  # crops into the padding itself
    ],
)
def test_a_negative_pad_is_a_slice(pads, kinds):
    constants = {"pads": np.array(pads), "fill": np.float32(3)}
    _, found = rewritten(of(helper.make_node("Pad", ["x", "pads", "fill"], ["y"]), constants=constants))
    assert found == kinds


@pytest.mark.parametrize("count", [WIDEST, WIDEST + 1, 70])
def test_no_concat_of_many(count):
    after, found = rewritten(of(helper.make_node("Concat", ["x"] * count, ["y"], axis=1)))
    assert max(len(n.input) for n in after.graph.node) <= WIDEST
    assert (len(found) > 1) == (count > WIDEST)


def test_zeros_say_that_they_are_zeros():
    zeros = helper.make_node("ConstantOfShape", ["shape"], ["zeros"])
    model = of(zeros, helper.make_node("Add", ["x", "zeros"], ["y"]), constants={"shape": np.array([5, 6])})
    after, _ = rewritten(model)
    assert [a.name for n in after.graph.node for a in n.attribute] == ["value"]


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize(
    ("size", "pads", "dilations"), [(3, [1, 1, 1, 1], [1, 1]), (3, [1, 2, 1, 0], [2, 1]), (4, [1] * 4, [1, 1])]
)
def test_a_kernel_of_the_size_of_its_image_gets_a_ring_of_zeros(op, size, pads, dilations):
    """OpenVINO multiplies a kernel with the map that the image was multiplied with, where their sizes are the same."""
    rng = np.random.default_rng(0)
    x, by, kernel = (
        rng.uniform(1, 2, shape).astype(np.float32) for shape in ((2, 2, size, size), (1, 1, size, size), (3, 2, 3, 3))
    )
    names = {"by": by, "kernel": kernel}
    nodes = [
        helper.make_node(op, ["x", "by"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel"], ["y"], pads=pads, dilations=dilations, kernel_shape=[3, 3]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in names.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    after = ir.from_proto(model)
    portable(after)
    after = ir.to_proto(after)
    got, want = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (after, model))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    (shape,) = (
        [a.ints for a in n.attribute if a.name == "kernel_shape"] for n in after.graph.node if n.op_type == "Conv"
    )
    assert list(shape[0]) == ([5, 5] if size == 3 else [3, 3])
