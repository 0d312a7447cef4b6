"""Fourier transforms. W^T is the conjugate transpose: the same transform the other way round."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Linear, Weighted
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import along
from omenn_fx.rules.ops.forms import static

aten = torch.ops.aten
Tensor = torch.Tensor


class Fourier(Linear):
    """A transform over `dims` given by itself and its conjugate transpose. Mass is shared evenly over `dims`."""

    converts = True  # between real and complex, by itself

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
        dims: list[int],
        scale: float,
        operand: Shape,
        result: Shape,
    ):
        self.apply, self.transpose = apply, transpose  # type: ignore[method-assign, assignment]
        self.dims, self.scale, self.operand, self.result = dims, scale, operand, result

    def carry(self, mass: Mass) -> Mass:
        return Mass((Even(mass.dense().sum(self.dims, keepdim=True), frozenset(self.dims)),), self.operand)

    def magnitude(self) -> Linear:
        """Every entry of W has the modulus `scale` (a bound, where a half spectrum stands for the whole)."""

        def through(shape: Shape) -> Callable[[Tensor], Tensor]:
            return lambda u: (u.sum(self.dims, keepdim=True) * self.scale).expand(tuple(shape))

        return Weighted(through(self.result), through(self.operand), self.operand, self.result)


def _transform(call: Call) -> tuple[list[int], int]:
    """The transformed dimensions, counted from the front, and the normalisation."""
    return [d % len(call.shape()) for d in call["dim"]], call["normalization"]


def _scale(sizes: list[int], normalization: int) -> float:
    """The modulus of an entry: 1, 1 / sqrt(n) or 1 / n."""
    return math.prod(sizes) ** {0: 0.0, 1: -0.5, 2: -1.0}[normalization]


@static(aten._fft_c2c.default, complex=True, rows=along("dim"))
def _complex_to_complex(call: Call) -> Linear:
    dims, norm = _transform(call)

    def back(g: Tensor) -> Tensor:
        return call.op(g, dims, norm, not call["forward"])

    scale = _scale([call.shape()[d] for d in dims], norm)
    return Fourier(lambda u: call.replay(self=u), back, dims, scale, call.shape(), call.out.shape)


@static(aten._fft_r2c.default, complex=True, rows=along("dim"))
def _real_to_complex(call: Call) -> Linear:
    dims, norm = _transform(call)
    last, shape = dims[-1], call.shape()

    def back(g: Tensor) -> Tensor:
        if call["onesided"]:  # the other half of the spectrum is not read
            behind = [0, 0] * (len(shape) - 1 - last) + [0, shape[last] - call.out.shape[last]]
            g = torch.complex(F.pad(torch.real(g), behind), F.pad(torch.imag(g), behind))
        return torch.real(aten._fft_c2c.default(g, dims, norm, False))

    return Fourier(
        lambda u: call.replay(self=u), back, dims, _scale([shape[d] for d in dims], norm), shape, call.out.shape
    )


@static(aten._fft_c2r.default, complex=True, rows=along("dim"))
def _complex_to_real(call: Call) -> Linear:
    """The half spectrum stands for the whole: all but its first entry (and the last, of an even size) count twice."""
    dims, norm = _transform(call)
    last, size = dims[-1], call["last_dim_size"]
    twice = [2.0 if 0 < k < (size + 1) // 2 else 1.0 for k in range(size // 2 + 1)]

    def back(g: Tensor) -> Tensor:
        weights = torch.tensor(twice, dtype=call.out.dtype, device=call.out.device)
        shape = [1] * len(call.shape())
        shape[last] = -1
        return aten._fft_r2c.default(g, dims, norm, True) * weights.reshape(shape)

    sizes = [size if d == last else call.shape()[d] for d in dims]
    return Fourier(lambda u: call.replay(self=u), back, dims, 2 * _scale(sizes, norm), call.shape(), call.out.shape)
