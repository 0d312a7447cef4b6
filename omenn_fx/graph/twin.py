"""The affine twin: every content node in its form h = sum of W_u h_u + b, at one set of values.

The same code serves both uses. On tensors it computes (`AffineMap`, the tests, `validate`); on the values of a graph
being traced it builds the explainer graph. There is no second implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from omenn_fx.algebra.bias_policy import Policy, carrier
from omenn_fx.algebra.form import Affine, Call
from omenn_fx.algebra.mass import Mass
from omenn_fx.analysis.roles import Tagged
from omenn_fx.capture.nodes import bind, place_of, producer, slots_of
from omenn_fx.errors import NodeError, OmennError

Scope = Callable[[fx.Node, str], AbstractContextManager[Any]]


@contextmanager
def at_node(node: fx.Node) -> Iterator[None]:
    """What a rule raises becomes a NodeError, which names the node and the user's line; our own errors stay."""
    try:
        yield
    except OmennError:
        raise
    except Exception as error:
        raise NodeError(place_of(producer(node)[0]), error) from error


@dataclass
class Pulled:
    """What a walk back from the output leaves: adjoints, bias shares, and the mass carried to the sources."""

    adjoint: dict[fx.Node, Any]  # at the sources
    shares: dict[fx.Node, Mass]  # beta_v = g_v * b_v at v's own positions
    carried: dict[fx.Node, Mass]  # at the sources
    afoot: set[fx.Node]  # whose shares are in what is carried


class Twin:
    """Affine forms of a tagged graph at given values, with the two walks over them."""

    def __init__(self, tagged: Tagged, values: Mapping[fx.Node, Any], scope: Scope | None = None):
        self.tagged, self.values = tagged, values
        self.scope: Scope = scope or (lambda node, phase: nullcontext())
        self._forms: dict[fx.Node, tuple[Call, Affine]] = {}

    def operands(self, node: fx.Node) -> dict[Any, fx.Node]:
        """Slot -> operand node, for the content operands of a node."""
        call, _ = producer(node)
        rule = self.tagged.rules.get(call.target)
        assert rule is not None
        slots = dict(slots_of(call, rule))
        return {slot: slots[slot] for slot in self.tagged.slots[node]}

    def form(self, node: fx.Node) -> tuple[Call, Affine]:
        """The call at a node and its affine form."""
        if node not in self._forms:
            call = self._call(node, {})
            rule = self.tagged.rules.get(call.op)
            assert rule is not None
            if self.tagged.reference and self.tagged.rules.says(call.op):
                call = replace(call, reference=self._call(node, self.tagged.reference))
            form, treatment = rule.affine(call), self.tagged.treatments.get(node)
            self._forms[node] = call, form if treatment is None else treatment(call, form)
        return self._forms[node]

    def _call(self, node: fx.Node, moved: Mapping[fx.Node, fx.Node]) -> Call:
        """The call at a node, with the values of other nodes in the place of some."""
        origin, output = producer(node)
        operands = fx.map_arg(bind(origin), lambda n: self.values[moved.get(n, n)])
        return Call(origin.target, operands, self.values[moved.get(node, node)], self.tagged.slots[node], output)

    def push(self, tangents: Mapping[fx.Node, Any], until: fx.Node, bias: bool = False) -> Any:
        """Walk forwards to a node: W applied to tangents (and b added); None where nothing reaches it.

        A node with a tangent keeps it, whatever reaches it.
        """
        reached: dict[fx.Node, Any] = dict(tangents)
        for node in self.tagged.content:
            if node in reached or node in self.tagged.sources.values():
                continue
            call, form = self.form(node)
            total: Any = None
            for slot, operand in self.operands(node).items():
                if operand in reached:
                    term = form.terms[slot].apply(reached[operand])
                    total = term if total is None else total + term
            if bias and form.bias is not None:
                b = form.bias.dense(call.out)
                total = b if total is None else total + b
            if total is not None:
                reached[node] = total
            if node is until:
                break
        return reached.get(until)

    def pull(
        self,
        cotangents: Mapping[fx.Node, Any],
        policy: Policy | None = None,
        shares: bool = True,
        stop: frozenset[fx.Node] = frozenset(),
    ) -> Pulled:
        """Walk back: adjoints W^T g, bias shares, and with a policy the bias mass on its way to the sources."""
        g: dict[fx.Node, Any] = dict(cotangents)
        mass: dict[fx.Node, Mass] = {}
        pulled = Pulled({}, {}, {}, set())
        for node in reversed(self.tagged.content):
            if node not in g:
                continue
            if node in self.tagged.sources.values() or node in stop:
                pulled.adjoint[node] = g.pop(node)
                if node in mass:
                    pulled.carried[node] = mass.pop(node)
                continue
            adjoint = g.pop(node)
            call, form = self._scoped_form(node)
            operands = self.operands(node)
            with self.scope(node, "adjoint"):
                for slot, operand in operands.items():
                    term = form.terms[slot].transpose(adjoint)
                    g[operand] = term if operand not in g else g[operand] + term
            if form.bias is not None and shares:
                with self.scope(node, "bias"):
                    pulled.shares[node] = form.bias.mass(adjoint, call.out.shape, call.out.dtype.is_complex)
                if policy is not None or form.bias.relevance:
                    pulled.afoot.add(node)
                    mass[node] = mass[node] + pulled.shares[node] if node in mass else pulled.shares[node]
            if node in mass:
                with self.scope(node, "carry"):
                    for slot, piece in (policy or carrier)(call, form, mass.pop(node)).items():
                        target = operands[slot]
                        mass[target] = mass[target] + piece if target in mass else piece
        return pulled

    def _scoped_form(self, node: fx.Node) -> tuple[Call, Affine]:
        with self.scope(node, "form"):
            return self.form(node)


def dense_or_zero(mass: Mass | None, like: Any) -> Any:
    """A carried mass as a tensor of the source's shape."""
    return like * 0 if mass is None else mass.dense()
