"""Each weight once: one that is another's values in another order is made of it where the file is read.

The adjoint of a convolution has the kernel transposed and flipped, that of a strided one every s-th tap of it, a
product with a matrix its transpose; behind a ReLU6 the kernel of the forward is six times that of the adjoint. They
would make a file twice the model's size. As operators on a constant they are computed when a session starts, by the
constant folding that every runtime has, and cost a call nothing.

What is found is compared bit by bit, whatever made it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
MOST = 64  # times
LEAST = 1024  # elements: the operators would take the place of less
_LONG = np.iinfo(np.int64)


@dataclass(frozen=True)
class Taps:
    """Which positions of a kernel are read along each of its dimensions: from where on, and in what steps."""

    reads: tuple[tuple[int, int], ...]

    def of(self, weight: np.ndarray) -> np.ndarray:
        every: tuple[Any, ...] = (..., *(slice(start, None, step) for start, step in self.reads))
        found: np.ndarray = weight[every]
        return found

    def bounds(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Starts, ends, axes and steps of a Slice, along the dimensions that are not read as they are."""
        chosen = [(2 + d, start, step) for d, (start, step) in enumerate(self.reads) if (start, step) != (0, 1)]
        ends = [_LONG.min if step < 0 else _LONG.max for _, _, step in chosen]
        return [start for _, start, _ in chosen], ends, [axis for axis, _, _ in chosen], [s for _, _, s in chosen]


@dataclass(frozen=True)
class Move:
    """How a weight is made of another: its taps, then input and output channels of each group in each other's place (no
    groups: they stay), then a whole number of times."""

    taps: Taps
    groups: int
    times: int = 1

    def view(self, weight: np.ndarray) -> np.ndarray:
        """What is read of a weight, once, in its order; channels in groups have a dimension more."""
        read = self.taps.of(weight)
        if not self.groups:
            return read
        out, into, *kernel = read.shape
        return read.reshape(self.groups, out // self.groups, into, *kernel).swapaxes(1, 2)


def weights_once(model: Any) -> None:
    """Replace the initializers of an onnx_ir.Model that others give by operators on those, in place."""
    graph = model.graph
    kept: dict[Any, list[tuple[Any, np.ndarray]]] = {}
    large = {v: v.const_value.numpy() for v in graph.initializers.values() if _size(v) >= LEAST and v.dtype in FLOATS}
    # what is read in part is larger, what is taken several times is smaller
    for value, array in sorted(large.items(), key=lambda item: (-item[1].size, float(np.abs(item[1]).sum()))):
        others = kept.setdefault((array.dtype, array.ndim), [])
        found = next(((source, move) for source, other in others for move in _moves(other, array)), None)
        if found is None:
            others.append((value, array))
        else:
            _derive(graph, value, *found)


def _size(value: Any) -> int:
    shape = value.shape
    known = (
        shape is not None and value.const_value is not None and not (value.is_graph_input() or value.is_graph_output())
    )
    return math.prod(shape.numpy()) if known else 0


def _moves(weight: np.ndarray, wanted: np.ndarray) -> Iterator[Move]:
    """The moves that make one weight of another, bit by bit."""
    if weight.shape == wanted.shape:
        yield from _exact(weight, wanted, Move(Taps(((0, 1),) * max(weight.ndim - 2, 0)), 0))
    if weight.ndim < 2:
        return
    groups, rest = divmod(wanted.shape[0], weight.shape[1])
    if rest or groups * wanted.shape[1] != weight.shape[0]:
        return
    every = [list(_reads(k, n)) for k, n in zip(weight.shape[2:], wanted.shape[2:], strict=True)]
    for reads in itertools.product(*every):
        yield from _exact(weight, wanted, Move(Taps(reads), groups))


def _exact(weight: np.ndarray, wanted: np.ndarray, move: Move) -> Iterator[Move]:
    """A move, so many times as the first number says, where it gives all of them."""
    read = move.view(weight)
    goal = wanted.reshape(read.shape)
    one, another = float(read.flat[0]), float(goal.flat[0])
    times = round(another / one) if one and math.isfinite(another / one) else 1
    if not 1 <= times <= MOST or not math.isclose(one * times, another, rel_tol=1e-2):
        return
    some = (0,) * (read.ndim - 1)  # most weights are others, which the first few numbers tell
    if all(_alike(read[part], goal[part], times) for part in (some, ...)):
        yield replace(move, times=times)


def _alike(read: np.ndarray, goal: np.ndarray, times: int) -> bool:
    made = read if times == 1 else read * read.dtype.type(times)
    return np.array_equal(_bits(made), _bits(goal))


def _bits(array: np.ndarray) -> np.ndarray:
    """0 and -0 are two numbers here."""
    return array.view(np.dtype(f"u{array.itemsize}"))


def _reads(size: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Every s-th position, in steps forwards or backwards, that are so many."""
    for step in range(1, size + 1):
        for first in range(step):
            taps = range(first, size, step)
            if len(taps) == wanted:
                yield first, step
                if wanted > 1:
                    yield taps[-1], -step


def _derive(graph: Any, value: Any, source: Any, move: Move) -> None:
    same = not move.groups and move.times == 1
    made = source if same else _made(_Tape(graph, value.name), source, move, value)
    ir.convenience.replace_all_uses_with(value, made)
    del graph.initializers[value.name]
    if made is not source:
        made.name = value.name


def _made(tape: _Tape, source: Any, move: Move, value: Any) -> Any:
    shape = tuple(source.shape.numpy())
    made, kernel = source, list(range(2, len(shape)))
    starts, ends, axes, steps = move.taps.bounds()
    if axes:
        made = tape.op("Slice", made, *map(tape.constant, (starts, ends, axes, steps)))
    if move.groups == 1 and not is_square(source):
        made = tape.op("Transpose", made, perm=[1, 0, *kernel])
    elif move.groups:
        wanted = [int(n) for n in value.shape.numpy()]
        split = [move.groups, shape[0] // move.groups, shape[1], *wanted[2:]]
        made = tape.op("Reshape", made, tape.constant(split))
        made = tape.op("Transpose", made, perm=[0, 2, 1, *(d + 1 for d in kernel)])
        made = tape.op("Reshape", made, tape.constant(wanted))
    if move.times > 1:
        made = tape.op("Mul", made, tape.constant([move.times], source.dtype))
    made.shape, made.dtype = value.shape, value.dtype
    return made


def one_orientation(model: Any) -> None:
    """A square matrix that some operators read as it is and others transposed is turned for these by a third dimension.

    OpenVINO 2026.4 takes one orientation for both, in silence, of an initializer as of what is made of initializers.
    """
    graph = model.graph
    fixed, made = set(graph.initializers.values()), dict[Any, Any]()
    for node in list(graph):
        if node.inputs and all(value is None or value in fixed for value in node.inputs):
            fixed.update(node.outputs)
        at = _turns(node)
        weight = None if at is None else node.inputs[at]
        if weight is None or weight not in fixed or not is_square(weight) or len(list(weight.uses())) == 1:
            continue
        if weight not in made:
            made[weight] = _made(_Tape(graph, f"{weight.name}_turned", node), weight, Move(Taps(()), 1), weight)
        if node.op_type == "Transpose":
            ir.convenience.replace_all_uses_with(node.outputs[0], made[weight])
        else:
            node.replace_input_with(at, made[weight])
            node.attributes["transB"] = ir.AttrInt64("transB", 0)


def _turns(node: Any) -> int | None:
    """Which operand, a matrix, a node reads transposed."""
    if node.op_type == "Gemm" and node.attributes.get("transB") and node.attributes["transB"].as_int():
        return 1
    return 0 if node.op_type == "Transpose" else None


def is_square(weight: Any) -> bool:
    """A matrix of which no shape tells whether it was transposed."""
    return weight.shape is not None and len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]


class _Tape:
    """Operators in front of a node, or at the beginning of a graph, in the order in which they are called."""

    def __init__(self, graph: Any, name: str, before: Any = None):
        self.graph, self.names = graph, (f"{name}_by_{i}" for i in itertools.count())
        self.before = before or next(iter(graph), None)

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        node = ir.Node("", kind, list(inputs), [ir.AttrInt64s(k, v) for k, v in attributes.items()])
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, numbers: list[int], dtype: ir.DataType = ir.DataType.INT64) -> Any:
        tensor = ir.tensor(np.array(numbers, dtype=dtype.numpy()), name=next(self.names))
        value = ir.Value(
            name=tensor.name, shape=ir.Shape([len(numbers)]), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value
