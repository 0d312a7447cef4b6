"""Softmax and its logarithm, where their result is content."""

from __future__ import annotations

import math

import torch

from omenn_fx.algebra.form import Bias, Call
from omenn_fx.algebra.linear import Chain, Diagonal, Linear
from omenn_fx.algebra.mass import Mass, Shape
from omenn_fx.algebra.rows import along
from omenn_fx.algebra.ruleset import Variant
from omenn_fx.rules.ops.forms import before, bounded, dynamic, of_exp, only_term

aten = torch.ops.aten
Tensor = torch.Tensor


class FromMean(Linear):
    """W u = u - (the mean of u along `dim`, over what is not masked): softmax does not see a common shift."""

    def __init__(self, weights: Tensor, dim: int, operand: Shape):
        self.weights, self.dim, self.operand = weights, dim, operand

    def apply(self, u: Tensor) -> Tensor:
        return u - (self.weights * u).sum(self.dim, keepdim=True)

    def transpose(self, g: Tensor) -> Tensor:
        return g - self.weights * g.sum(self.dim, keepdim=True)

    def carry(self, mass: Mass) -> Mass:
        return mass.moved(self.operand)

    def magnitude(self) -> Linear:
        return AbsoluteFromMean(self.weights, self.dim, self.operand)


class AbsoluteFromMean(FromMean):
    """|W|: 1 - w where a position reads itself, w elsewhere."""

    def apply(self, u: Tensor) -> Tensor:
        own = self.weights * u
        return (u - own) + (own.sum(self.dim, keepdim=True) - own)

    def transpose(self, g: Tensor) -> Tensor:
        return (1 - self.weights) * g + self.weights * (g.sum(self.dim, keepdim=True) - g)


def of_softmax(s: Tensor, dim: int, shape: Shape) -> Linear:
    """J = diag(s) - s s^T along `dim`, of s = softmax(x)."""
    return Chain(Diagonal(s, shape, shape), FromMean(s, dim, shape))


def softmax_change(logs: Tensor, logs0: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """M and p of s - s0 = diag(M) (I - 1 p^T) (x - x0), and of log sum e^x - log sum e^x0 = p^T (x - x0).

    `logs` is u = log s: e^u - e^u0 = M (u - u0) by the rule of exp, and u - u0 = (x - x0) - (one number for all). That
    s and s0 have the same sum says which number: p^T (x - x0) with p = M / sum M.
    """
    multiplier = bounded(of_exp(torch.exp(logs), torch.exp(logs0), logs - logs0))
    return multiplier, bounded(multiplier / multiplier.sum(dims, keepdim=True))


def of_scores(x: Tensor, x0: Tensor, dim: int, shape: Shape) -> Linear:
    """The multipliers of softmax(x) against softmax(x0)."""
    multiplier, parts = softmax_change(torch.log_softmax(x, dim), torch.log_softmax(x0, dim), [dim])
    return Chain(Diagonal(multiplier, shape, shape), FromMean(parts, dim, shape))


def _change(call: Call) -> Linear:
    x, x0 = (c.x.to(call.out.dtype) for c in (call, before(call)))
    return of_scores(x, x0, call["dim"], call.shape())


def _log_change(call: Call) -> Linear:
    _, parts = softmax_change(call.out, before(call).out, [call["dim"]])
    return FromMean(parts, call["dim"], call.shape())


def _from_mean(call: Call) -> tuple[FromMean, Tensor, Tensor, Tensor]:
    """The map to u = x - mean x; u (0 at -inf); which positions count (1, or 0 where e^u vanishes); log sum e^u.

    The mean is over what counts: a mask, at -inf or at a large negative number, is no part of it.
    """
    x, dim = call.x, call["dim"]
    infinite = torch.isinf(x)
    known = torch.where(infinite, torch.zeros_like(x), x)
    counts = torch.nan_to_num(torch.softmax(x, dim), nan=0.0) > 0  # a row may be masked altogether
    shown = counts.to(x.dtype)
    weights = torch.nan_to_num(shown / shown.sum(dim, keepdim=True), nan=0.0)
    u = torch.where(infinite, known, known - (weights * known).sum(dim, keepdim=True))
    size = torch.logsumexp(torch.where(counts, u, torch.full_like(u, -math.inf)), dim, keepdim=True)
    return FromMean(weights, dim, call.shape()), u, shown, torch.nan_to_num(size, neginf=0.0)


@dynamic(
    aten.softmax.int, aten._softmax.default, aten._safe_softmax.default,
    gate=True, kind="softmax", squashes=True, sign="positive", rows=along("dim"),
    derivative=Variant(only_term(lambda call: of_softmax(call.out, call["dim"], call.shape()))),
    difference=Variant(only_term(_change)),
)  # fmt: skip
def _softmax(call: Call) -> tuple[Linear, Bias]:
    """softmax(x) = e^u / Z with u = x - mean x: diag((e^u - 1) / (u Z)) (I - mean) x + 1 / Z, Z frozen; masked: 0.

    Anchored at the mean, the top class has weights as all others have; at the maximum it would be all bias.
    """
    centre, u, shown, size = _from_mean(call)
    base = torch.exp(-size)  # 1 / Z <= 1 / n
    near = torch.clamp(u, -1.0, 1.0)
    close = base * torch.nan_to_num(torch.expm1(near) / near, nan=1.0)
    far = (torch.exp(u - size) - base) / torch.where(near == u, torch.ones_like(u), u)
    ratio = torch.where(near == u, close, far)
    return Chain(Diagonal(ratio * shown, call.shape(), call.shape()), centre), Bias(base * shown)


@dynamic(
    aten.log_softmax.int, aten._log_softmax.default,
    squashes=True, rows=along("dim"),
    derivative=Variant(only_term(lambda call: FromMean(torch.exp(call.out), call["dim"], call.shape()))),
    difference=Variant(only_term(_log_change)),
)  # fmt: skip
def _log_softmax(call: Call) -> tuple[Linear, Bias]:
    """log softmax(x) = u - log Z with u = x - mean x, Z frozen."""
    centre, _, _, size = _from_mean(call)
    return centre, Bias(-size * (1 - torch.isinf(call.x).to(size.dtype)))
