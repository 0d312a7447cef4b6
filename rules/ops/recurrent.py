"""LSTM, GRU and RNN, unrolled over time: gates frozen, the path through the cell linear.

All three are one recurrence with frozen coefficients k, m, r, e (element-wise, per step):

    c_t = k c_{t-1} + m (W x_t + b_x) + m r (U h_{t-1} + b_h)        h_t = P (e c_t)

LSTM: k = forget gate, m = input gate * tanh(a)/a, r = 1, e = output gate * tanh(c)/c, P the projection if there is one.
GRU: c = h, k = update gate z, m = (1 - z) tanh(a)/a, r = reset gate, e = 1.  RNN: k = 0, m = f(a)/a, r = 1, e = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import Linear
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import Operands, Rows
from omenn_fx.rules.ops.forms import dynamic, quotient

aten = torch.ops.aten
Tensor = torch.Tensor
Maybe = Tensor | None


@dataclass(frozen=True)
class Weights:
    """Parameters of one layer and direction, as torch stores them (gates stacked)."""

    w: Tensor
    u: Tensor
    b_w: Maybe
    b_u: Maybe
    project: Maybe


@dataclass(frozen=True)
class Step:
    """Frozen coefficients of one time step; None stands for 1 (k: for 0)."""

    k: Maybe
    m: Tensor
    r: Maybe
    e: Maybe


@dataclass(frozen=True)
class Pass:
    """One layer in one direction: its steps in the order they run, and the linear path's own weights."""

    w: Tensor
    u: Tensor
    b_w: Maybe
    b_u: Maybe
    project: Maybe
    steps: tuple[Step, ...]
    backwards: bool
    cell: bool  # c is a state of its own (LSTM), not h

    def times(self) -> list[int]:
        return list(range(len(self.steps)))[:: -1 if self.backwards else 1]

    def apply(self, x: Sequence[Maybe], h: Maybe, c: Maybe, bias: bool) -> tuple[list[Maybe], Maybe, Maybe]:
        """The recurrence on tangents: x_t [N, F], h and c [N, H]; None is zero."""
        out: list[Maybe] = [None] * len(self.steps)
        c = c if self.cell else h
        for step, t in zip(self.steps, self.times(), strict=True):
            seen = x[t]
            a = None if seen is None else F.linear(seen, self.w)
            a = _plus(a, self.b_w) if bias else a
            b = None if h is None else F.linear(h, self.u)
            b = _plus(b, self.b_u) if bias else b
            a = _plus(a, _times(b, step.r))
            kept = None if step.k is None else _times(c, step.k)
            c = _plus(kept, _times(a, step.m))
            h = _times(c, step.e)
            if h is not None and self.project is not None:
                h = F.linear(h, self.project)
            out[t] = h
        return out, h, c

    def transpose(self, g: Sequence[Maybe], gh: Maybe, gc: Maybe) -> tuple[list[Maybe], Maybe, Maybe]:
        """The recurrence's transpose: adjoints of out, h_n, c_n -> adjoints of x, h_0, c_0."""
        gx: list[Maybe] = [None] * len(self.steps)
        for step, t in zip(self.steps[::-1], self.times()[::-1], strict=True):
            gh = _plus(g[t], gh)
            if gh is not None and self.project is not None:
                gh = torch.matmul(gh, self.project)
            gc = _plus(gc, _times(gh, step.e))
            ga = _times(gc, step.m)
            gb = _times(ga, step.r)
            gx[t] = None if ga is None else torch.matmul(ga, self.w)
            gh = None if gb is None else torch.matmul(gb, self.u)
            gc = None if step.k is None else _times(gc, step.k)
        return (gx, gh, gc) if self.cell else (gx, _plus(gh, gc), None)

    def magnitude(self) -> Pass:
        size: Any = {name: _abs(getattr(self, name)) for name in ("w", "u", "b_w", "b_u", "project")}
        steps = tuple(Step(_abs(s.k), torch.abs(s.m), _abs(s.r), _abs(s.e)) for s in self.steps)
        return replace(self, steps=steps, **size)


def _plus(a: Maybe, b: Maybe) -> Maybe:
    return b if a is None else a if b is None else a + b


def _times(a: Maybe, b: Maybe) -> Maybe:
    return a if a is None or b is None else a * b


def _abs(a: Maybe) -> Maybe:
    return None if a is None else torch.abs(a)


# Freezing the gates --------------------------------------------------------------------------------------------------

Freeze = Callable[[Tensor, Tensor, Tensor], tuple[Step, Tensor, Tensor]]


def _lstm_step(a: Tensor, b: Tensor, c: Tensor) -> tuple[Step, Tensor, Tensor]:
    """a = W x + b_x, b = U h + b_h, gates stacked i, f, g, o -> the step, h (before projection) and c."""
    i, f, candidate, o = parts((a + b).chunk(4, 1), 4)
    i, f, o = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
    g = torch.tanh(candidate)
    c = f * c + i * g
    squashed = torch.tanh(c)
    return Step(f, i * quotient(g, candidate, 1.0), None, o * quotient(squashed, c, 1.0)), o * squashed, c


def _gru_step(a: Tensor, b: Tensor, h: Tensor) -> tuple[Step, Tensor, Tensor]:
    """Gates stacked r, z, n."""
    ar, az, an = parts(a.chunk(3, 1), 3)
    br, bz, bn = parts(b.chunk(3, 1), 3)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    candidate = an + r * bn
    n = torch.tanh(candidate)
    h = (1 - z) * n + z * h
    return Step(z, (1 - z) * quotient(n, candidate, 1.0), r, None), h, h


def _rnn_step(f: Callable[[Tensor], Tensor], slope: float) -> Freeze:
    def step(a: Tensor, b: Tensor, h: Tensor) -> tuple[Step, Tensor, Tensor]:
        candidate = a + b
        h = f(candidate)
        return Step(None, quotient(h, candidate, slope), None, None), h, h

    return step


def parts(pieces: Sequence[Tensor], count: int) -> list[Any]:
    """The tensors of a tuple whose length is known: to iterate over a traced one finds out all shapes before it."""
    return [pieces[i] for i in range(count)]


@dataclass(frozen=True)
class Kind:
    """What tells LSTM, GRU and RNN apart."""

    freeze: Freeze
    rows: tuple[int, int] | None  # which block of the stacked gates is the linear path: (index, of how many)
    cell: bool = False

    def linear_path(self, stacked: Maybe) -> Maybe:
        if stacked is None or self.rows is None:
            return stacked
        return stacked.chunk(self.rows[1], 0)[self.rows[0]]


class Network:
    """All layers and directions, frozen at one input. Tensors are time-major: [T, N, F]."""

    def __init__(self, kind: Kind, x: Tensor, h0: Tensor, c0: Maybe, weights: list[Weights], directions: int):
        self.directions, self.cell = directions, kind.cell
        self.length, self.layers = int(x.shape[0]), len(weights) // directions
        self.passes: list[Pass] = []
        steps = parts(x.unbind(0), self.length)
        for layer in range(self.layers):
            outs = []
            for direction in range(directions):
                at = layer * directions + direction
                made, out = self._freeze(kind, steps, h0[at], h0[at] if c0 is None else c0[at], weights[at], direction)
                self.passes.append(made)
                outs.append(out)
            steps = [torch.cat(pair, -1) if len(pair) > 1 else pair[0] for pair in zip(*outs, strict=True)]

    def _freeze(
        self, kind: Kind, x: list[Tensor], h: Tensor, c: Tensor, p: Weights, direction: int
    ) -> tuple[Pass, list[Tensor]]:
        made: list[Step] = []
        out: list[Any] = [None] * len(x)
        for t in list(range(len(x)))[:: -1 if direction else 1]:
            step, h, c = kind.freeze(F.linear(x[t], p.w, p.b_w), F.linear(h, p.u, p.b_u), c)
            h = h if p.project is None else F.linear(h, p.project)
            made.append(step)
            out[t] = h
        w, u, b_w, b_u = (kind.linear_path(v) for v in (p.w, p.u, p.b_w, p.b_u))
        assert w is not None
        assert u is not None
        return Pass(w, u, b_w, b_u, p.project, tuple(made), bool(direction), kind.cell), out

    def apply(self, operands: Sequence[Maybe], bias: bool = False) -> tuple[Maybe, Maybe, Maybe]:
        """Input, h_0 and c_0 -> output, h_n and c_n; None is zero."""
        x, h0, c0 = operands
        steps: list[Maybe] = [None] * self.length if x is None else parts(x.unbind(0), self.length)
        last_h, last_c = [], []
        for layer in range(self.layers):
            outs = []
            for direction in range(self.directions):
                at = layer * self.directions + direction
                h, c = (None if s is None else s[at] for s in (h0, c0))
                out, h, c = self.passes[at].apply(steps, h, c, bias)
                outs.append(out)
                last_h.append(h)
                last_c.append(c)
            steps = [_joined(pair) for pair in zip(*outs, strict=True)]
        return _stacked(steps), _stacked(last_h), _stacked(last_c)

    def transpose(self, results: Sequence[Maybe]) -> tuple[Maybe, Maybe, Maybe]:
        """Adjoints of output, h_n and c_n -> adjoints of input, h_0 and c_0."""
        g, gh, gc = results
        steps: list[Maybe] = [None] * self.length if g is None else parts(g.unbind(0), self.length)
        first_h: list[Maybe] = [None] * len(self.passes)
        first_c: list[Maybe] = [None] * len(self.passes)
        for layer in reversed(range(self.layers)):
            below: list[Maybe] = [None] * self.length
            for direction in range(self.directions):
                at = layer * self.directions + direction
                own = [None if s is None else s.chunk(self.directions, -1)[direction] for s in steps]
                h, c = (None if s is None else s[at] for s in (gh, gc))
                gx, first_h[at], first_c[at] = self.passes[at].transpose(own, h, c)
                below = [_plus(a, b) for a, b in zip(below, gx, strict=True)]
            steps = below
        return _stacked(steps), _stacked(first_h), _stacked(first_c)

    def magnitude(self) -> Network:
        copy = object.__new__(Network)
        copy.__dict__.update(self.__dict__, passes=[p.magnitude() for p in self.passes])
        return copy


def _joined(pair: tuple[Maybe, ...]) -> Maybe:
    """The two directions side by side; a direction that is zero everywhere is filled in."""
    some = next((p for p in pair if p is not None), None)
    if some is None or len(pair) == 1:
        return some
    return torch.cat([torch.zeros_like(some) if p is None else p for p in pair], -1)


def _stacked(steps: Sequence[Maybe]) -> Maybe:
    some = next((s for s in steps if s is not None), None)
    if some is None:
        return None
    return torch.stack([torch.zeros_like(some) if s is None else s for s in steps], 0)


# The rule ------------------------------------------------------------------------------------------------------------


class Recurrence(Linear):
    """W from one operand (0: input, 1: h_0, 2: c_0) to one result (0: out, 1: h_n, 2: c_n)."""

    def __init__(self, network: Network, operand: int, result: int, batch_first: bool, shape: Shape, like: Tensor):
        self.network, self.operand, self.result = network, operand, result
        self.batch_first, self.shape, self.like = batch_first, shape, like

    def _turned(self, value: Tensor, which: int) -> Tensor:
        return value.transpose(0, 1) if self.batch_first and which == 0 else value

    def apply(self, u: Tensor) -> Tensor:
        operands: list[Maybe] = [None, None, None]
        operands[self.operand] = self._turned(u, self.operand)
        result = self.network.apply(operands)[self.result]
        return self.like * 0 if result is None else self._turned(result, self.result)

    def transpose(self, g: Tensor) -> Tensor:
        results: list[Maybe] = [None, None, None]
        results[self.result] = self._turned(g, self.result)
        adjoint = self.network.transpose(results)[self.operand]
        if adjoint is None:
            return g.new_zeros(tuple(self.shape))
        return self._turned(adjoint, self.operand)

    def carry(self, mass: Mass) -> Mass:
        """Mass at a time step stays there; that of a final state goes to all time steps alike."""
        batch = 0 if self.batch_first and self.result == 0 else 1
        if self.operand == 0 and self.result == 0:
            total = mass.collapsed(-1)
            value = Even(total.value, total.even - {2}).dense([*mass.shape[:2], 1])
            return Mass((Even(value, frozenset({2})),), self.shape)
        value = mass.dense().sum([d for d in range(3) if d != batch])
        at = 0 if self.batch_first and self.operand == 0 else 1
        value = value[:, None, None] if at == 0 else value[None, :, None]
        return Mass((Even(value, frozenset({0, 1, 2} - {at})),), self.shape)

    def magnitude(self) -> Linear:
        return Recurrence(self.network.magnitude(), self.operand, self.result, self.batch_first, self.shape, self.like)


def _all_but_samples(operands: Operands, slot: Slot, ndim: int) -> set[int]:
    """Samples are dimension 1, or 0 of an input with batch_first; an input without samples is one."""
    samples = 0 if operands["batch_first"] and slot.name == "input" else 1
    return set(range(ndim)) - ({samples} if ndim == 3 else set())


SEQUENCES = Rows("along time and features", _all_but_samples)


def _recurrent(op: Any, kind: Kind) -> None:
    states = 2 if kind.cell else 1

    def form(call: Call) -> Affine:
        hx = call["hx"] if kind.cell else [call["hx"]]
        first = call["batch_first"]
        x = call["input"].transpose(0, 1) if first else call["input"]
        weights = _weights(list(call["params"]), call["has_biases"], call["num_layers"], call["bidirectional"])
        network = Network(kind, x, hx[0], hx[1] if kind.cell else None, weights, 1 + call["bidirectional"])
        result = call.output or 0
        terms: dict[Slot, Linear] = {}
        constant: list[Maybe] = [x, *hx, *[None] * (2 - states)]
        for slot in call.content:
            operand = 0 if slot.name == "input" else 1 + (slot.index or 0)
            constant[operand] = None
            terms[slot] = Recurrence(network, operand, result, first, call.shape(slot), call.out)
        bias = network.apply(constant, bias=True)[result]
        if bias is not None and first and result == 0:
            bias = bias.transpose(0, 1)
        return Affine(terms, None if bias is None else Bias(bias))

    dynamic(op, content=("input", "hx"), rows=SEQUENCES, apart=True)(form)


def _weights(params: list[Tensor], biases: bool, layers: int, bidirectional: bool) -> list[Weights]:
    passes = layers * (1 + bidirectional)
    each = len(params) // passes
    groups = [params[i * each : (i + 1) * each] for i in range(passes)]
    made = []
    for group in groups:
        projected = each > 2 + 2 * biases
        b_w, b_u = (group[2], group[3]) if biases else (None, None)
        made.append(Weights(group[0], group[1], b_w, b_u, group[-1] if projected else None))
    return made


_recurrent(aten.lstm.input, Kind(_lstm_step, (2, 4), cell=True))
_recurrent(aten.gru.input, Kind(_gru_step, (2, 3)))
_recurrent(aten.rnn_tanh.input, Kind(_rnn_step(torch.tanh, 1.0), None))
_recurrent(aten.rnn_relu.input, Kind(_rnn_step(torch.relu, 0.0), None))
