"""Passes for onnxruntime's CPU kernels, which keep the values between convolutions in blocks of channels.

Whatever is not a convolution, a pool, a sum or a product of equal shapes leaves that layout and comes back. A mask can
be written as a depthwise convolution, the same to the last bit.
"""

from __future__ import annotations

import torch
from torch import fx

from omenn_fx.editor import Editor, shape

aten = torch.ops.aten
HUGE = 3e38  # times the smallest normal float32 it is above 1
_RELUS = (aten.relu.default, aten.relu_.default)


def for_onnxruntime(module: fx.GraphModule) -> fx.GraphModule:
    """Run the passes on a float32 graph, in place."""
    editor = Editor(module)
    for run in (masks, repairs, columns):
        run(editor)
        editor.graph.eliminate_dead_code()
    editor.graph.lint()
    module.recompile()
    return module


def masks(editor: Editor) -> None:
    """sign(relu(x)) = min(HUGE relu(x), 1): a depthwise convolution that onnxruntime fuses with its clip."""
    for node in editor.nodes(aten.sign.default):
        x = node.args[0]
        if x.target not in _RELUS or len(shape(x)) != 4 or x.meta["val"].dtype != torch.float32:
            continue
        channels = int(shape(x)[1])
        with editor.before(x.next):  # beside the forward's own use, while the value is in the cache
            editor.like(node)
            weight = editor.add_constant(torch.full((channels, 1, 1, 1), HUGE))
            mask = editor.call(aten.conv2d.default, x, weight, None, [1, 1], [0, 0], [1, 1], channels)
            clipped = editor.call(aten.clamp.default, mask, 0, 1)
        editor.replace(node, clipped)


def repairs(editor: Editor) -> None:
    """0 / 0 = slope is one comparison of the divisor, where nan_to_num takes eight operators; x must be finite."""
    for node in editor.nodes(aten.nan_to_num.default):
        quotient, *values = node.args
        values += [node.kwargs[k] for k in ("nan", "posinf", "neginf") if k in node.kwargs]
        if quotient.target is not aten.div.Tensor or len(set(values)) != 1 or len(values) != 3:
            continue
        if not isinstance(quotient.args[1], fx.Node):
            continue
        with editor.before(node):
            slope = editor.add_constant(torch.tensor(float(values[0]), dtype=node.meta["val"].dtype))
            origin = editor.call(aten.eq.Scalar, quotient.args[1], 0)
            editor.replace(node, editor.call(aten.where.self, origin, slope, quotient))


def columns(editor: Editor) -> None:
    """A product with a constant vector is faster as one with a matrix of one column."""
    for node in editor.nodes(aten.matmul.default):
        vector = editor.constant(node.args[1])
        if vector is None or vector.ndim != 1 or len(shape(node.args[0])) < 2:
            continue
        with editor.before(node):
            product = editor.call(aten.matmul.default, node.args[0], editor.add_constant(vector[:, None]))
            editor.replace(node, editor.call(aten.squeeze.dim, product, -1))
