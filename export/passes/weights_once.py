"""Each weight once: one that is another's values in another order is made of it where the file is read.

The adjoint of a convolution has the kernel transposed and flipped, that of a strided one every s-th tap of it, and a
product with a matrix its transpose. They would make a file twice the model's size. As operators on a constant they are
computed when a session starts, by the constant folding that every runtime has, and cost a call nothing.

What is found is compared bit by bit, whatever made it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

LEAST = 1024  # elements: the operators would take the place of less
_LONG = np.iinfo(np.int64)


@dataclass(frozen=True)
class Taps:
    """Which positions of a kernel are read along each of its dimensions: from where on, and in what steps."""

    reads: tuple[tuple[int, int], ...]

    def of(self, weight: np.ndarray) -> np.ndarray:
        return weight[(..., *(slice(start, None, step) for start, step in self.reads))]

    def bounds(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Starts, ends, axes and steps of a Slice, along the dimensions that are not read as they are."""
        chosen = [(2 + d, start, step) for d, (start, step) in enumerate(self.reads) if (start, step) != (0, 1)]
        ends = [_LONG.min if step < 0 else _LONG.max for _, _, step in chosen]
        return [start for _, start, _ in chosen], ends, [axis for axis, _, _ in chosen], [s for _, _, s in chosen]


@dataclass(frozen=True)
class Move:
    """How a weight is made of another: its taps, then input and output channels of each group in each other's place."""

    taps: Taps
    groups: int

    def of(self, weight: np.ndarray) -> np.ndarray:
        read = self.taps.of(weight)
        out, into, *kernel = read.shape
        split = read.reshape(self.groups, out // self.groups, into, *kernel)
        return split.swapaxes(1, 2).reshape(self.groups * into, out // self.groups, *kernel)


def weights_once(model: Any) -> None:
    """Replace the initializers of an onnx_ir.Model that others give by operators on those, in place."""
    graph = model.graph
    kept: dict[Any, list[tuple[Any, np.ndarray]]] = {}
    for value in sorted(graph.initializers.values(), key=lambda v: -_size(v)):  # what is read in part is larger
        if _size(value) < LEAST or value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            continue
        array = value.const_value.numpy()
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


def _moves(weight: np.ndarray, wanted: np.ndarray) -> Iterator[Move | None]:
    """The moves that make one weight of another, bit by bit; None where it is the same."""
    if weight.shape == wanted.shape and np.array_equal(_bits(weight), _bits(wanted)):
        yield None
    if weight.ndim < 2:
        return
    groups, rest = divmod(wanted.shape[0], weight.shape[1])
    if rest or groups * wanted.shape[1] != weight.shape[0]:
        return
    every = [list(_reads(k, n)) for k, n in zip(weight.shape[2:], wanted.shape[2:], strict=True)]
    for reads in itertools.product(*every):
        move = Move(Taps(reads), groups)
        moved = move.of(weight[:, :1]) if groups == 1 else move.of(weight)
        first = wanted[: len(moved)]
        if np.array_equal(_bits(moved), _bits(first)) and (
            groups > 1 or np.array_equal(_bits(move.of(weight)), _bits(wanted))
        ):
            yield move


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


def _derive(graph: Any, value: Any, source: Any, move: Move | None) -> None:
    made = source if move is None else _made(_Tape(graph, value.name), source, move, value)
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
    else:
        wanted = [int(n) for n in value.shape.numpy()]
        split = [move.groups, shape[0] // move.groups, shape[1], *wanted[2:]]
        made = tape.op("Reshape", made, tape.constant(split))
        made = tape.op("Transpose", made, perm=[0, 2, 1, *(d + 1 for d in kernel)])
        made = tape.op("Reshape", made, tape.constant(wanted))
    made.shape, made.dtype = value.shape, value.dtype
    return made


def one_orientation(model: Any) -> None:
    """A Gemm that reads a square matrix transposed, where others read it as it is, gets one that is turned before.

    OpenVINO 2026.4 takes one orientation for both, in silence; that of a matrix with a third dimension it keeps apart.
    """
    made: dict[Any, Any] = {}
    for node in list(model.graph.all_nodes()):
        turned = node.op_type == "Gemm" and node.attributes.get("transB") and node.attributes["transB"].as_int()
        weight = node.inputs[1] if turned else None
        if weight is None or not weight.is_initializer() or not is_square(weight) or len(list(weight.uses())) == 1:
            continue
        if weight not in made:
            made[weight] = _made(_Tape(model.graph, f"{weight.name}_turned"), weight, Move(Taps(()), 1), weight)
        node.replace_input_with(1, made[weight])
        node.attributes["transB"] = ir.AttrInt64("transB", 0)


def is_square(weight: Any) -> bool:
    """A matrix of which no shape tells whether it was transposed."""
    return len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]


class _Tape:
    """Operators at the beginning of a graph, in the order in which they are called."""

    def __init__(self, graph: Any, name: str):
        self.graph, self.names = graph, (f"{name}_by_{i}" for i in itertools.count())
        self.before = next(iter(graph), None)

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        node = ir.Node("", kind, list(inputs), [ir.AttrInt64s(k, v) for k, v in attributes.items()])
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, numbers: list[int]) -> Any:
        tensor = ir.tensor(np.array(numbers, dtype=np.int64), name=next(self.names))
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value
