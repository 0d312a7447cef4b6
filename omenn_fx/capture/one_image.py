"""Convolutions of one image without a batch, [C, ...], as of a batch of one: every rule knows its dimensions then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.editor import Editor, shape

aten = torch.ops.aten


def take_as_batches(captured: Captured, rules: RuleSet) -> Captured:
    """A graph whose convolutions all have a batch. Takes over the graph that it is given."""
    alone = [node for node in captured.graph.nodes if _of_one_image(node, rules)]
    if not alone:
        return captured
    editor = Editor(captured.module)
    images = {node: _as_batch(editor, node) for node in alone}
    captured.graph.lint()
    captured.module.recompile()
    outputs = tuple(images.get(one, one) if isinstance(one, fx.Node) else one for one in captured.outputs)
    return replace(captured, outputs=outputs)


def _of_one_image(node: Any, rules: RuleSet) -> bool:
    rule = rules.get(node.target) if node.op == "call_function" else None
    convolves = rule is not None and rule.layer == "convolution"
    return convolves and len(shape(node.args[0])) < len(shape(node.args[1]))


def _as_batch(editor: Editor, node: Any) -> Any:
    """Give a convolution a batch of one, and take it off its result, which all that read it read from then on."""
    with editor.before(node):
        node.args = (editor.call(aten.unsqueeze.default, node.args[0], 0), *node.args[1:])
    with editor.before(node.next):
        editor.like(node)
        wide = editor.call(aten.unsqueeze.default, node, 0)  # for its value's description alone
        node.meta["val"] = wide.meta["val"]
        editor.graph.erase_node(wide)
        image = editor.call(aten.squeeze.dim, node, 0)
    node.replace_all_uses_with(image, delete_user_cb=lambda user: user is not image)
    return image
