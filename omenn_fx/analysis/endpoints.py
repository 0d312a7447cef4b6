"""Which inputs are explained, and which tensor of the model's return value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.integers import as_numbers
from omenn_fx.capture.nodes import bind, value_of
from omenn_fx.capture.sizes import hint, known
from omenn_fx.errors import InputError, MixedBatchError, NoContentError, OutputError

Explain = str | int | Sequence[str | int] | None
Output = str | int | Callable[[Any], Any] | None


def select_sources(captured: Captured, rules: RuleSet, explain: Explain) -> dict[str, fx.Node]:
    """Input name -> the node whose value is explained: the input itself, the embedding of integer ids, or the numbers.

    Raises InputError for an unknown input, NoContentError where no input can carry content.
    """
    tensors = [n for n in captured.inputs if isinstance(value_of(n), torch.Tensor)]
    if explain is None:
        chosen = [n for n in tensors if value_of(n).dtype.is_floating_point] or tensors
    else:
        wanted = [explain] if isinstance(explain, (str, int)) else list(explain)
        chosen = [_find(tensors, w) for w in wanted]
    sources: dict[str, fx.Node] = {}
    for node in chosen:
        if value_of(node).dtype.is_floating_point:
            sources[node.name] = node
            continue
        embeddings = [n for n in captured.graph.nodes if _embeds(n, node, rules)]
        for embedding in embeddings:
            sources[node.name if len(embeddings) == 1 else f"{node.name}:{embedding.name}"] = embedding
        if explain is not None and not embeddings:
            sources[node.name] = _numbers(captured, node, rules)
    if not sources and explain is None:
        sources = {n.name: cast for n in chosen if (cast := as_numbers(captured, n, rules)) is not None}
    if not sources:
        have = ", ".join(f"{n.name}: {value_of(n).dtype}" for n in tensors) or "no tensors"
        raise NoContentError(
            f"the model has no floating-point input and no embedding of integer ids (inputs: {have}), nor does it read "
            "integers as numbers (by .float() or a division, say): convert them first, x.float(), and explain that"
        )
    return sources


def _numbers(captured: Captured, node: fx.Node, rules: RuleSet) -> fx.Node:
    cast = as_numbers(captured, node, rules)
    if cast is None:
        raise InputError(
            f"input '{node.name}' holds integers ({value_of(node).dtype}) that no embedding reads, and that nothing "
            "reads as numbers (by .float() or a division, say)"
        )
    return cast


def _find(tensors: list[fx.Node], wanted: str | int) -> fx.Node:
    if isinstance(wanted, int) and -len(tensors) <= wanted < len(tensors):
        return tensors[wanted]
    for node in tensors:
        if node.name == wanted:
            return node
    raise InputError(f"explain={wanted!r}: the model's tensor inputs are {', '.join(n.name for n in tensors)}")


def _embeds(node: fx.Node, source: fx.Node, rules: RuleSet) -> bool:
    """An embedding whose ids come from the source through views and casts alone (not positions computed from it)."""
    rule = rules.get(node.target)
    if rule is None or not rule.source:
        return False
    at: Any = bind(node)["indices"]
    while at is not source:
        moved = isinstance(at, fx.Node) and (r := rules.get(at.target)) is not None and r.passes_gate
        if not moved or len(at.all_input_nodes) != 1:
            return False
        at = at.all_input_nodes[0]
    return True


def select_output(captured: Captured, output: Output) -> fx.Node:
    """The node of the explained output tensor. Raises OutputError where there is none, or no batch dimension."""
    leaves = captured.outputs
    if callable(output):
        picked = output(pytree.tree_unflatten(leaves, captured.out_spec))
    elif output is None:
        picked = _default(captured)
    else:
        structure = pytree.tree_unflatten(leaves, captured.out_spec)
        try:
            picked = (
                structure[output]
                if isinstance(output, int) or isinstance(structure, dict)
                else getattr(structure, output)
            )
        except (KeyError, IndexError, AttributeError, TypeError):
            named = [n for n in captured.graph.nodes if n.name == output]
            if not named:
                raise OutputError(
                    f"output={output!r} is not part of what the model returns: {_describe(captured)}; nor is it the "
                    "name of a node (explainer.nodes lists them)"
                ) from None
            picked = named[0]
    value = value_of(picked)
    if not isinstance(picked, fx.Node) or not isinstance(value, torch.Tensor):
        raise OutputError(f"the explained output is no tensor the model computes; it returns {_describe(captured)}")
    if not value.dtype.is_floating_point:
        raise OutputError(f"the explained output '{picked.name}' holds {value.dtype}: explain the logits it comes from")
    if captured.batch is None:
        return picked
    if value.ndim and not known(value.shape[:1]):
        raise OutputError(
            f"the number of rows of the explained output '{picked.name}' depends on data, not on the batch: mask "
            "values with torch.where instead of leaving rows out"
        )
    if value.ndim == 0 or hint(value.shape[0]) != hint(captured.batch):
        raise OutputError(
            f"the explained output '{picked.name}' of shape {tuple(map(hint, value.shape))} has no batch dimension: "
            f"expected [N, ...] with one row for each of the {hint(captured.batch)} inputs, like logits",
            fix=MixedBatchError.fix,
        )
    return picked


def _default(captured: Captured) -> Any:
    """The logits: the only tensor, the one named so, or the first floating-point tensor with a batch."""
    leaves = captured.outputs
    if len(leaves) == 1:
        return leaves[0]
    structure = pytree.tree_unflatten(leaves, captured.out_spec)
    named = structure.get("logits") if isinstance(structure, dict) else getattr(structure, "logits", None)
    if isinstance(named, fx.Node):
        return named
    for leaf in leaves:
        value = value_of(leaf)
        if (
            isinstance(leaf, fx.Node)
            and isinstance(value, torch.Tensor)
            and value.dtype.is_floating_point
            and value.ndim
        ):
            return leaf
    raise OutputError(f"the model returns no floating-point tensor: {_describe(captured)}")


def _describe(captured: Captured) -> str:
    names = [
        f"{getattr(leaf, 'name', leaf)} {tuple(map(hint, v.shape))}"
        if isinstance(v := value_of(leaf), torch.Tensor)
        else str(leaf)
        for leaf in captured.outputs
    ]
    return f"{captured.out_spec.type.__name__ if captured.out_spec.type else 'a tensor'} of {', '.join(names)}"
