"""A file holds each weight once: what the adjoint reads of it is made of it when a session starts."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.export.passes.weights_once import weights_once

X = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(3))


def conv_net(c=32):
    return nn.Sequential(
        nn.Conv2d(3, c, 5, 2, 2, bias=False), nn.BatchNorm2d(c), nn.ReLU(),  # few channels: phases in one kernel
        nn.Conv2d(c, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),  # phases
        nn.Conv2d(c, 64, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(64, 64, 5, padding=2, groups=64), nn.GELU(),
        nn.Conv2d(64, 64, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 40),
    )  # fmt: skip


def transformer():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(480, 32), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(96, 9)
    )


def weights(path):
    """The numbers in a file, in bytes."""
    return sum(onnx.numpy_helper.to_array(i).nbytes for i in onnx.load(str(path)).graph.initializer)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """That of the convolutional network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("once") / "m.onnx"
    omenn_fx.transform(conv_net().eval(), X).to_onnx(path, X, verify=False)
    return path


@pytest.mark.parametrize(("make", "dtype"), [(conv_net, "float16"), (transformer, "float32")])
def test_a_file_is_no_larger_than_its_model(make, dtype, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    path = tmp_path / "m.onnx"
    proof = omenn_fx.transform(model, X).to_onnx(path, X, dtype=dtype).proof
    assert proof.parity < (1e-4 if dtype == "float32" else 5e-2)
    own = sum(p.numel() for p in model.parameters()) * (4 if dtype == "float32" else 2)
    small = 1024 * 4 * 3  # what stays under the least size
    assert weights(path) <= 1.1 * own + small


def graph_of(weight, wanted):
    """y = x . weight-like values, as a graph with two initializers."""
    values = [ir.tensor(a, name=n) for a, n in ((weight, "weight"), (wanted, "wanted"))]
    held = [ir.Value(name=t.name, shape=t.shape, type=ir.TensorType(t.dtype), const_value=t) for t in values]
    nodes = [ir.Node("", "Identity", [v]) for v in held]
    for node, value in zip(nodes, held, strict=True):
        node.outputs[0].name = f"{value.name}_out"
        node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    graph = ir.Graph(
        [], [n.outputs[0] for n in nodes], nodes=nodes, initializers=held, opset_imports={"": 18}, name="g"
    )
    return ir.Model(graph, ir_version=9)


def moved(groups, *reads):
    """Groups of channels in each other's place, and taps of the kernel."""

    def of(w):
        w = w[(..., *reads)]
        out, into, *kernel = w.shape
        split = w.reshape(groups, out // groups, into, *kernel).swapaxes(1, 2)
        return np.ascontiguousarray(split.reshape(groups * into, out // groups, *kernel))

    return of


CASES = {
    "matrix": ((40, 64), moved(1)),
    "pointwise": ((64, 48, 1, 1), moved(1)),
    "flipped": ((32, 16, 3, 3), moved(1, slice(None, None, -1), slice(None, None, -1))),
    "phase": ((32, 48, 5, 3), moved(1, slice(4, None, -2), slice(1, None, 2))),
    "groups": ((32, 16, 3, 3), moved(4, slice(None, None, -1), slice(None, None, -1))),
    "depthwise": ((256, 1, 5, 5), moved(256, slice(None, None, -1), slice(None, None, -1))),
    "volume": ((16, 16, 3, 3, 3), moved(1, *[slice(None, None, -1)] * 3)),
    "the same": ((40, 64), lambda w: w.copy()),
    "six times": ((64, 48, 1, 1), lambda w: w * w.dtype.type(6)),
    "six times, flipped": (
        (32, 16, 3, 3),
        lambda w: moved(1, slice(None, None, -1), slice(None, None, -1))(w) * w.dtype.type(6),
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", CASES)
def test_what_is_found_is_the_same_to_the_last_bit(case, dtype):
    shape, move = CASES[case]
    weight = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    weight.ravel()[1:4] = 0.0, -0.0, np.inf
    model = graph_of(weight, move(weight))
    weights_once(model)
    assert "wanted" not in model.graph.initializers
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for got, want in zip(session.run(None, {}), (weight, move(weight)), strict=True):
        np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), want.view(f"u{want.itemsize}"))


@pytest.mark.parametrize("case", CASES)
def test_another_weight_stays(case):
    shape, move = CASES[case]
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = move(weight)
    wanted.ravel()[-1] = np.nextafter(wanted.ravel()[-1], np.float32(9))
    model = graph_of(weight, wanted)
    weights_once(model)
    assert {"weight", "wanted"} <= set(model.graph.initializers)


def test_zeros_of_another_sign_are_another_weight():
    model = graph_of(np.zeros((40, 64), np.float32), np.full((64, 40), -0.0, np.float32))
    weights_once(model)
    assert len(model.graph.initializers) == 2


def test_small_ones_stay():
    weight = np.random.default_rng(0).standard_normal((8, 9)).astype(np.float32)
    model = graph_of(weight, np.ascontiguousarray(weight.T))
    weights_once(model)
    assert len(model.graph.initializers) == 2


def test_a_square_matrix_is_read_one_way(tmp_path):
    """OpenVINO takes one orientation where a Gemm turns what a product reads as it is, or a Transpose turns it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5)).eval()
    x = torch.randn(2, 40)
    path = tmp_path / "m.onnx"
    assert omenn_fx.transform(model, x).to_onnx(path, x).proof.parity < 1e-5
    graph = onnx.load(str(path)).graph
    square = {i.name for i in graph.initializer if len(i.dims) == 2 and i.dims[0] == i.dims[1] == 40}
    assert len(square) == 2
    for node in graph.node:
        turned = any(a.name == "transB" and a.i for a in node.attribute) or node.op_type == "Transpose"
        assert not (turned and square & set(node.input)), node


def test_shapes_that_depend_on_the_batch_are_left_to_the_runtime(file):
    """tract takes the symbol in them for another number than the input's first size."""
    graph = onnx.load(str(file)).graph
    assert [d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim if d.dim_param] == ["batch"] * 2
    assert not [v.name for v in graph.value_info for d in v.type.tensor_type.shape.dim if not d.HasField("dim_value")]


def test_a_session_computes_them_once(file, tmp_path):
    """What onnxruntime runs has no operator on weights alone left."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(file, options)
    run = onnx.load(str(tmp_path / "run.onnx")).graph
    fixed = {i.name for i in run.initializer}
    left = [n.op_type for n in run.node if n.input and all(name in fixed for name in n.input if name)]
    assert not left, json.dumps(left)
