"""The table of rules: which affine form an operator has. Keys are exact OpOverloads, a second registration raises.

A rule is a function from a `Call` (the operator with its operands bound by name, at one input) to the `Affine` form of
its result: h = sum of W_u h_u over the content operands u, plus b. Nothing outside `rules/` and `roles` knows which
rule set is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from omenn_fx.algebra.aliases import canonical
from omenn_fx.algebra.form import Affine, Call, Form, Op, Slot, dtype_of, in_one_precision
from omenn_fx.algebra.layer import Line
from omenn_fx.algebra.linear import Cast, Chain, Linear
from omenn_fx.algebra.rows import Rows
from omenn_fx.compat import OpOverload, OpOverloadPacket

Tensor = torch.Tensor
F = TypeVar("F", bound=Form)
Reference = float | tuple[float, ...] | Tensor


@dataclass(frozen=True)
class Variant:
    """Another form of an operator, for the rule sets that read it, and the fields of its rule that differ there."""

    form: Form
    traits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """The record of one operator: its forms, and all else that is known of it. What is not stated is found by trying.

    Attributes:
        op: the operator.
        form: its affine form in `omenn`; None for one that content never passes.
        content: operands that may carry content; none: the result never does.
        product: the content operands (or these) multiply each other: roles must choose.
        dynamic: W or b depends on the content itself (an activation), not on other operands alone. None: not stated,
            so the form is tried at two contents of each call.
        fixed: the form serves only calls whose W was found not to depend on the content.
        total: no operand beside `content` may be held fixed: a call where content reaches one has no form.
        gate: the result is a gate or a statistic: in a product it is the coefficient.
        passes_gate: the result is a gate if its operands are (views, casts, additions).
        complex: also on complex values, where W^T is the conjugate transpose.
        unread: operands of which only the shape, dtype or device is read: no value reaches h.
        source: the operand whose integers look up a table, and so become content (embedding).
        parts: operands by name -> the result in other operators, where torch has no decomposition: capture puts them in
            its place (bags of embeddings).
        layer: "convolution" or "dense": a layer, where its weights are constant.
        sign: "positive": the result has no negative values; "rectified": it is max(x, 0), or less; "kept": it has no
            negative values if its operands have none.
        accepts: which calls have the form, where not all have.
        refuses: why the others have none.
        kind: what sets may speak of together: "activation", "max pool", "softmax", "norm", "product", "attention" ...
        squashes: the result is a probability or the like: its logits are what should be explained.
        rows: along which dimensions values meet (`omenn_fx.algebra.rows`). None: not stated: it is tried on two rows.
        derivative: its Jacobian with the remainder as bias, where that is not `form`; "form" where a dynamic form is
            the Jacobian as it stands; "none" where there is one without a formula here. None of a static form: itself.
        difference: its multipliers against a reference (`Call.reference`), where they are not `form`.
        apart: a set that has no form of its own for it has it captured as the operators that it is made of.
    """

    op: Op
    form: Form | None
    content: tuple[str, ...] = ()
    product: bool | tuple[str, ...] = False
    dynamic: bool | None = None
    fixed: bool = False
    total: bool = False
    gate: bool = False
    passes_gate: bool = False
    complex: bool = False
    unread: tuple[str, ...] = ()
    source: str = ""
    parts: Callable[[Mapping[str, Any]], Tensor] | None = None
    layer: str | None = None
    sign: str | Callable[[Mapping[str, Any]], str | None] | None = None
    accepts: Callable[[Mapping[str, Any]], bool] | None = None
    refuses: str = ""
    kind: str = ""
    squashes: bool = False
    rows: Rows | None = None
    derivative: Variant | str | None = None
    difference: Variant | None = None
    apart: bool = False

    def multiplies(self, slot: Slot) -> bool:
        """Whether an operand is a factor of a product (and not added to it)."""
        return self.product if isinstance(self.product, bool) else slot.name in self.product

    def affine(self, call: Call) -> Affine:
        """The affine form of a call; a rule with one content operand may return just W, or (W, b)."""
        assert self.form is not None
        inner = in_one_precision(call, self.unread)
        form = self.form(inner)
        if not isinstance(form, Affine):
            linear, bias = form if isinstance(form, tuple) else (form, None)
            form = Affine({inner.content[0]: linear}, bias)
        terms = {slot: _between(linear, slot, call, inner) for slot, linear in form.terms.items()}
        bias = form.bias
        if bias is not None and inner.out is not call.out and dtype_of(bias.value) == inner.out.dtype:
            bias = replace(bias, value=bias.value.to(call.out.dtype))
        return replace(form, terms=terms, bias=bias)


def _between(linear: Linear, slot: Slot, call: Call, inner: Call) -> Linear:
    """A map that was made in the precision of `inner`, between the operand and the result of a call in their own."""
    operand, own = call.at(slot), inner.at(slot)
    maps = [linear]
    if own.dtype != inner.out.dtype and not linear.converts:  # type promotion, autocast, and the casts themselves
        maps.append(Cast(own.shape, own.dtype, inner.out.dtype))
    if operand.dtype != own.dtype:
        maps.append(Cast(operand.shape, operand.dtype, own.dtype))
    if inner.out.dtype != call.out.dtype:
        maps.insert(0, Cast(call.out.shape, inner.out.dtype, call.out.dtype))
    return linear if len(maps) == 1 else Chain(*maps)


def overload(op: Op) -> Op:
    """The exact operator of what a user may have at hand. Raises ValueError where that is not one."""
    packet = getattr(op, "_opoverload", op)  # of torch.library.custom_op
    if isinstance(packet, OpOverloadPacket):
        names = packet.overloads()
        if len(names) != 1:
            raise ValueError(f"{packet} has several overloads, name one: {', '.join(f'{packet}.{n}' for n in names)}")
        return getattr(packet, names[0])
    return packet


def _operands(op: Op, content: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the operands that may carry content, checked against the operator's schema."""
    named = (content,) if isinstance(content, str) else content
    if not isinstance(op, OpOverload):
        if named is None:
            raise ValueError(f"a rule for '{op}', given by name, must say content='its operand'")
        return named
    known = [argument.name for argument in op._schema.arguments]
    unknown = [name for name in named or () if name not in known]
    if unknown:
        raise ValueError(f"{op} has no operand '{unknown[0]}': content is one or more of {', '.join(known)}")
    return named or tuple(a.name for a in op._schema.arguments if "Tensor" in str(a.type))[:1]


Reading = Callable[[Rule], Rule | None]


class Table(MutableMapping[Op, Rule | None]):
    """Operator -> rule: a set's own rules, in front of those that it reads from another set's table.

    What is read is made when it is asked for, so that a rule that is added to the other table later is here as well. An
    alias of an operator has the rule of the operator. None: an operator that capture is to take apart.
    """

    def __init__(self, base: Mapping[Op, Rule | None] | None = None, reading: Reading | None = None):
        self._own: dict[Op, Rule | None] = {}
        self.base = base if base is not None else {}
        self.reading = reading
        self._read: dict[Op, tuple[Rule, Rule | None]] = {}
        self._load: Callable[[], object] | None = None

    def filled_by(self, load: Callable[[], object]) -> None:
        """Let `load` register the rules at the first use: importing all of them takes a while."""
        self._load = load

    def filled(self) -> None:
        """All rules are there."""
        self._load = None

    @property
    def own(self) -> dict[Op, Rule | None]:
        """The rules of its own."""
        if self._load is not None:
            self._load()  # an import: the thread that makes it passes, any other waits until it is done
        return self._own

    def __getitem__(self, op: Op) -> Rule | None:
        op = canonical(op)
        if op in self.own:
            return self.own[op]
        rule = self.base[op]
        if rule is None or self.reading is None:
            return rule
        if op not in self._read or self._read[op][0] is not rule:
            self._read[op] = rule, self.reading(rule)
        return self._read[op][1]

    def __setitem__(self, op: Op, rule: Rule | None) -> None:
        self.own[canonical(op)] = rule

    def __delitem__(self, op: Op) -> None:
        del self.own[canonical(op)]

    def __iter__(self) -> Iterator[Op]:
        yield from self.own
        yield from (op for op in self.base if op not in self.own)

    def __len__(self) -> int:
        return sum(1 for _ in self)


EVERY_KIND = "*"


@dataclass
class RuleSet:
    """A named table of rules; a composite also treats layers by what they are and where they stand.

    Attributes:
        doc: what it is, and the source.
        table: operator -> its rule.
        base: the set that it reads where its own table has nothing.
        lines: (condition, treatment), the first condition that a layer meets decides. See `omenn_fx.rules.sets`.
        same: kinds of operators (`Rule.kind`) for which the set's own rule is the form in the table (activations, in
            LRP), or EVERY_KIND.
        folds_norms: batch norms become part of the layer before them.
        reference: an input, whose values at every node its own rules get as `call.reference`: a number for all values,
            one for each channel (dimension 1), or a tensor that broadcasts to one sample; None in sets without one.
    """

    name: str
    doc: str = ""
    table: Table = field(default_factory=Table)  # or any mapping, which is copied
    base: RuleSet | None = None
    lines: tuple[Line, ...] = ()
    same: frozenset[str] = frozenset()
    folds_norms: bool = False
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.table, Table):
            rules, self.table = self.table, Table()
            self.table.own.update(rules)

    def derive(self, name: str, doc: str = "", *lines: Line, reading: Reading | None = None, **traits: Any) -> RuleSet:
        """A set with this one's rules, in front of which stand its own, and with lines for layers.

        Args:
            name, doc: of the set.
            *lines: for layers.
            reading: what it makes of this one's rules; None: it takes them as they are.
            **traits: the other fields of `RuleSet`.
        """
        table = Table(self.table, reading)
        return RuleSet(name, doc, table, self, lines, **{"reference": self.reference, **traits})

    def relined(self, *lines: Line, **traits: Any) -> RuleSet:
        """The same rules with other lines for layers."""
        return replace(self, lines=lines, **traits)

    @property
    def own(self) -> MutableMapping[Op, Rule | None]:
        """The rules of its own, in front of those of its base."""
        return self.table.own

    def says(self, op: Op) -> bool:
        """Whether its rule for an operator is another than that of the set that it is made from."""
        return self.base is not None and (self.get(op) is not self.base.get(op) or self.base.says(op))

    def speaks_of(self, rule: Rule) -> bool:
        """Whether the form in the table is what the set means for such an operator."""
        return rule.kind in self.same or EVERY_KIND in self.same

    def __reduce__(self) -> Any:
        """A set that has a name elsewhere too is sent by it; a composite by its lines; another whole, if it can be."""
        named = _SETS.get(self.name)
        if named is self:
            return rule_set, (self.name,)
        if named is not None and named.table is self.table:
            return _relined, (self.name, self.lines, self.same, self._traits())
        plain = self.table.reading is None
        if self.base is not None and plain and not self.own:
            return _derived, (self.base, self.name, self.doc, self.lines, self.same, self._traits())
        return super().__reduce__()

    def _traits(self) -> dict[str, Any]:
        return {"folds_norms": self.folds_norms, "reference": self.reference}

    def register(self, *ops: Op, content: str | tuple[str, ...] | None = None, **traits: Any) -> Callable[[F], F]:
        """Decorator: the form of one or more operators, a function `Call -> W`, `(W, b)` or `Affine`.

        Args:
            *ops: an OpOverload (`torch.ops.mylib.op.default`), an operator with one overload (`torch.ops.mylib.op`),
                what `torch.library.custom_op` returns, or the name "mylib.op.default" of one that may not be loaded.
            content: the operands that may carry content. Default: the first tensor.
            **traits: the other fields of `Rule`: product, gate, passes_gate, dynamic, rows, derivative, accepts ...
                What is not stated is found by trying the form, and the operator, at every call. A derivative or
                difference that is made of the form is given as a function of it.

        Raises:
            ValueError: one already has a rule, has several overloads, or no operand of that name.
        """

        def decorate(form: F) -> F:
            made = {name: traits[name](form) for name in ("derivative", "difference") if callable(traits.get(name))}
            for op in map(overload, ops):
                self.add(Rule(op, form, _operands(op, content), **traits | made))
            return form

        return decorate

    def add(self, rule: Rule) -> None:
        """Add a rule, in front of that of the base. Raises ValueError where the set has one of its own."""
        if canonical(rule.op) in self.own:
            raise ValueError(f"the rule set '{self.name}' already has a rule for {rule.op}")
        self.table[rule.op] = rule

    def change(self, *ops: Op, **traits: Any) -> None:
        """Rules of its own for operators of the base, which differ from it in some fields alone."""
        for op in ops:
            self.add(replace(self[op], **traits))

    def opaque(self, *ops: Op, **traits: Any) -> None:
        """Operators whose result depends on the input but is never a linear function of it (comparisons, argmax)."""
        for op in map(overload, ops):
            self.add(Rule(op, None, **traits))

    def get(self, op: Op) -> Rule | None:
        """The rule of an operator; one from a library that may not be installed is registered by its name."""
        return self.table.get(op) or self.table.get(str(op))

    def __getitem__(self, op: Op) -> Rule:
        rule = self.get(op)
        if rule is None:
            raise KeyError(op)
        return rule

    def __contains__(self, op: Op) -> bool:
        return self.get(op) is not None

    def __iter__(self) -> Iterator[Rule]:
        return filter(None, self.table.values())


def _derived(base: RuleSet, name: str, doc: str, lines: tuple[Line, ...], same: Any, traits: Any) -> RuleSet:
    return base.derive(name, doc, *lines, same=same, **traits)


def _relined(name: str, lines: tuple[Line, ...], same: Any, traits: Any) -> RuleSet:
    return rule_set(name).relined(*lines, same=same, **traits)


omenn = RuleSet("omenn", "exact dynamic-linear forms of the OMENN method (Wróbel et al., arXiv 2412.02399)")
rule = omenn.register
_SETS = {omenn.name: omenn}


def _named() -> dict[str, RuleSet]:
    """The rule sets that have a name; those of `omenn_fx.rules` get theirs when the table of `omenn` is filled."""
    assert omenn.own is not None
    return _SETS


def name_set(rules: RuleSet) -> RuleSet:
    """Make a rule set known by its name. Raises ValueError where the name is taken."""
    if rules.name in _named():
        raise ValueError(f"there is already a rule set '{rules.name}'")
    _SETS[rules.name] = rules
    return rules


def rule_sets() -> list[str]:
    """The names of all rule sets that have one, in order."""
    return sorted(_named())


def rule_set(name: str | RuleSet) -> RuleSet:
    """The rule set of a name. Raises ValueError naming those that exist."""
    if isinstance(name, RuleSet):
        return name
    if name not in _named():
        raise ValueError(f"there is no rule set '{name}'; known: {', '.join(rule_sets())}")
    return _SETS[name]
