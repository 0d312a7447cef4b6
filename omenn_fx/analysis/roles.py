"""Roles: which values are content, and which coefficients of the affine map are held fixed at this input.

One pass forwards finds the values an explained input reaches through operands that carry content; one pass backwards
from the explained output decides, product by product, which operand is the content. Every such decision is recorded.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal

import torch
from torch import fx

from omenn_fx.algebra.form import Slot
from omenn_fx.algebra.layer import Treated
from omenn_fx.algebra.ruleset import Rule, RuleSet
from omenn_fx.analysis.probe import depends_on_content
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.nodes import bind, is_value, place_of, producer, read_by, slots_of, value_of
from omenn_fx.errors import InputError, NoContentError, UnsupportedOpError

if TYPE_CHECKING:
    import networkx as nx  # imported where a graph is walked: importing omenn_fx should cost little


class Role(str, Enum):
    """What a value is to the explanation."""

    CONSTANT = "constant"  # no explained input reaches it
    CONTENT = "content"  # the affine map acts on it
    COEFFICIENT = "coefficient"  # an explained input reaches it, held fixed at its value


@dataclass(frozen=True)
class Decision:
    """A product of two content values, and what the policy made of it."""

    node: str
    policy: Literal["split", "gate", "override"]
    reason: str


@dataclass(frozen=True)
class Tagged:
    """A captured graph with its roles: everything the affine twin needs to know."""

    captured: Captured
    rules: RuleSet
    sources: Mapping[str, fx.Node]  # explained input -> the node whose value is explained
    output: fx.Node
    role: Mapping[fx.Node, Role]
    slots: Mapping[fx.Node, tuple[Slot, ...]]  # content node -> its content operands
    decisions: tuple[Decision, ...] = ()
    opaque: tuple[tuple[str, str], ...] = ()  # (reader, live operand added as a bias)
    missing: tuple[fx.Node, ...] = ()  # content nodes whose operator has no rule
    treatments: Mapping[fx.Node, Treated] = field(default_factory=dict)  # layers that the rule set treats its own way
    reference: Mapping[fx.Node, fx.Node] = field(default_factory=dict)  # node -> its value at the rule set's reference

    def rule(self, node: fx.Node) -> Rule | None:
        """The rule of the operator behind a content node; None of a source, which needs none."""
        return None if node in self.sources.values() else self.rules.get(producer(node)[0].target)

    def is_dynamic(self, node: fx.Node) -> bool:
        """Whether W or b of a content node depends on the content itself: stated by its rule, or found by trying it."""
        rule = self.rule(node)
        return rule is not None and depends_on_content(node, rule, self.slots[node])

    @property
    def content(self) -> list[fx.Node]:
        """Content nodes in topological order, sources included."""
        return [n for n in self.captured.graph.nodes if self.role.get(n) is Role.CONTENT]

    def require_rules(self) -> None:
        """Raises UnsupportedOpError with every operator that lacks a rule."""
        if self.missing:
            calls = [producer(n)[0] for n in self.missing]
            why = {call.name: reason for call in calls if (reason := refusal(call, self.rules))}
            raise UnsupportedOpError([place_of(call) for call in calls], self.rules.name, why)


def tag(
    captured: Captured,
    rules: RuleSet,
    sources: Mapping[str, fx.Node],
    output: fx.Node,
    overrides: Mapping[str, str] | None = None,
) -> Tagged:
    """Give every node its role.

    `overrides` maps node names, module paths or patterns (fnmatch) to "content" or "coefficient".
    Operators that lack a rule are listed in `missing`. Raises NoContentError where no content path exists.
    """
    return _Tagger(captured, rules, sources, output, overrides or {}).run()


class _Tagger:
    def __init__(
        self,
        captured: Captured,
        rules: RuleSet,
        sources: Mapping[str, fx.Node],
        output: fx.Node,
        overrides: Mapping[str, str],
    ):
        self.captured, self.rules, self.sources, self.output = captured, rules, dict(sources), output
        self.order = {n: i for i, n in enumerate(captured.graph.nodes)}
        self.forced = self._match(overrides)
        self._probed: dict[fx.Node, bool] = {}
        self.live = self._reached()
        self.carrying: set[fx.Node] = set(self.sources.values())
        self._carry()
        self.decisions: list[Decision] = []
        self.opaque: list[tuple[str, str]] = []
        self._gates: dict[fx.Node, bool] = {}

    def run(self) -> Tagged:
        if self.output not in self.carrying:
            raise self._no_content()
        slots = self._decide()
        sources = set(self.sources.values())
        missing = (n for n in self.order if n in slots and n not in sources and self._rule(producer(n)[0]) is None)
        role = {
            n: Role.CONTENT if n in slots else Role.COEFFICIENT if n in self.live else Role.CONSTANT for n in self.order
        }
        return Tagged(
            self.captured,
            self.rules,
            self.sources,
            self.output,
            role,
            slots,
            tuple(self.decisions[::-1]),
            tuple(self.opaque[::-1]),
            tuple(missing),
        )

    def _rule(self, call: fx.Node) -> Rule | None:
        """The rule of an operator, where it has the form of this very call."""
        rule = self.rules.get(call.target)
        if rule is None or (rule.accepts is not None and not rule.accepts(bind(call))):
            return None
        if not rule.complex and rule.form is not None and _any_complex(call):
            return None
        if rule.total and self._reaches_beside(call, rule):
            return None
        return None if rule.fixed and self._depends_on_content(call, rule) else rule

    def _reaches_beside(self, call: fx.Node, rule: Rule) -> bool:
        """Whether content could reach an operand that the rule holds fixed."""
        return any(o in self.carrying for o in read_by(call, rule, besides=rule.content))

    def _depends_on_content(self, call: fx.Node, rule: Rule) -> bool:
        if call not in self._probed:
            content = tuple(slot for slot, _ in slots_of(call, rule))
            self._probed[call] = depends_on_content(call, rule, content)
        return self._probed[call]

    def _match(self, overrides: Mapping[str, str]) -> dict[fx.Node, str]:
        forced: dict[fx.Node, str] = {}
        for pattern, role in overrides.items():
            if role not in ("content", "coefficient"):
                raise InputError(f"roles['{pattern}'] = '{role}': a role is 'content' or 'coefficient'")
            hits = [
                n
                for n in self.captured.graph.nodes
                if fnmatch.fnmatch(n.name, pattern) or fnmatch.fnmatch(place_of(n).module, pattern)
            ]
            if not hits:
                raise InputError(f"roles: no node or module path matches '{pattern}' (explainer.nodes lists them)")
            forced.update((r, role) for n in hits for r in (n, *_results(n)))
        return forced

    def _reached(self) -> set[fx.Node]:
        """Values that an explained input reaches in any way."""
        import networkx as nx

        edges = self._edges()
        live: set[fx.Node] = set()
        for source in self.sources.values():
            live |= {source} | nx.descendants(edges, source)
        return live

    def _edges(self) -> nx.DiGraph:
        """Operand -> result, where the operand's values reach the result."""
        import networkx as nx

        edges = nx.DiGraph()
        edges.add_nodes_from(self.sources.values())
        for node in self.captured.graph.nodes:
            rule = self.rules.get(node.target)
            if is_value(node):
                edges.add_edges_from((operand, node) for operand in read_by(node, rule))
        return edges

    def _carry(self) -> None:
        """Values that content could reach: a floating-point result of a rule with such an operand (or of no rule)."""
        for node in self.captured.graph.nodes:
            if node in self.carrying or node not in self.live or self.forced.get(node) == "coefficient":
                continue
            if not _is_floating(node):
                continue
            call, _ = producer(node)
            rule = self._rule(call)
            operands = call.all_input_nodes if rule is None else [o for _, o in slots_of(call, rule)]
            if any(o in self.carrying or (rule is None and self._holds_carrying(o)) for o in operands):
                self.carrying.add(node)

    def _holds_carrying(self, node: fx.Node) -> bool:
        """A tuple whose operator has no rule, read by operators that have none either."""
        return isinstance(value_of(node), (tuple, list)) and any(o in self.carrying for o in node.all_input_nodes)

    def _decide(self) -> dict[fx.Node, tuple[Slot, ...]]:
        """Walk back from the output and choose each node's content operands."""
        chosen: dict[fx.Node, tuple[Slot, ...]] = {}
        wanted = {self.output}
        for node in reversed(self.captured.graph.nodes):
            if node not in wanted:
                continue
            if node in self.sources.values():
                chosen[node] = ()
                continue
            call, _ = producer(node)
            rule = self._rule(call)
            if rule is None:
                wanted |= {o for o in call.all_input_nodes if o in self.carrying}
                chosen[node] = ()
                continue
            candidates = slots_of(call, rule)
            carrying = [(s, o) for s, o in candidates if o in self.carrying]
            factors = [(s, o) for s, o in carrying if rule.multiplies(s)]
            kept = self._choose(node, factors)
            carrying = [pair for pair in carrying if pair not in factors or pair in kept]
            self.opaque += [
                (node.name, o.name)
                for s, o in candidates
                if o in self.live and o not in self.carrying and not rule.multiplies(s)
            ]
            chosen[node] = tuple(s for s, _ in carrying)
            wanted |= {o for _, o in carrying}
        return chosen

    def _choose(self, node: fx.Node, operands: list[tuple[Slot, fx.Node]]) -> list[tuple[Slot, fx.Node]]:
        """The content operands of a product: a gate or statistic is the coefficient, otherwise both, half each."""
        if len(operands) < 2 or len({o for _, o in operands}) == 1:
            return operands
        forced = [(s, o) for s, o in operands if self.forced.get(o) == "content"]
        if forced and len(forced) < len(operands):
            self.decisions.append(Decision(node.name, "override", f"content by roles: {forced[0][1].name}"))
            return forced
        free = [(s, o) for s, o in operands if not self.is_gate(o)] or operands
        if len(free) < len(operands):
            gates = ", ".join(o.name for s, o in operands if (s, o) not in free)
            self.decisions.append(Decision(node.name, "gate", f"{gates}: a gate or a statistic, held fixed"))
        if len(free) > 1:
            names = " and ".join(o.name for _, o in free)
            self.decisions.append(Decision(node.name, "split", f"{names} all carry content: an equal part to each"))
        return free

    def is_gate(self, node: fx.Node) -> bool:
        """Whether a value comes out of a softmax, a sigmoid-like gate or a norm statistic, through views and shifts."""
        if node not in self._gates:
            call, _ = producer(node)
            rule = self.rules.get(call.target)
            if rule is None or node in self.sources.values():
                self._gates[node] = False
            elif rule.gate:
                self._gates[node] = True
            else:
                live = [o for _, o in slots_of(call, rule) if o in self.live]  # not an index, not a condition
                self._gates[node] = rule.passes_gate and bool(live) and all(self.is_gate(o) for o in live)
        return self._gates[node]

    def _no_content(self) -> NoContentError:
        import networkx as nx

        inputs = ", ".join(self.sources) or "no input"
        if self.output not in self.live:
            return NoContentError(f"the explained output '{self.output.name}' does not depend on {inputs} at all")
        behind = nx.ancestors(self._edges(), self.output)
        stops = [n for n in self.order if n in behind and n in self.live and n not in self.carrying and is_value(n)]
        place = place_of(producer(stops[0] if stops else self.output)[0])
        return NoContentError(
            f"no floating-point path of content leads from {inputs} to the output '{self.output.name}'; content "
            f"ends at {place}",
            place,
        )


def _results(node: fx.Node) -> list[fx.Node]:
    """The results of an operator that returns several: those have roles, not the call."""
    return [user for user in node.users if producer(user)[0] is node and user is not node]


def _is_floating(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and (value.dtype.is_floating_point or value.dtype.is_complex)


def _any_complex(call: fx.Node) -> bool:
    values = (value_of(n) for n in (call, *call.all_input_nodes))
    return any(isinstance(v, torch.Tensor) and v.dtype.is_complex for v in values)


def refusal(call: fx.Node, rules: RuleSet) -> str:
    """Why a call of an operator has no form, although the operator may have one; "" where it has none at all."""
    rule = rules.get(call.target)
    if rule is not None and rule.accepts is not None and not rule.accepts(bind(call)):
        return rule.refuses
    if _any_complex(call) and not (rule is not None and rule.complex):
        return COMPLEX
    return ""


COMPLEX = "it has no rule for complex values"
