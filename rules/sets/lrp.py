"""Layer-wise relevance propagation as affine forms: building blocks of composites.

LRP gives operand j the relevance R_j = sum over k of (z'_jk / z'_k) R_k, with z'_jk = w'_jk x_j of some weights w' and
z'_k their sum. With R = g * h at every node that is an adjoint like any other, of the map

    W'_kj = w'_jk h_k / z'_k,      b'_k = h_k - sum over j of W'_kj x_j,

so W'(x) x + b' = h holds by construction: what the layer's own bias takes of z'_k, and what the stabiliser takes, is
b', and no relevance is lost. Blocks that pass relevance on whatever the operand's value is (flat, w^2, z^B) have no W':
all of h is b', marked as relevance, which every bias policy carries in the block's own proportions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.layer import Layer
from omenn_fx.algebra.linear import Chain, Diagonal, Linear, Sum
from omenn_fx.algebra.mass import Even, Mass

Tensor = torch.Tensor
Weights = Callable[[Tensor], Tensor]
Bounds = float | tuple[float, ...]  # of all values, or of each channel
STABILISER = 1e-6


def positive(value: Tensor) -> Tensor:
    """max(value, 0)."""
    return torch.clamp(value, min=0)


def negative(value: Tensor) -> Tensor:
    """min(value, 0)."""
    return torch.clamp(value, max=0)


def stabilised(z: Tensor, by: float) -> Tensor:
    """z moved away from 0 by a small number, 0 itself upwards."""
    return z + by * (1 - 2 * (z < 0).to(z.dtype))


@dataclass
class Part:
    """A part of a layer: some of its weights acting on some of its operand, and how much of each z' it takes."""

    linear: Linear
    z: Tensor  # linear(x)
    bias: Tensor | None  # that part of the layer's bias, of a shape that broadcasts to z

    @property
    def whole(self) -> Tensor:
        return self.z if self.bias is None else self.z + self.bias


def only(form: Affine) -> tuple[Slot, Linear]:
    """The one term of a layer."""
    ((slot, linear),) = form.terms.items()
    return slot, linear


def plain(call: Call, form: Affine) -> tuple[Tensor, Any]:
    """The layer as it is: W x, which is the result without its bias, and the bias."""
    bias = None if form.bias is None else form.bias.broadcast(len(call.out.shape))
    return (call.out, None) if bias is None else (call.out - bias, bias)


def signed(call: Call, form: Affine, layer: Layer, up: Weights, down: Weights, absorb: bool = False) -> Part:
    """Weights changed by `up` on positive operands and by `down` on negative ones; the bias changed by `up`."""
    slot, linear = only(form)
    x, bias = call.at(slot), plain(call, form)[1]
    upper, lower = linear.weighted(up), linear.weighted(down)
    changed = None if absorb or bias is None else up(bias)
    if layer.positive:
        return Part(upper, upper.apply(x), changed)
    z = upper.apply(positive(x)) + lower.apply(negative(x))
    above, below = (x > 0).to(x.dtype), (x < 0).to(x.dtype)
    shape = call.shape(slot)
    split = Sum(
        Chain(upper, Diagonal(above, shape, shape)),
        Chain(lower, Diagonal(below, shape, shape)),
    )
    return Part(split, z, changed)


def shared(call: Call, form: Affine, *parts: tuple[Part, Tensor]) -> Affine:
    """Each part with a factor for every position of the result; what they leave of h is the bias."""
    slot, _ = only(form)
    maps, rest = [], call.out
    for part, factor in parts:
        maps.append(Chain(Diagonal(factor, call.out.shape, call.out.shape), part.linear))
        rest = rest - factor * part.z
    return Affine({slot: maps[0] if len(maps) == 1 else Sum(*maps)}, Bias(rest))


@dataclass(frozen=True)
class Epsilon:
    """z'_jk = w_jk x_j, z'_k = h_k + epsilon sign(h_k) (Bach et al. 2015)."""

    epsilon: float = STABILISER

    def __call__(self, call: Call, form: Affine, layer: Layer) -> Affine:
        """See the class."""
        part = Part(only(form)[1], *plain(call, form))
        return shared(call, form, (part, call.out / stabilised(call.out, self.epsilon)))


@dataclass(frozen=True)
class ZPlus:
    """z'_jk = (w_jk x_j)^+ (Montavon et al. 2017); `absorb`: the bias takes no part, its share goes to the operands."""

    absorb: bool = False
    stabiliser: float = STABILISER

    def __call__(self, call: Call, form: Affine, layer: Layer) -> Affine:
        """See the class."""
        part = signed(call, form, layer, positive, negative, self.absorb)
        return shared(call, form, (part, call.out / stabilised(part.whole, self.stabiliser)))


@dataclass(frozen=True)
class AlphaBeta:
    """R_j = sum of (alpha z^+_jk / z^+_k - beta z^-_jk / z^-_k) R_k with alpha - beta = 1 (Bach et al. 2015)."""

    alpha: float = 2.0
    beta: float = 1.0
    stabiliser: float = STABILISER

    def __post_init__(self) -> None:
        if self.alpha - self.beta != 1 or self.beta < 0:
            raise ValueError(f"alpha - beta must be 1 and beta not negative: {self.alpha} - {self.beta}")

    def __call__(self, call: Call, form: Affine, layer: Layer) -> Affine:
        """See the class."""
        up = signed(call, form, layer, positive, negative)
        down = signed(call, form, layer, negative, positive)
        return shared(
            call,
            form,
            (up, self.alpha * call.out / stabilised(up.whole, self.stabiliser)),
            (down, -self.beta * call.out / stabilised(down.whole, self.stabiliser)),
        )


@dataclass(frozen=True)
class Gamma:
    """z'_jk = w_jk x_j + gamma (w_jk x_j)^+ where h_k > 0, and with the negative part where h_k < 0.

    Montavon et al. 2019; for operands of any sign Andeol et al. 2021. At gamma = inf only the favoured part is left: z+
    that follows a negative result by its negative parts, so that no factor h_k / z'_k is above 1.
    """

    gamma: float = 0.25
    stabiliser: float = STABILISER

    def __call__(self, call: Call, form: Affine, layer: Layer) -> Affine:
        """See the class."""
        alone = math.isinf(self.gamma)

        def more(w: Tensor) -> Tensor:
            return positive(w) if alone else w + self.gamma * positive(w)

        def less(w: Tensor) -> Tensor:
            return negative(w) if alone else w + self.gamma * negative(w)

        up = signed(call, form, layer, more, less)
        above = (up, positive(call.out) / stabilised(up.whole, self.stabiliser))
        if layer.rectified:
            return shared(call, form, above)
        down = signed(call, form, layer, less, more)
        if not alone:  # z + gamma (z^+ + z^-) make both
            down = replace(down, z=(2 + self.gamma) * plain(call, form)[0] - up.z)
        return shared(call, form, above, (down, negative(call.out) / stabilised(down.whole, self.stabiliser)))


# Relevance by position -----------------------------------------------------------------------------------------------


class Passes(Linear):
    """No weights: what stands at the result's positions is shared out by `share`, which keeps totals."""

    def __init__(self, call: Call, slot: Slot, share: Callable[[Mass], Mass]):
        self.x, self.out, self.share = call.at(slot), call.out, share

    def apply(self, u: Tensor) -> Tensor:
        return torch.zeros_like(self.out)

    def transpose(self, g: Tensor) -> Tensor:
        return torch.zeros_like(self.x)

    def carry(self, mass: Mass) -> Mass:
        return self.share(mass)

    def magnitude(self) -> Linear:
        return self


def passed(call: Call, form: Affine, share: Callable[[Mass], Mass]) -> Affine:
    """All of h as relevance."""
    slot, _ = only(form)
    return Affine({slot: Passes(call, slot, share)}, Bias(call.out, relevance=True))


@dataclass(frozen=True)
class Flat:
    """Every position that a result reads gets the same (Lapuschkin et al. 2019)."""

    def __call__(self, call: Call, form: Affine, layer: Layer) -> Affine:
        """See the class."""
        return passed(call, form, only(form)[1].carry)


@dataclass(frozen=True)
class WSquare:
    """z'_jk = w_jk^2 (Montavon et al. 2017)."""

    def __call__(self, call: Call, form: Affine, layer: Layer) -> Affine:
        """See the class."""
        slot, linear = only(form)
        squares = linear.weighted(torch.square)
        total = squares.apply(torch.ones_like(call.at(slot)))

        def share(mass: Mass) -> Mass:
            return Mass((Even(squares.transpose(mass.dense() / total)),), call.shape(slot))

        return passed(call, form, share)


def bound(values: Bounds, x: Tensor) -> Tensor:
    """A bound at every position of x [N, C, ...]."""
    if isinstance(values, (int, float)):
        return torch.full_like(x, values)
    channels = torch.tensor(values, dtype=x.dtype, device=x.device)
    return torch.zeros_like(x) + channels.reshape((-1,) + (1,) * (len(x.shape) - 2))


@dataclass(frozen=True)
class ZBox:
    """z'_jk = w_jk x_j - w^+_jk low - w^-_jk high, for inputs between low and high (Montavon et al. 2017)."""

    low: Bounds = -3.0
    high: Bounds = 3.0
    stabiliser: float = STABILISER

    def __call__(self, call: Call, form: Affine, layer: Layer) -> Affine:
        """See the class."""
        slot, linear = only(form)
        x = call.at(slot)
        maps = [(linear, x, 1.0)]
        maps += [(linear.weighted(positive), bound(self.low, x), -1.0)]
        maps += [(linear.weighted(negative), bound(self.high, x), -1.0)]
        z: Any = 0.0
        for map_, value, sign in maps:
            z = z + sign * map_.apply(value)

        def share(mass: Mass) -> Mass:
            whole = mass.dense()
            ratio = whole / stabilised(z, self.stabiliser)
            total: Any = 0.0
            for map_, value, sign in maps:
                total = total + sign * value * map_.transpose(ratio)
            left = Mass((Even(whole - ratio * z),), call.out.shape)  # what the stabiliser took
            return Mass((Even(total),), call.shape(slot)) + linear.carry(left)

        return passed(call, form, share)
