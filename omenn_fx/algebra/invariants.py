"""The invariants of one node, measured on its call and its affine form: how far a rule is from exact, as numbers.

Each error is relative to the size of what is added up (|W| |h| + |b|, the terms of <W u, v>), never to a result that
may have cancelled. `omenn_fx.testing` holds rules to them on samples, `Report` keeps the worst of many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from omenn_fx.algebra.bias_policy import Policy
from omenn_fx.algebra.form import Affine, Call
from omenn_fx.algebra.mass import Even, Mass, Product

Tensor = torch.Tensor


@dataclass
class Report:
    """The worst error of each invariant, and where."""

    worst: dict[str, tuple[float, str]] = field(default_factory=dict)

    def add(self, invariant: str, error: Tensor | float, where: str) -> None:
        """Keep the error if it is the worst so far; NaN is worse than any number."""
        error = math.inf if math.isnan(float(error)) else float(error)
        if invariant not in self.worst or error > self.worst[invariant][0]:
            self.worst[invariant] = error, where

    def failures(self, tolerance: float) -> list[str]:
        """What is worse than the tolerance, as text."""
        return [f"{k}: {e:.2e} at {where}" for k, (e, where) in self.worst.items() if e > tolerance]

    def __str__(self) -> str:
        return "  ".join(f"{k} {e:.1e} ({where})" for k, (e, where) in self.worst.items())


class ShapeError(AssertionError):
    """A map whose result has the wrong shape or dtype."""


def random_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values of a tensor's shape and dtype, the same numbers in every dtype."""
    wide = torch.complex128 if value.dtype.is_complex else torch.float64
    normal = torch.randn(tuple(value.shape), generator=generator, dtype=wide)
    return normal.to(device=value.device, dtype=value.dtype)


def finite(value: Tensor) -> Tensor:
    """What stands at -inf (a mask) is read by nothing: as 0 it says so."""
    return torch.where(torch.isfinite(value), value, torch.zeros_like(value))


# The invariants ------------------------------------------------------------------------------------------------------


def node(call: Call, form: Affine) -> Tensor:
    """2. W h + b == h (dynamic linearity), where h is finite."""
    rebuilt, size = torch.zeros_like(call.out), torch.zeros_like(torch.abs(call.out))
    for slot, linear in form.terms.items():
        h = finite(call.at(slot))
        rebuilt = rebuilt + _shaped(linear.apply(h), call.out, f"W h of {slot.name}")
        size = size + linear.magnitude().apply(h.abs()).abs()
    if form.bias is not None:
        b = form.bias.dense(call.out)
        rebuilt, size = rebuilt + b, size + b.abs()
    here = torch.isfinite(call.out)
    rebuilt, out, size = (torch.where(here, t, torch.zeros_like(t)) for t in (rebuilt, call.out, size))
    return elementwise(rebuilt, out, size)


def linear(call: Call, form: Affine, generator: torch.Generator) -> Tensor:
    """3. W(a u + c v) == a W u + c W v at frozen coefficients."""
    errors = [torch.zeros((), dtype=torch.float64, device=call.out.device)]
    for slot, term in form.terms.items():
        u, v = (random_like(call.at(slot), generator) for _ in range(2))
        wu, wv = term.apply(u), term.apply(v)
        a, c = 2.5, -0.75  # not of sum 1: a constant that W adds would cancel
        errors.append(scaled(term.apply(a * u + c * v), a * wu + c * wv, a * wu, c * wv))
    return torch.stack([e.double() for e in errors]).max()


def transpose(call: Call, form: Affine, generator: torch.Generator) -> Tensor:
    """4. <W u, v> == <u, W^T v> (the dot test)."""
    errors = [torch.zeros((), dtype=torch.float64, device=call.out.device)]
    for slot, term in form.terms.items():
        operand = call.at(slot)
        u, v = random_like(operand, generator), random_like(call.out, generator)
        forward = _shaped(term.apply(u), call.out, f"W u of {slot.name}")
        back = _shaped(term.transpose(v), operand, f"W^T v of {slot.name}")
        errors.append(dot(forward, v, u, back))
    return torch.stack([e.double() for e in errors]).max()


def mass(call: Call, form: Affine, policy: Policy, generator: torch.Generator) -> Tensor:
    """6. A policy carries bias mass from a node to its content operands without gain or loss, in every form of it."""
    errors = [torch.zeros((), dtype=torch.float64, device=call.out.device)]
    for before in masses(torch.abs(call.out), generator):
        dense = before.dense().double()
        total = torch.zeros_like(dense.sum())
        for slot, piece in policy(call, form, before).items():
            held = _shaped(piece.dense(), torch.abs(call.at(slot)), f"the mass of {slot.name}")
            total = total + held.double().sum()
        gap = (total - dense.sum()).abs()
        errors.append(torch.where(gap == 0, gap, gap / (dense.abs().sum() + 1e-30)))
    return torch.stack([e.double() for e in errors]).max()


def is_finite(call: Call, form: Affine, generator: torch.Generator) -> bool:
    """Whether W u, W^T v and the bias are finite for finite u and v: at zero, at ties, at masks."""
    values = []
    for slot, term in form.terms.items():
        values += [term.apply(random_like(call.at(slot), generator)), term.transpose(random_like(call.out, generator))]
    if form.bias is not None:
        beta = form.bias.mass(random_like(call.out, generator), call.out.shape, call.out.dtype.is_complex)
        values.append(beta.dense())
    return all(bool(torch.isfinite(v).all()) for v in values)


def masses(out: Tensor, generator: torch.Generator) -> list[Mass]:
    """A mass at a node in every form that a node may get it in: dense, even over dimensions, a product, and sums."""
    ndim = out.ndim
    made = [Mass((Even(random_like(out, generator)),), out.shape)]
    if ndim:
        last = Even(random_like(out.sum(-1, keepdim=True), generator), frozenset({ndim - 1}))
        along = Product(
            random_like(out, generator), random_like(out.new_zeros(out.shape[-1]), generator), ndim - 1, ndim
        )
        made.append(Mass((last,), out.shape))
        made.append(Mass((along,), out.shape))
        made.append(made[-1] + made[0] + Mass((last,), out.shape))
    if ndim > 1:
        dims = frozenset(range(1, ndim))
        made.append(Mass((Even(random_like(out.sum(list(dims), True), generator), dims),), out.shape))
        channels = Product(random_like(out, generator), random_like(out.new_zeros(out.shape[1]), generator), 1, ndim)
        made.append(Mass((channels,), out.shape))
    return made


# Relative errors -----------------------------------------------------------------------------------------------------


def elementwise(got: Tensor, want: Tensor, size: Tensor) -> Tensor:
    """The largest |got - want| / (|W| |h| + |b|), position by position.

    A size below the node's mean counts as the mean: b itself may have cancelled (batch norm's beta - gamma mu / sigma).
    """
    if not want.numel():
        return want.new_zeros(())
    gap = (got - want).abs()
    return torch.where(gap == 0, gap, gap / torch.maximum(size, size.mean())).max()


def scaled(got: Tensor, want: Tensor, *terms: Tensor) -> Tensor:
    """The largest |got - want|, relative to the largest of the terms that were added."""
    if not want.numel():
        return want.new_zeros(())
    gap = (got - want).abs().max()
    size = torch.stack([t.abs().max() for t in terms]).sum()
    return torch.where(gap == 0, gap, gap / size)


def dot(wu: Tensor, v: Tensor, u: Tensor, wv: Tensor) -> Tensor:
    """|<W u, v> - <u, W^T v>| relative to the terms of the two sums, added in float64."""
    left, right = _products(wu, v), _products(u, wv)
    size = torch.maximum(left.abs().sum(), right.abs().sum())
    gap = (left.sum() - right.sum()).abs()
    return torch.where(gap == 0, gap, gap / size)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """The terms of <a, b>; of complex values those of Re <a, b>."""
    if a.is_complex():
        return torch.view_as_real(a.to(torch.complex128)) * torch.view_as_real(b.to(torch.complex128))
    return a.double() * b.double()


def _shaped(value: Tensor, like: Tensor, what: str) -> Tensor:
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ShapeError(f"{what} is {value.dtype} {tuple(value.shape)}, and must be {like.dtype} {tuple(like.shape)}")
    return value
