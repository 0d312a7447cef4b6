"""The table of rules: which affine form an operator has. Keys are exact OpOverloads, a second registration raises.

A rule is a function from a `Call` (the operator with its operands bound by name, at one input) to the `Affine` form of
its result: h = sum of W_u h_u over the content operands u, plus b. Nothing outside `rules/` and `roles` knows which
rule set is in use.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from omenn_fx.algebra.form import Affine, Call, Form, Op, Slot
from omenn_fx.algebra.layer import Line
from omenn_fx.algebra.linear import Cast, Chain

Tensor = torch.Tensor
Reference = float | tuple[float, ...] | Tensor


@dataclass(frozen=True)
class Rule:
    """One line of a rule set: the form of an operator, and what the roles pass must know of it."""

    op: Op
    form: Form | None
    content: tuple[str, ...] = ()  # operands that may carry content; none: the result never does
    product: bool | tuple[str, ...] = False  # the content operands (or these) multiply each other: roles must choose
    dynamic: bool = False  # W or b depends on the content itself (an activation), not on other operands alone
    total: bool = False  # no operand beside `content` may be held fixed: a call where content reaches one has no form
    gate: bool = False  # the result is a gate or a statistic: in a product it is the coefficient
    passes_gate: bool = False  # the result is a gate if its operands are (views, casts, additions)
    complex: bool = False  # also on complex values, where W^T is the conjugate transpose
    unread: tuple[str, ...] = ()  # operands of which only the shape, dtype or device is read: no value reaches h
    source: bool = False  # turns integer ids into content (embedding)
    layer: str | None = None  # "convolution" or "dense": a layer, where its weights are constant
    sign: str | Callable[[Mapping[str, Any]], str | None] | None = None
    # "positive": the result has no negative values; "rectified": it is max(x, 0), or less; "kept": it has no negative
    # values if its operands have none
    accepts: Callable[[Mapping[str, Any]], bool] | None = None  # which calls have the form, where not all have

    def multiplies(self, slot: Slot) -> bool:
        """Whether an operand is a factor of a product (and not added to it)."""
        return self.product if isinstance(self.product, bool) else slot.name in self.product

    def affine(self, call: Call) -> Affine:
        """The affine form of a call; a rule with one content operand may return just W, or (W, b)."""
        assert self.form is not None
        form = self.form(call)
        if not isinstance(form, Affine):
            linear, bias = form if isinstance(form, tuple) else (form, None)
            form = Affine({call.content[0]: linear}, bias)
        for slot, linear in form.terms.items():
            operand = call.at(slot)
            converted = operand.dtype != call.out.dtype  # type promotion, autocast, and the casts themselves
            if converted and not linear.converts:
                cast = Cast(operand.shape, operand.dtype, call.out.dtype)
                form = replace(form, terms={**form.terms, slot: Chain(linear, cast)})
        return form


def overload(op: Op) -> Op:
    """The exact operator of what a user may have at hand. Raises ValueError where that is not one."""
    packet = getattr(op, "_opoverload", op)  # of torch.library.custom_op
    if isinstance(packet, torch._ops.OpOverloadPacket):
        names = packet.overloads()
        if len(names) != 1:
            raise ValueError(f"{packet} has several overloads, name one: {', '.join(f'{packet}.{n}' for n in names)}")
        return getattr(packet, names[0])
    return packet


def _operands(op: Op, content: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the operands that may carry content, checked against the operator's schema."""
    named = (content,) if isinstance(content, str) else content
    if not isinstance(op, torch._ops.OpOverload):
        if named is None:
            raise ValueError(f"a rule for '{op}', given by name, must say content='its operand'")
        return named
    known = [argument.name for argument in op._schema.arguments]
    unknown = [name for name in named or () if name not in known]
    if unknown:
        raise ValueError(f"{op} has no operand '{unknown[0]}': content is one or more of {', '.join(known)}")
    return named or tuple(a.name for a in op._schema.arguments if "Tensor" in str(a.type))[:1]


@dataclass
class RuleSet:
    """A named table of rules; a composite also treats layers by what they are and where they stand.

    Attributes:
        doc: what it is, and the source.
        table: operator -> its rule.
        base: the set that it reads where its own table has nothing.
        lines: (condition, treatment), the first condition that a layer meets decides. See `omenn_fx.rules.sets`.
        same: operators for which the composite's own rule is the form in the table (activations, in LRP).
        folds_norms: batch norms become part of the layer before them.
        reference: an input, whose values at every node its own rules get as `call.reference`: a number for all values,
            one for each channel (dimension 1), or a tensor that broadcasts to one sample; None in sets without one.
    """

    name: str
    doc: str = ""
    table: MutableMapping[Op, Rule] = field(default_factory=dict)
    base: RuleSet | None = None
    lines: tuple[Line, ...] = ()
    same: frozenset[Op] = frozenset()
    folds_norms: bool = False
    reference: Reference | None = None

    def filled_by(self, load: Callable[[], object]) -> None:
        """Let `load` register the rules at the first use of the table: importing all of them takes a while."""
        vars(self)["_later"] = vars(self).pop("table"), load

    if not TYPE_CHECKING:  # a class with __getattr__ seems to have every attribute

        def __getattr__(self, name: str) -> Any:
            if name != "table" or "_later" not in vars(self):
                raise AttributeError(f"a rule set has no '{name}'")
            self.table, load = vars(self).pop("_later")
            load()
            return self.table

    def derive(self, name: str, doc: str = "", *lines: Line, **traits: Any) -> RuleSet:
        """A set with this one's rules, in front of which stand its own, and with lines for layers."""
        return RuleSet(name, doc, ChainMap({}, self.table), self, lines, **{"reference": self.reference, **traits})

    def relined(self, *lines: Line, **traits: Any) -> RuleSet:
        """The same rules with other lines for layers."""
        return replace(self, lines=lines, **traits)

    @property
    def own(self) -> MutableMapping[Op, Rule]:
        """The rules of its own, in front of those of its base."""
        return self.table.maps[0] if isinstance(self.table, ChainMap) else self.table

    def says(self, op: Op) -> bool:
        """Whether it has a rule of its own for an operator, in front of the set that it is made from."""
        return self.base is not None and (op in self.own or str(op) in self.own or self.base.says(op))

    def __reduce__(self) -> Any:
        """A set that has a name elsewhere too is sent by it; a composite by its lines; another whole, if it can be."""
        named = _SETS.get(self.name)
        if named is self:
            return rule_set, (self.name,)
        if named is not None and named.table is self.table:
            return _relined, (self.name, self.lines, self._same_names(), self._traits())
        if self.base is not None and not self.own:
            return _derived, (self.base, self.name, self.doc, self.lines, self._same_names(), self._traits())
        return super().__reduce__()

    def _traits(self) -> dict[str, Any]:
        return {"folds_norms": self.folds_norms, "reference": self.reference}

    def _same_names(self) -> frozenset[str]:
        """An operator itself cannot be sent."""
        return frozenset(map(str, self.same))

    def _named(self, names: frozenset[str]) -> frozenset[Op]:
        return frozenset(op for op in self.table if str(op) in names)

    def register(self, *ops: Op, content: str | tuple[str, ...] | None = None, **traits: Any) -> Callable[[Form], Form]:
        """Decorator: the form of one or more operators, a function `Call -> W`, `(W, b)` or `Affine`.

        Args:
            *ops: an OpOverload (`torch.ops.mylib.op.default`), an operator with one overload (`torch.ops.mylib.op`),
                what `torch.library.custom_op` returns, or the name "mylib.op.default" of one that may not be loaded.
            content: the operands that may carry content. Default: the first tensor.
            **traits: the other fields of `Rule`: product, gate, passes_gate, source, accepts.

        Raises:
            ValueError: one already has a rule, has several overloads, or no operand of that name.
        """

        def decorate(form: Form) -> Form:
            for op in map(overload, ops):
                self.add(Rule(op, form, _operands(op, content), **traits))
            return form

        return decorate

    def add(self, rule: Rule) -> None:
        """Add a rule, in front of that of the base. Raises ValueError where the set has one of its own."""
        if rule.op in self.own:
            raise ValueError(f"the rule set '{self.name}' already has a rule for {rule.op}")
        self.table[rule.op] = rule

    def mark(self, *ops: Op, **traits: Any) -> None:
        """Set fields of the rules of several operators."""
        for op in ops:
            self.table[op] = replace(self.table[op], **traits)

    def drop(self, *ops: Op) -> None:
        """Have no rule for operators of the base, so that capture takes them apart."""
        self.own.update(dict.fromkeys(ops))  # type: ignore[arg-type]

    def opaque(self, *ops: Op, **traits: Any) -> None:
        """Operators whose result depends on the input but is never a linear function of it (comparisons, argmax)."""
        for op in map(overload, ops):
            self.add(Rule(op, None, **traits))

    def get(self, op: Op) -> Rule | None:
        """The rule of an operator; one from a library that may not be installed is registered by its name."""
        return self.table.get(op) or self.table.get(str(op))

    def __contains__(self, op: Op) -> bool:
        return self.get(op) is not None

    def __iter__(self) -> Iterator[Rule]:
        return filter(None, self.table.values())


def _derived(base: RuleSet, name: str, doc: str, lines: tuple[Line, ...], same: Any, traits: Any) -> RuleSet:
    return base.derive(name, doc, *lines, same=base._named(same), **traits)


def _relined(name: str, lines: tuple[Line, ...], same: Any, traits: Any) -> RuleSet:
    rules = rule_set(name)
    return rules.relined(*lines, same=rules._named(same), **traits)


omenn = RuleSet("omenn", "exact dynamic-linear forms of the OMENN method (Wróbel et al., arXiv 2412.02399)")
rule = omenn.register
_SETS = {omenn.name: omenn}


def _named() -> dict[str, RuleSet]:
    """The rule sets that have a name; those of `omenn_fx.rules` get theirs when the table of `omenn` is filled."""
    assert omenn.table is not None
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
