"""Which inputs are explained, and which tensor of the model's return value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.analysis.lookups import Lookup, by_sample, carries, lookups
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.integers import as_numbers
from omenn_fx.capture.nodes import modules_of, value_of
from omenn_fx.capture.sizes import hint, known
from omenn_fx.errors import InputError, MixedBatchError, NoContentError, OutputError

Explain = str | int | Sequence[str | int] | None
Output = str | int | Callable[[Any], Any] | None


def select_sources(captured: Captured, rules: RuleSet, explain: Explain) -> dict[str, fx.Node]:
    """Input name -> the node whose value is explained.

    That is the input itself, what its integers look up in a table, or the numbers that they are read as.

    Raises InputError for an unknown input, NoContentError where no input can carry content. Takes over the graph.
    """
    tensors = [n for n in captured.inputs if isinstance(value_of(n), torch.Tensor)]
    if explain is None:
        chosen = [n for n in tensors if value_of(n).dtype.is_floating_point] or tensors
        # Positions counted from a mask are explained only where there is nothing else.
        sources = _named(captured, rules, chosen, counted=False) or _named(captured, rules, chosen, counted=True)
    else:
        wanted = [explain] if isinstance(explain, (str, int)) else list(explain)
        chosen = [_find(captured, tensors, w) for w in wanted]
        sources = _named(captured, rules, chosen, counted=True)
        for node in chosen:
            if not any(name.partition(":")[0] == node.name for name in sources):
                numbers = as_numbers(captured, node, rules)
                if numbers is None:
                    raise InputError(_no_lookup(node, sources))
                sources[node.name] = numbers
    if not sources and explain is None:
        sources = {n.name: cast for n in chosen if (cast := as_numbers(captured, n, rules)) is not None}
    if not sources:
        have = ", ".join(f"{n.name}: {value_of(n).dtype}" for n in tensors) or "no tensors"
        raise NoContentError(
            f"the model has no floating-point input and no embedding of integer ids (inputs: {have}), nor does it read "
            "integers as numbers (by .float() or a division, say): convert them first, x.float(), and explain that"
        )
    return sources


def select_inside(captured: Captured, at: str) -> dict[str, fx.Node]:
    """The node behind a module's path, or of a name: its value is explained in place of the inputs'.

    Raises InputError: there is no such module, or it makes none or several values that are read outside of it.
    """
    named = next((n for n in captured.graph.nodes if n.name == at), None)
    inside = {n for n in captured.graph.nodes if n.op == "call_function" and at in modules_of(n)}
    ends = captured.outputs
    leaving = [n for n in inside if _floats(n) and (n in ends or any(user not in inside for user in n.users))]
    found = leaving if inside else [named] if named is not None and _floats(named) else []
    if len(found) == 1:
        return {at: found[0]}
    if found:
        order = [n.name for n in captured.graph.nodes if n in leaving]
        raise InputError(
            f"at={at!r}: {len(order)} values of this module are read outside of it: {', '.join(order)}. Name one"
        )
    paths = dict.fromkeys(path for n in captured.graph.nodes for path in modules_of(n) if path.count(".") < 2)
    raise InputError(
        f"at={at!r} is no module of the captured model that makes floating-point values, nor the name of such a node "
        f"(explainer.nodes lists them). Modules: {', '.join(paths) or 'none'}"
    )


def _named(captured: Captured, rules: RuleSet, chosen: list[fx.Node], counted: bool) -> dict[str, fx.Node]:
    """The explained values of some inputs by name: 'ids', or 'ids:embedding' and 'ids:embedding_1'; each once."""
    sources: dict[str, fx.Node] = {}
    taken: set[fx.Node] = set()
    for node in chosen:
        found = {v: lookup for v, lookup in _values(captured, rules, node, counted).items() if v not in taken}
        taken.update(found)
        for value, lookup in found.items():
            name = node.name if len(found) == 1 else f"{node.name}:{value.name}"
            sources[name] = value if lookup is None else by_sample(captured, lookup)
            taken.add(sources[name])
    return sources


def _values(captured: Captured, rules: RuleSet, node: fx.Node, counted: bool) -> dict[fx.Node, Lookup | None]:
    """What is explained of an input: itself, or the values that its integers look up. A node inside is what it is."""
    if node.op != "placeholder" or (_floats(node) and carries(captured, rules, node)):
        return {node: None}
    found = {found.node: found for found in lookups(captured, rules, node) if counted or not found.counted}
    return {node: None} if not found and _floats(node) else {**found}


def _find(captured: Captured, tensors: list[fx.Node], wanted: str | int) -> fx.Node:
    """An input by its position or name, or a node inside of the model by its name."""
    if isinstance(wanted, int) and -len(tensors) <= wanted < len(tensors):
        return tensors[wanted]
    inside = [n for n in captured.graph.nodes if n.op == "call_function"]
    node = next((n for n in (*tensors, *inside) if n.name == wanted), None)
    if node is None:
        raise InputError(
            f"explain={wanted!r}: the model's tensor inputs are {', '.join(n.name for n in tensors)}; nor is it the "
            "name of a node inside (explainer.nodes lists them)"
        )
    if node.op != "placeholder" and not _floats(node):
        value = value_of(node)
        held = value.dtype if isinstance(value, torch.Tensor) else "no tensor"
        raise InputError(f"explain={wanted!r}: this node holds {held}; name one that holds floating-point values")
    return node


def _no_lookup(node: fx.Node, sources: Mapping[str, fx.Node]) -> str:
    held = f"input '{node.name}' holds integers ({value_of(node).dtype})"
    others = f" but those of {', '.join(sources)}" if sources else ""
    return f"{held} that no embedding reads{others}, and that nothing reads as numbers (by .float() or a division, say)"


def _floats(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


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
