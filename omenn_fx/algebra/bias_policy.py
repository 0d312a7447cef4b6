"""Which way bias mass goes: the policies of C_b, all in one place. None of them gains or loses mass.

* carrier: positions only, no data. Where several operands are added, each takes an equal part: telling them apart
  without looking at values would privilege one path of the network over another.
* contribution: each operand position takes mass in proportion to |W_vu h_u|, its contribution at this input; where a
  position of the node has no contributions at all, its mass goes the carrier's way.
* none: nothing is carried; the shares of the nodes stay a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from omenn_fx.algebra.form import Affine, Call, Slot
from omenn_fx.algebra.linear import Linear
from omenn_fx.algebra.mass import Even, Mass

Policy = Callable[[Call, Affine, Mass], dict[Slot, Mass]]


def carrier(call: Call, form: Affine, mass: Mass) -> dict[Slot, Mass]:
    """Mass at a node's positions -> mass at the positions of its content operands, by position alone."""
    if len(form.terms) == 1 or form.disjoint:
        share = mass
    else:
        share = mass.settled().scaled(1 / len(form.terms))
    return {slot: linear.carry(share) for slot, linear in form.terms.items()}


def contribution(call: Call, form: Affine, mass: Mass) -> dict[Slot, Mass]:
    """Mass in proportion to the contributions |W_vu h_u| (the z-rule of LRP with |W| |h|), stabilised."""
    magnitudes: dict[Slot, Linear] = {slot: linear.magnitude() for slot, linear in form.terms.items()}
    # a masked position, at -inf, contributes nothing
    sizes = {slot: torch.nan_to_num(torch.abs(call.at(slot)), posinf=0.0) for slot in form.terms}
    whole: Any = None
    for slot, linear in magnitudes.items():
        z = linear.apply(sizes[slot])
        whole = z if whole is None else whole + z
    dense = mass.dense()
    tiny = 1e-6 * whole.mean() + 1e-30
    ratio = torch.where(whole > tiny, dense / (whole + tiny), torch.zeros_like(dense))
    rest = carrier(call, form, Mass((Even(torch.where(whole > tiny, ratio * tiny, dense)),), mass.shape))
    return {
        slot: Mass((Even(sizes[slot] * linear.transpose(ratio)),), call.shape(slot)) + rest[slot]
        for slot, linear in magnitudes.items()
    }


POLICIES: dict[str, Policy | None] = {"carrier": carrier, "contribution": contribution, "none": None}
