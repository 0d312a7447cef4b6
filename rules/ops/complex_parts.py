"""Complex values and their real and imaginary parts.

A complex value counts as its two parts: the inner product is Re <u, v>, so W^T is the conjugate transpose. Bias mass is
real and stands at the complex value's position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from omenn_fx.algebra.form import Affine, Bias, Call, Slot
from omenn_fx.algebra.linear import ComplexDiagonal, Diagonal, Linear, Moves
from omenn_fx.algebra.mass import Even, Mass, Shape
from omenn_fx.algebra.rows import APART
from omenn_fx.rules.ops.forms import static

aten = torch.ops.aten
Tensor = torch.Tensor


class Parts(Linear):
    """W between complex values and real ones; `real` are the maps of magnitudes and masses, which are real."""

    converts = True

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
        real: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
        operand: Shape,
        carry: Callable[[Tensor], Tensor] | None = None,
    ):
        self.apply, self.transpose = apply, transpose  # type: ignore[method-assign, assignment]
        self.real, self.operand, self._carry = real, operand, carry or real[1]

    def carry(self, mass: Mass) -> Mass:
        return Mass((Even(self._carry(mass.dense())),), self.operand)

    def magnitude(self) -> Linear:
        return Moves(*self.real, self.operand)


def _both(u: Tensor) -> Tensor:
    return torch.stack([u, u], -1)


def _sum(u: Tensor) -> Tensor:
    return u.sum(-1)


def _same(u: Tensor) -> Tensor:
    return u


@static(aten.view_as_real.default, complex=True, passes_gate=True, rows=APART)
def _to_parts(call: Call) -> Linear:
    return Parts(torch.view_as_real, lambda g: torch.complex(g[..., 0], g[..., 1]), (_both, _sum), call.shape())


@static(aten.view_as_complex.default, complex=True, passes_gate=True, rows=APART)
def _from_parts(call: Call) -> Linear:
    return Parts(
        lambda u: torch.complex(u[..., 0], u[..., 1]),
        torch.view_as_real,
        (_sum, _both),
        call.shape(),
        carry=lambda mass: _both(mass / 2),
    )


@static(aten.complex.default, content=("real", "imag"), complex=True, rows=APART)
def _complex(call: Call) -> Affine:
    terms: dict[Slot, Linear] = {}
    for slot in call.content:
        real = slot.name == "real"
        terms[slot] = Parts(
            (lambda u: torch.complex(u, torch.zeros_like(u))) if real else (lambda u: torch.complex(u * 0, u)),
            torch.real if real else torch.imag,
            (_same, _same),
            call.shape(slot),
        )
    if len(terms) == 2:
        return Affine(terms)
    fixed = "imag" if call.content[0].name == "real" else "real"
    zeros = torch.zeros_like(call[fixed])
    return Affine(terms, Bias(call.replay(**{call.content[0].name: zeros})))


@static(aten.polar.default, content=("abs",), complex=True, rows=APART)
def _polar(call: Call) -> Linear:
    """abs e^(i angle), the angle held fixed."""
    phase = torch.polar(torch.ones_like(call["abs"]), call["angle"])
    size = call.out.shape
    turned = ComplexDiagonal(phase, call.shape(), size)
    real = Diagonal(None, call.shape(), size)
    return Parts(
        lambda u: turned.apply(u),
        lambda g: torch.real(turned.transpose(g)),
        (real.apply, real.transpose),
        call.shape(),
    )


@static(
    aten._conj.default,
    aten.conj_physical.default,
    aten._conj_physical.default,
    complex=True,
    passes_gate=True,
    rows=APART,
)
def _conjugate(call: Call) -> Linear:
    return Parts(torch.conj_physical, torch.conj_physical, (_same, _same), call.shape())


def modulus(call: Call) -> Linear:
    """|z| = Re(conj(z / |z|) z), with z / |z| frozen, 0 at 0."""
    phase = torch.sgn(call.x)
    conjugate = torch.conj_physical(phase)
    size = torch.abs(phase)
    return Parts(
        lambda u: torch.real(conjugate * u),
        lambda g: phase * g,
        (lambda u: u * size, lambda u: u * size),
        call.shape(),
        carry=_same,
    )
