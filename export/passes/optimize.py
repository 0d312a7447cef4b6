"""What makes an explainer fast: passes over its exported graph. Each keeps what the graph computes.

They copy weights (folded, flipped, cut into phases), so they run on the way out of the process, where the graph is its
own; the explainer in memory shares its weights with the model.

A pass goes by what an operator means, whatever emitted it, or by a composite (`omenn_fx.algebra.composites`), by which
a rule says what a value is. None goes by how a rule is written.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra import composites
from omenn_fx.capture.editor import Editor, Pass, shape
from omenn_fx.capture.nodes import bind
from omenn_fx.compat import OpOverload
from omenn_fx.export.passes.transposed import CONV, TRANSPOSED, forward_convolutions
from omenn_fx.export.passes.zero_blocks import parts_early, skip_zeros
from omenn_fx.graph.schedule import writes

aten, omenn = torch.ops.aten, torch.ops.omenn
Tensor = torch.Tensor

LARGE = 1 << 16  # elements: no larger constant is made of smaller ones


def optimize(module: fx.GraphModule) -> fx.GraphModule:
    """Run the passes on a graph of ATen operators and composites, in place."""
    return Editor(module).run(PASSES)


def write_out(module: fx.GraphModule) -> fx.GraphModule:
    """Composites that no pass took become calls of their plain torch, in place: the next export traces into it."""
    for node in module.graph.nodes:
        node.target = composites.BODIES.get(node.target, node.target)
    module.recompile()
    return module


def drop_assertions(editor: Editor) -> None:
    """The guards of the export: what runs an explainer checks its inputs itself."""
    for node in list(editor.graph.nodes):
        if "_assert" in str(node.target) or (node.op == "call_module" and not node.users):
            editor.erase(node)


def fold_constants(editor: Editor) -> None:
    """Values of parameters alone become parameters, unless they are much larger than what they are made of."""
    node: Any
    written = _written_constants(editor)
    for node in list(editor.graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or not node.all_input_nodes or not isinstance(value, Tensor) or node in written:
            continue
        constants = {n: editor.constant(n) for n in node.all_input_nodes}
        known = [c for c in constants.values() if c is not None]
        if len(known) < len(constants) or value.numel() > max(LARGE, sum(c.numel() for c in known)):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), constants.__getitem__)
        with torch.no_grad():
            folded = node.target(*args, **kwargs)
        with editor.before(node):
            editor.replace(node, editor.add_constant(folded.clone()))


def _written_constants(editor: Editor) -> set[fx.Node]:
    """What operators that write make of constants, with what they write to: a view cut off from it would miss that."""
    made: set[fx.Node] = set()
    for node in editor.graph.nodes:
        ahead = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and ahead and all(n in made for n in ahead)):
            made.add(node)
    written: set[fx.Node] = set()
    ahead = [n for n in made if n.op == "call_function" and writes(n)]
    while ahead:
        node = ahead.pop()
        if node not in written and node.op == "call_function":
            written.add(node)
            ahead += node.all_input_nodes
    return written


def fold_batch_norms(editor: Editor) -> None:
    """A batch norm behind a convolution scales and shifts its weight and bias."""
    for node in editor.nodes(aten.batch_norm.default):
        convolution = node.args[0]
        if convolution.target not in CONV.values() or len(convolution.users) > 1:
            continue
        x, weight, bias, *geometry = _conv_args(convolution)
        w, b = editor.constant(weight), editor.constant(bias)
        gamma, beta, mean, variance = (editor.constant(a) for a in node.args[1:5])
        if w is None or mean is None or variance is None or (bias is not None and b is None):
            continue
        if len(shape(convolution)) != w.ndim:  # of one image: the norm scales its rows, not its channels
            continue
        scale = (variance + node.args[7]).rsqrt()
        scale = scale if gamma is None else scale * gamma
        shift = -mean * scale if b is None else (b - mean) * scale
        with editor.before(node):
            new_weight = editor.add_constant(w * scale.reshape(-1, *[1] * (w.ndim - 1)))
            new_bias = editor.add_constant(shift if beta is None else shift + beta)
            editor.replace(node, editor.call(convolution.target, x, new_weight, new_bias, *geometry))


def fold_scales(editor: Editor) -> None:
    """(g * scale) W = g (scale W): the batch norm's share of the adjoint goes into the transposed convolution."""
    for node in editor.nodes(*TRANSPOSED):
        weight, (g, scale) = editor.constant(node.args[1]), _scaled(editor, node.args[0])
        if weight is None or scale is None:
            continue
        with editor.before(node):
            scaled = editor.add_constant(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        editor.rewire(node, g, scaled, *node.args[2:])


def _scaled(editor: Editor, node: Any) -> tuple[Any, Tensor | None]:
    """(g, s) of a product g * s with s constant, one number for each channel; s is None for anything else."""
    if not isinstance(node, fx.Node) or node.target is not aten.mul.Tensor:
        return node, None
    value = shape(node)
    for g, factor in (node.args, node.args[::-1]):
        s = editor.constant(factor)
        if s is not None and s.ndim >= len(value) - 1 and s.numel() == value[1] == s.shape[1 - len(value)]:
            return g, s
    return node, None


def pointwise_adjoints(editor: Editor) -> None:
    """The transpose of a pointwise convolution is one with the matrix transposed, where the matrix is constant.

    The scale of a batch norm in front goes into it.
    """
    for node in editor.nodes(omenn.pointwise_adjoint.default):
        (g, scale), weight = _scaled(editor, node.args[0]), editor.constant(node.args[1])
        n = len(shape(node)) - 2
        if weight is None or n not in CONV:
            continue
        matrix = weight.flatten(1).t()
        with editor.before(node):
            kernel = matrix if scale is None else matrix * scale.reshape(1, -1)
            constant = editor.add_constant(kernel.reshape(*matrix.shape, *[1] * n))
            editor.replace(node, editor.call(CONV[n], g, constant))


def sums_over_channels(editor: Editor) -> None:
    """sum_c g[:, c] b[c], the mass of a bias by position, is a convolution to one channel."""
    for node in editor.nodes(omenn.weighted_sum.default):
        g, bias, dim = node.args
        b, n = editor.constant(bias), len(shape(g)) - 2
        if b is None or dim != 1 or n not in CONV:
            continue
        with editor.before(node):
            row = editor.add_constant(b.reshape(1, -1, *[1] * n))
            editor.replace(node, editor.call(aten.squeeze.dim, editor.call(CONV[n], g, row), 1))


def masked_writes(editor: Editor) -> None:
    """A number written where a mask is true is a choice: ONNX has no write by a mask behind other dimensions."""
    for node in editor.nodes(aten.index_put.default):
        x, indices, value, *accumulate = node.args
        masks = [i for i in indices if i is not None]
        if (
            len(masks) != 1
            or masks[0].meta["val"].dtype != torch.bool
            or math.prod(shape(value)) != 1
            or any(accumulate)
        ):
            continue
        (mask,) = masks
        behind = len(shape(x)) - len(indices) - len(shape(mask)) + 1
        with editor.before(node):
            for _ in range(behind):
                mask = editor.call(aten.unsqueeze.default, mask, -1)
            number = editor.call(aten.reshape.default, value, [])
            editor.replace(node, editor.call(aten.where.self, mask, number, x))


def same_views(editor: Editor) -> None:
    """A dimension of 1 that is taken away and put back, or put in and taken away."""
    for node in editor.nodes(aten.unsqueeze.default, aten.squeeze.dim):
        inner = node.args[0]
        if inner.target not in (aten.unsqueeze.default, aten.squeeze.dim) or inner.target is node.target:
            continue
        x, wide = inner.args[0], max(len(shape(node)), len(shape(inner)))
        if len(shape(x)) == len(shape(node)) != len(shape(inner)) and node.args[1] % wide == inner.args[1] % wide:
            editor.replace(node, x)


def share_attention(editor: Editor) -> None:
    """The rule of an attention makes its weights A = softmax(Q K^T): the forward takes A V from the same A."""
    made = {node.args[1:]: node for node in editor.nodes(omenn.attention_weights.default)}
    for node in editor.nodes(aten.scaled_dot_product_attention.default):
        weights = made.get(_attention_of(node))
        if weights is None or bind(node)["dropout_p"] or bind(node)["enable_gqa"]:
            continue
        if list(shape(weights)[:-1]) != list(shape(node)[:-1]):  # the value has further dimensions in front
            continue
        _hoist(editor, weights, node)
        with editor.before(node):
            editor.replace(node, editor.call(aten.matmul.default, weights, node.args[2]))


def _attention_of(node: Any) -> tuple[Any, ...]:
    """Query, key, mask, is_causal and scale: the operands of an attention that its weights depend on."""
    given = bind(node)
    scale = 1 / math.sqrt(shape(given["query"])[-1]) if given["scale"] is None else given["scale"]
    return given["query"], given["key"], given["attn_mask"], given["is_causal"], scale


def share_gates(editor: Editor) -> None:
    """gelu(x) = x r with the ratio r that its rule makes."""
    made = {node.args: node for node in editor.nodes(omenn.gelu_ratio.default)}
    for node in editor.nodes(aten.gelu.default):
        x, ratio = node.args[0], made.get(tuple(bind(node).values()))
        if ratio is None:
            continue
        _hoist(editor, ratio, node)
        with editor.before(node):
            editor.replace(node, editor.call(aten.mul.Tensor, x, ratio))


def _hoist(editor: Editor, node: Any, target: Any) -> None:
    """Move a node and what it is made of in front of another, which none of them reads."""
    order = {n: i for i, n in enumerate(editor.graph.nodes)}
    ahead, moved = [node], set()
    while ahead:
        at = ahead.pop()
        if at not in moved and order[at] > order[target]:
            moved.add(at)
            ahead += at.all_input_nodes
    for at in sorted(moved, key=order.__getitem__):
        target.prepend(at)


def merge_equal_nodes(editor: Editor) -> None:
    """Common subexpressions, computed once."""
    seen: dict[Any, fx.Node] = {}
    for node in list(editor.graph.nodes):
        if not _repeatable(node):
            continue
        key = (node.op, node.target, str(node.args), str(node.kwargs))
        if key in seen:
            editor.replace(node, seen[key])
        else:
            seen[key] = node


def _repeatable(node: Any) -> bool:
    """Whether two such nodes with the same operands have the same value."""
    if node.op == "get_attr" or node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload):
        return False
    return not writes(node) and torch.Tag.nondeterministic_seeded not in node.target.tags


def _conv_args(node: Any) -> list[Any]:
    n = next(n for n, op in CONV.items() if op is node.target)
    defaults: list[Any] = [None, None, None, [1] * n, [0] * n, [1] * n, 1]
    return [*node.args, *defaults[len(node.args) :]]


PASSES: tuple[Pass, ...] = (
    drop_assertions,
    fold_constants,
    merge_equal_nodes,
    fold_batch_norms,
    fold_scales,
    pointwise_adjoints,
    forward_convolutions,
    sums_over_channels,
    masked_writes,
    same_views,
    skip_zeros,
    merge_equal_nodes,
    parts_early,
    share_attention,
    share_gates,
)
