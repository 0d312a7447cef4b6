"""Canonical form: batch norms become part of the layer before them, so that a rule set sees one layer.

The weights are made in the graph, of the model's own: a model that is changed or moved stays one model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from omenn_fx.capture.captured import Captured
from omenn_fx.capture.editor import Editor

aten = torch.ops.aten
_LAYERS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip


def fold_batch_norms(captured: Captured) -> Captured:
    """norm(W x + b) = (s W) x + (b - mean) s + beta with s = gamma / sigma. Takes over the graph that it is given."""
    editor, outputs = Editor(captured.module), captured.outputs
    for norm in editor.nodes(aten.batch_norm.default):
        layer = norm.args[0]
        if layer.target not in _LAYERS or len(layer.users) > 1 or layer in outputs or not _of_channels(layer):
            continue
        with editor.before(norm):
            editor.like(layer)
            weight, bias = _folded(editor, norm, layer)
            folded = editor.call(layer.target, layer.args[0], weight, bias, *layer.args[3:])
            outputs = tuple(folded if node is norm else node for node in outputs)
            editor.replace(norm, folded)
    captured.graph.eliminate_dead_code()
    captured.graph.lint()
    captured.module.recompile()
    return replace(captured, outputs=outputs)


def _of_channels(layer: Any) -> bool:
    """Whether its outputs stand in the dimension that a batch norm scales, which is the second one: those of a linear
    layer on [N, C, F] stand in the last."""
    return bool(layer.meta["val"].ndim == layer.args[1].meta["val"].ndim)


def _folded(editor: Editor, norm: Any, layer: Any) -> tuple[fx.Node, fx.Node]:
    """Weight and bias of both together."""
    _, weight, *rest = layer.args
    bias = rest[0] if rest else None
    gamma, beta, mean, variance = norm.args[1:5]
    scale = editor.call(aten.rsqrt.default, editor.call(aten.add.Tensor, variance, norm.args[7]))
    scale = scale if gamma is None else editor.call(aten.mul.Tensor, scale, gamma)
    column = editor.call(aten.reshape.default, scale, [-1, *[1] * (weight.meta["val"].ndim - 1)])
    shift = editor.call(aten.neg.default, mean) if bias is None else editor.call(aten.sub.Tensor, bias, mean)
    shift = editor.call(aten.mul.Tensor, shift, scale)
    shift = shift if beta is None else editor.call(aten.add.Tensor, shift, beta)
    return editor.call(aten.mul.Tensor, weight, column), shift
