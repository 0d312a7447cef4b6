"""Findings: what a check has to say of a model, each with its place, its reason and the way out.

Problems are the errors that `transform` would raise. Warnings are of what is exact but probably not meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import fx

from omenn_fx.analysis.layers import stand_ins
from omenn_fx.analysis.roles import COMPLEX, Tagged
from omenn_fx.analysis.silent import silent, without_part
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.nodes import bind, place_of, producer, slots_of, value_of
from omenn_fx.checking.verdict import (
    CAPTURE,
    DETACHED,
    GATE_OUTPUT,
    INPUTS,
    MIXED_BATCH,
    MUTATION,
    NO_CONTENT,
    NO_RULE,
    NORMALISES,
    NOWHERE,
    OTHER,
    OUTPUT,
    RANDOM,
    REACHED,
    SILENT,
    STANDS_IN,
    TRAIN_MODE,
    UNTRIED,
    Finding,
    Kind,
)
from omenn_fx.errors import (
    CaptureError,
    FoldedBatchError,
    InputError,
    MixedBatchError,
    ModeError,
    NoContentError,
    OmennError,
    OutputError,
    Place,
    UnsupportedOpError,
)

aten = torch.ops.aten


# Problems ------------------------------------------------------------------------------------------------------------

_KINDS: tuple[tuple[type[OmennError], Kind, str], ...] = (
    (CaptureError, CAPTURE, "make the model pass torch.export"),
    (ModeError, TRAIN_MODE, "call model.eval() before"),
    (FoldedBatchError, OTHER, FoldedBatchError.fix),
    (MixedBatchError, MIXED_BATCH, MixedBatchError.fix),
    (
        NoContentError,
        NO_CONTENT,
        "explain an output and inputs (explain=) between which values are passed on linearly",
    ),
    (OutputError, OUTPUT, "name a floating-point output with output="),
    (InputError, INPUTS, "give example_inputs as the model's forward takes them"),
)


def problems(error: OmennError) -> list[Finding]:
    """What an error says: one finding for each operator without a rule, else one."""
    if isinstance(error, UnsupportedOpError):
        return _no_rules(error)
    kind, fix = next(((k, f) for t, k, f in _KINDS if isinstance(error, t)), (OTHER, "see the message"))
    return [Finding(kind, error.places[0] if error.places else NOWHERE, error.reason, error.fix or fix)]


def _no_rules(error: UnsupportedOpError) -> list[Finding]:
    """One for each operator call; where a call itself is what has no rule, one for all of a module's like it."""
    found: list[Finding] = []
    groups: dict[tuple[str, str, str], list[Place]] = {}
    for place in error.places:
        why = error.why.get(place.node, "")
        if why:
            groups.setdefault((place.op if why != COMPLEX else "", place.module, why), []).append(place)
        else:
            found.append(_no_rule(place, error.rule_set))
    return [*found, *(_refused(places, why, error.rule_set) for (_, _, why), places in groups.items())]


def _refused(places: list[Place], why: str, rule_set: str) -> Finding:
    """Calls that the operator's own rule, if it has one, does not hold for."""
    ops = ", ".join(dict.fromkeys(p.op for p in places))
    calls = f" ({len(places)} calls)" if len(places) > 1 else ""
    roles = ", ".join(f'"{p.node}": "coefficient"' for p in places)
    reason = f"the rule set '{rule_set}' cannot explain {ops}{calls}: {why}"
    if why == COMPLEX:
        fix = f"compute with real and imaginary parts (torch.view_as_real), or hold it fixed: roles={{{roles}}}"
    else:
        reason, _, fix = reason.rpartition(": ")
    return Finding(NO_RULE, places[0], reason, fix)


def _no_rule(place: Place, rule_set: str) -> Finding:
    reason = f"the rule set '{rule_set}' has no rule for {place.op}"
    if "dropout" in place.op:
        return Finding(NO_RULE, place, reason, "drop only in training: F.dropout(x, p, self.training)")
    if place.op in ("cond", "while_loop", "scan", "map"):
        return Finding(NO_RULE, place, reason, "compute both ways and choose with torch.where")
    if not place.op.startswith("aten."):
        return Finding(NO_RULE, place, reason, f'give your operator a rule: @omenn_fx.rule("{place.op}", content=...)')
    held = f'roles={{"{place.node}": "coefficient"}}'
    fix = f"write the line with other operators, give the operator a rule with omenn_fx.rule, or hold it fixed: {held}"
    return Finding(NO_RULE, place, reason, fix)


# Warnings ------------------------------------------------------------------------------------------------------------

_DETACHES = {aten.detach.default, aten.detach_.default}
_SHIFTS = {aten.sub.Tensor, aten.sub.Scalar, aten.add.Tensor, aten.add.Scalar, aten.batch_norm.default}
_SCALES = {aten.div.Tensor, aten.div.Scalar, aten.mul.Tensor, aten.mul.Scalar}


def warnings(captured: Captured, tagged: Tagged) -> list[Finding]:
    """What is exact but probably not meant."""
    checks: tuple[Callable[[Captured, Tagged], Iterator[Finding]], ...] = (
        _gate_output,
        _random,
        _mutation,
        _detached,
        _normalises,
        _stand_ins,
        _silent,
    )
    return [finding for check in checks for finding in check(captured, tagged)]


def untried(captured: Captured) -> Finding:
    """That a batch is fixed, and no values are there to try its samples on."""
    reason = (
        f"the batch is fixed at {captured.batch}: whether its samples meet through constants of that size is tried on "
        "values, and a model on the meta device has none"
    )
    return Finding(UNTRIED, NOWHERE, reason, "check the model with its weights, on its own device")


def _gate_output(captured: Captured, tagged: Tagged) -> Iterator[Finding]:
    node = tagged.output
    while tagged.slots.get(node):
        call, _ = producer(node)
        rule = tagged.rules.get(call.target)
        if rule is None:
            return
        operand = dict(slots_of(call, rule))[tagged.slots[node][0]]
        if rule.squashes:
            reason = f"the explained output is the result of {call.target}: its C says what moves a probability"
            fix = f"explain the logits: output='{operand.name}'"
            yield Finding(GATE_OUTPUT, place_of(call), reason, fix)
            return
        if len(tagged.slots[node]) != 1 or not rule.passes_gate or rule.product:
            return
        node = operand


def _random(captured: Captured, tagged: Tagged) -> Iterator[Finding]:
    behind = _ancestors(tagged.output)
    for node in captured.graph.nodes:
        tags = getattr(node.target, "tags", ())
        rule = tagged.rules.get(node.target)
        fixed = rule is not None and rule.form is not None  # attention and recurrences without their dropout
        if node in behind and torch.Tag.nondeterministic_seeded in tags and not fixed:
            reason = f"{node.target} draws new numbers at every call: the explanation is of one draw"
            dropout = "dropout" in str(node.target)
            fix = "drop only in training: F.dropout(x, p, self.training)" if dropout else "make it an input of forward"
            yield Finding(RANDOM, place_of(node), reason, fix)


def _ancestors(output: fx.Node) -> set[fx.Node]:
    found, todo = set[fx.Node](), [output]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _mutation(captured: Captured, tagged: Tagged) -> Iterator[Finding]:
    for name in captured.mutated:
        reason = f"forward writes to '{name}': in the explainer the change is made anew at every call and never kept"
        yield Finding(MUTATION, Place(name), reason, "compute a new tensor instead of writing in place")


def _detached(captured: Captured, tagged: Tagged) -> Iterator[Finding]:
    for node in tagged.content:
        if node.target in _DETACHES:
            reason = "a detach stops gradients, but not values: what flows through it is explained as well"
            fix = f'hold it fixed with roles={{"{node.name}": "coefficient"}}, if that is meant'
            yield Finding(DETACHED, place_of(node), reason, fix)


def _normalises(captured: Captured, tagged: Tagged) -> Iterator[Finding]:
    """A shift of the input by constants, behind scalings by constants (which change no C_w * X)."""
    for name, source in tagged.sources.items():
        node = source
        while source.op == "placeholder":  # an embedding is what it is
            readers = [u for u in node.users if isinstance(value_of(u), torch.Tensor)]
            if len(readers) != 1 or not _by_constants(readers[0], node, tagged):
                break
            node = readers[0]
            if node.target in _SHIFTS:
                reason = f"C is that of the raw '{name}': a value that is 0 before {node.target} has no part by C_w"
                fix = "nothing, if that is meant; else normalise before the model, so that C is that of its input"
                yield Finding(NORMALISES, place_of(node), reason, fix)
                break
            if node.target not in _SCALES:
                break


def _by_constants(node: fx.Node, content: fx.Node, tagged: Tagged) -> bool:
    """Whether an operator reads the content once, as its first operand, and constants beside it."""
    operands = [v for v in bind(node).values() if isinstance(v, fx.Node)]
    constants = operands[1:]
    return operands[:1] == [content] and all(tagged.role[n].value == "constant" and _per_channel(n) for n in constants)


def _per_channel(node: fx.Node) -> bool:
    """A number, or one for each channel: not a table of positions."""
    return len([size for size in value_of(node).shape if size != 1]) <= 1


def _stand_ins(captured: Captured, tagged: Tagged) -> Iterator[Finding]:
    """Operators of which a composite rule set says nothing."""
    base = tagged.rules.base.name if tagged.rules.base is not None else tagged.rules.name
    for op, nodes in stand_ins(tagged).items():
        reason = f"'{tagged.rules.name}' has no rule for {op}: the form of '{base}' stands in, at {len(nodes)} nodes"
        fix = "nothing, if that is meant: the sum is exact either way"
        yield Finding(STANDS_IN, place_of(producer(nodes[0])[0]), reason, fix)


def _silent(captured: Captured, tagged: Tagged) -> Iterator[Finding]:
    """Explained inputs whose C is 0 everywhere, though the output depends on them."""
    for name, node in silent(tagged).items():
        fix = "nothing, if that is meant; explain= with the other inputs alone leaves it out"
        yield Finding(SILENT, place_of(producer(node)[0]), without_part(name, node), fix)


def reached(node: fx.Node) -> Finding:
    """That a row's coefficients are made of other rows."""
    reason = (
        "the output of a row changes with the others of its batch, through coefficients, which are held fixed: C is "
        "exact, but of the row among these others"
    )
    fix = "nothing, if that is meant; else explain one row at a time"
    return Finding(REACHED, place_of(producer(node)[0]), reason, fix)
