"""Translations into ONNX of what torch.onnx does not know, or knows in a form that does not fit all that we need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset18
from torch.export import ExportedProgram

from omenn_fx.capture.decompositions import lstm_by_steps

op: Any = opset18  # its own types do not compose
INT64, BOOL = 7, 9  # onnx.TensorProto
_END = 2**63 - 1


def layer_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> tuple[Any, Any, Any]:
    """native_layer_norm, whose statistics ONNX returns in float32: they go on in the input's dtype, as torch's do."""
    axis = -len(normalized_shape)
    if weight is None:
        weight = op.CastLike(op.Expand(op.Constant(value_floats=[1.0]), op.Shape(input, start=axis)), input)
    result, mean, inverse = op.LayerNormalization(input, weight, bias, axis=axis, epsilon=eps)
    return result, op.CastLike(mean, input), op.CastLike(inverse, input)


def distances(x1: Any, x2: Any, p: float, compute_mode: Any = None) -> Any:
    """_cdist_forward, the p-norms of all differences, which torch.onnx does not know."""
    sizes = op.Abs(op.Sub(op.Unsqueeze(x1, [-2]), op.Unsqueeze(x2, [-3])))
    if math.isinf(p):
        return op.ReduceMax(sizes, [-1], keepdims=0)
    if p == 2:
        return op.Sqrt(op.ReduceSum(op.Mul(sizes, sizes), [-1], keepdims=0))
    order = op.CastLike(op.Constant(value_float=p), x1)
    return op.Pow(op.ReduceSum(op.Pow(sizes, order), [-1], keepdims=0), op.Reciprocal(order))


def grouped_mm(input: Any, weight: Any, offs: Any) -> Any:
    """transformers' grouped_mm of rows [T, K] that lie expert by expert, up to offs [E], with experts [E, K, N].

    ONNX has no operator for it: every expert sees all rows and keeps its own, E times the arithmetic.
    """
    row = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(input, start=0, end=1)), op.Constant(value_int=1))
    ends = op.Unsqueeze(op.Cast(offs, to=INT64), [1])
    before = op.Cast(op.Less(op.Unsqueeze(row, [0]), ends), to=INT64)  # [E, T]: row t is not behind expert e
    first = op.Equal(op.CumSum(before, op.Constant(value_int=0)), op.Constant(value_int=1))
    own = op.CastLike(op.And(first, op.Cast(before, to=BOOL)), input)
    return op.ReduceSum(op.Mul(op.MatMul(op.Unsqueeze(input, [0]), weight), op.Unsqueeze(own, [2])), [0], keepdims=0)


def adaptive_average(input: Any, output_size: Sequence[int]) -> Any:
    """_adaptive_avg_pool3d, whose windows differ in size: a product with a matrix along each dimension."""
    sizes, rank = list(input.shape), len(input.shape)
    for axis, out in zip(range(rank - 3, rank), output_size, strict=True):
        size = sizes[axis]
        if not isinstance(size, int):
            raise ValueError(
                f"an adaptive pool of a volume needs fixed sizes, and dimension {axis} of its input is free"
            )
        shares = torch.nn.functional.adaptive_avg_pool1d(torch.eye(size)[None], out)[0]  # [size, out]
        matrix = op.CastLike(op.Constant(value=onnx.numpy_helper.from_array(shares.numpy())), input)
        order = [axis if d == rank - 1 else rank - 1 if d == axis else d for d in range(rank)]
        input = op.Transpose(op.MatMul(op.Transpose(input, perm=order), matrix), perm=order)
    return input


def copied(self: Any, src: Any, non_blocking: bool = False) -> Any:
    """copy, whose source is broadcast to what it is written over: torch.onnx leaves that out."""
    value = op.CastLike(src, self)
    return value if _alike(src, self) else op.Expand(value, op.Shape(self))


def scattered(self: Any, dim: int, index: Any, src: Any) -> Any:
    """scatter, of whose source torch reads as much as there are indices, and ONNX takes no more."""
    return op.ScatterElements(self, index, _as_many(src, index), axis=dim)


def scatter_added(self: Any, dim: int, index: Any, src: Any) -> Any:
    """scatter_add, likewise."""
    return op.ScatterElements(self, index, _as_many(src, index), axis=dim, reduction="add")


def sorted_stably(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """sort.stable: TopK of all, in which of two equal values the first stays the first."""
    count = op.Shape(self, start=dim, end=dim + 1 if dim != -1 else None)
    values, indices = op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)
    return values, indices


def kth_smallest(self: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """kthvalue: the last of the k smallest."""
    return _last_smallest(self, op.Constant(value_ints=[k]), dim, keepdim)


def median(self: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """median along a dimension: of an even number of values the lower one of the middle."""
    count = op.Shape(self, start=dim, end=dim + 1 if dim != -1 else None)
    half = op.Div(op.Add(count, op.Constant(value_ints=[1])), op.Constant(value_ints=[2]))
    return _last_smallest(self, half, dim, keepdim)


def _last_smallest(self: Any, count: Any, dim: int, keepdim: bool) -> tuple[Any, Any]:
    found = op.TopK(self, count, axis=dim, largest=0, sorted=1)
    last = [op.Slice(value, [-1], [_END], [dim]) for value in found]
    value, index = last if keepdim else (op.Squeeze(one, [dim]) for one in last)
    return value, index


def adaptive_largest(input: Any, output_size: Sequence[int]) -> tuple[Any, Any]:
    """adaptive_max_pool2d with windows of one size, which is a pool; positions are counted in each image."""
    sizes = list(input.shape)[-2:]
    if not all(isinstance(n, int) and n % out == 0 for n, out in zip(sizes, output_size, strict=True)):
        raise ValueError(
            f"an adaptive maximum to {tuple(output_size)} of an image of {tuple(map(str, sizes))} has windows of "
            "several sizes: choose a size that is a multiple"
        )
    window = [n // out for n, out in zip(sizes, output_size, strict=True)]
    values, indices = op.MaxPool(input, kernel_shape=window, strides=window)
    return values, op.Mod(indices, op.Constant(value_ints=[math.prod(sizes)]))


def randomised_relu(
    self: Any, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> tuple[Any, Any]:
    """rrelu where nothing is drawn: a leaky ReLU with the mean slope."""
    if training:
        raise ValueError("rrelu in training draws a slope for each value")
    return op.LeakyRelu(self, alpha=(lower + upper) / 2), noise


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are known to have one shape."""
    return one.shape is not None and one.shape == other.shape


def _as_many(src: Any, index: Any) -> Any:
    """The first values of a source, as many as there are indices along each dimension."""
    if _alike(src, index):
        return src
    axes = list(range(len(src.shape)))
    return op.Slice(src, [0] * len(axes), op.Shape(index), axes)


_BY_NAME: dict[str, Callable[..., Any]] = {
    "aten.copy": copied,
    "aten.scatter.src": scattered,
    "aten.scatter_add": scatter_added,
    "aten.sort.stable": sorted_stably,
    "aten.kthvalue": kth_smallest,
    "aten.median.dim": median,
    "aten.adaptive_max_pool2d": adaptive_largest,
    "aten.rrelu_with_noise_functional": randomised_relu,
    "aten.native_layer_norm": layer_norm,
    "aten._cdist_forward": distances,
    "aten._adaptive_avg_pool3d": adaptive_average,
    "transformers.grouped_mm_fallback": grouped_mm,
}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operator -> its translation, of the operators that are there: a library registers its own when it is imported."""
    found = {}
    for name, translation in _BY_NAME.items():
        library, operator, *overload = name.split(".")
        packet = getattr(getattr(torch.ops, library), operator, None)
        if packet is not None:
            found[getattr(packet, *overload or ("default",))] = translation
    return found


def without_projections(program: ExportedProgram) -> ExportedProgram:
    """LSTMs that project their hidden state, unrolled: onnxruntime's LSTM has no projection."""
    op = torch.ops.aten.lstm.input
    states = [[v.meta["val"] for v in n.args[1]] for n in program.graph.nodes if n.target is op]
    if all(h.shape[-1] == c.shape[-1] for h, c in states):
        return program
    return program.run_decompositions({op: lstm_by_steps})
