"""One table of operator calls that drives the tests of all rules.

A line is an operator and its operands. Tensors are described, not made, so that every test can have them in its own
dtype: `T(2, 3)` normal, `C` complex, `Z` zeros, `P` positive, `Unit` within (-1, 1), `N` not contiguous, `Ties` small
integers, `Near` tiny values around 0, `Ids(n, ...)` indices below n, `Mask` booleans, `Hidden` 0 and
-inf, `V` given values.
The batch is dimension 0 of the content wherever `model` is left True: the same line then runs inside a module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from omenn_fx.algebra.form import Call, Slot
from omenn_fx.algebra.ruleset import omenn
from omenn_fx.testing import altered, bound, called, content_of

aten = torch.ops.aten
INF = math.inf


@dataclass(frozen=True)
class Spec:
    """A tensor to be made."""

    kind: str
    shape: tuple[int, ...]
    data: Any = None

    def make(self, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
        normal = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        match self.kind:
            case "normal":
                value = normal
            case "zeros":
                value = torch.zeros(self.shape, dtype=torch.float64)
            case "positive":
                value = normal.abs() + 0.1
            case "unit":
                value = torch.tanh(normal) * 0.9
            case "ties":
                value = (normal * 1.2).round()
            case "near":
                value = normal * 1e-6
            case "strided":
                wide = torch.randn((*self.shape[:-1], 2 * self.shape[-1]), generator=generator, dtype=torch.float64)
                return wide.to(dtype)[..., ::2].transpose(0, -1).contiguous().transpose(0, -1)
            case "ids":
                return torch.randint(0, self.data, self.shape, generator=generator)
            case "mask":
                return normal > 0
            case "hidden":
                value = torch.zeros(self.shape, dtype=torch.float64).masked_fill(normal > 0.5, -INF)
            case "complex":
                value = torch.randn(self.shape, generator=generator, dtype=torch.complex128)
                return value.to({torch.float64: torch.complex128}.get(dtype, torch.complex64))
            case "values":
                value = torch.tensor(self.data)
                return value.to(dtype) if value.is_floating_point() else value
        return value.to(dtype)


def _kind(kind: str) -> Any:
    return lambda *shape: Spec(kind, shape)


C, T, Z, P, Unit, Ties, Near, N, Mask, Hidden = map(
    _kind, ("complex", "normal", "zeros", "positive", "unit", "ties", "near", "strided", "mask", "hidden")
)


def Ids(below: int, *shape: int) -> Spec:
    return Spec("ids", shape, below)


def V(data: Any) -> Spec:
    return Spec("values", (), data)


@dataclass(frozen=True, eq=False)
class Sample:
    """One call of an operator. `content`: its content operands (default: all that the rule lists and that float)."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    content: tuple[Slot, ...] | None = None
    output: int | None = None  # the result that is explained, where there are several
    model: bool = True  # the batch is dimension 0 of the content and of the result
    low: bool = True  # the operator exists in bfloat16 on the CPU
    tolerance: float = 1.0  # of the node test in float32 and bfloat16, for operators that are ill-conditioned there
    seed: int = 0

    def operands(self, dtype: torch.dtype) -> dict[str, Any]:
        """The operands by their schema names, defaults filled in, as `capture.nodes.bind` finds them in a graph."""
        generator = torch.Generator().manual_seed(self.seed)

        def make(value: Any) -> Any:
            if isinstance(value, list):
                return [make(v) for v in value]
            return value.make(dtype, generator) if isinstance(value, Spec) else value

        args = [make(a) for a in self.args]
        names = [a.name for a in self.op._schema.arguments]
        return bound(self.op, dict(zip(names, args, strict=False)) | {k: make(v) for k, v in self.kwargs.items()})

    def slots(self, operands: dict[str, Any]) -> tuple[Slot, ...]:
        """The operands that can carry content."""
        rule = omenn.get(self.op)
        assert rule is not None
        return content_of(rule, operands)

    def call(
        self, dtype: torch.dtype = torch.float64, content: tuple[Slot, ...] | None = None, variant: str = "as given"
    ) -> Call:
        """The call as the twin makes it, at the sample's own values or a variant of them."""
        operands = self.operands(dtype)
        content = content or self.content or self.slots(operands)
        return called(self.op, altered(operands, content, variant), content, self.output)

    def variants(self) -> Iterator[tuple[Slot, ...]]:
        """All content operands together, and where there are several each of them alone."""
        everything = self.content or self.slots(self.operands(torch.float64))
        yield everything
        if len(everything) > 1 and self.content is None:
            yield from ((slot,) for slot in everything)


SAMPLES: list[Sample] = []
_TRAITS = ("content", "output", "model", "low", "tolerance")


def s(ops: Any, *args: Any, **named: Any) -> None:
    """A sample of one operator, or of each of several."""
    traits = {name: named.pop(name) for name in _TRAITS if name in named}
    for op in ops if isinstance(ops, (tuple, list)) else (ops,):
        SAMPLES.append(Sample(op, args, named, seed=len(SAMPLES), **traits))


def name_of(op: Any) -> str:
    return str(op).removeprefix("aten.").removesuffix(".default")


def of(op: Any) -> list[Sample]:
    return [sample for sample in SAMPLES if sample.op is op]


# Element-wise --------------------------------------------------------------------------------------------------------

_ODD = [
    aten.relu.default, aten.abs.default, aten.absolute.default, aten.square.default, aten.neg.default,
    aten.negative.default, aten.gelu.default, aten.silu.default, aten.hardswish.default, aten.mish.default,
    aten.tanh.default, aten.erf.default, aten.sin.default, aten.tan.default, aten.atan.default, aten.sinh.default,
    aten.asinh.default, aten.expm1.default, aten.frac.default, aten.leaky_relu.default, aten.rrelu.default,
    aten.hardshrink.default, aten.softshrink.default, aten.elu.default, aten.celu.default, aten.selu.default,
    aten.sigmoid.default, aten.hardsigmoid.default, aten.exp.default, aten.exp2.default, aten.cos.default,
    aten.cosh.default, aten.erfc.default, aten.log_sigmoid.default, aten.softplus.default, aten.hardtanh.default,
    aten.relu6.default, aten.nan_to_num.default,
]  # fmt: skip
_INSIDE = [aten.erfinv.default, aten.asin.default, aten.acos.default, aten.atanh.default]
_ABOVE = [aten.sqrt.default, aten.log.default, aten.log2.default, aten.log10.default, aten.log1p.default]
s(_ODD, T(2, 3, 4))
s(_ODD, N(2, 3, 4))
s(_ODD, Z(2, 3))
s(_ODD, Near(2, 3))
s(_INSIDE, Unit(2, 3, 4))
s(_INSIDE, Z(2, 3))
s(_ABOVE, P(2, 3, 4))
s([aten.sqrt.default, aten.log1p.default], Z(2, 3))
s([aten.log.default, aten.log2.default, aten.log10.default], V([[1.0, 1e-9, 2.5]]))
s(aten.gelu.default, T(2, 5), approximate="tanh")
s(aten.leaky_relu.default, T(2, 5), 0.3)
s(aten.leaky_relu.default, T(2, 5), -0.2)
s(aten.elu.default, T(2, 5), 0.7, 1.3, 0.9)
s(aten.celu.default, T(2, 5), 0.6)
s(aten.softplus.default, V([[-30.0, -2.0, -1e-9], [0.5, 3.0, 40.0]]), 3.0, 20)
s(aten.exp.default, V([[-80.0, -1.0], [0.0, 1e-12]]))
s(aten.nan_to_num.default, V([[INF, -INF, 1.0], [math.nan, 0.0, 2.0]]), 0.5, 7.0, -7.0, model=False)
s(aten.prelu.default, T(2, 3, 4), T(3))
s(aten.prelu.default, T(2, 3), T(1))
s(aten.prelu.default, Z(2, 3, 1, 2), T(3))
s(aten.rrelu.default, T(2, 5), 0.2, 0.4)
s([aten.threshold.default], T(2, 5), 0.1, 0.5)
s(aten.threshold.default, T(2, 5), -0.3, -2.0)
s(aten.threshold.default, Z(2, 5), 0.0, 0.0)
s([aten.clamp.default, aten.clip.default], T(2, 5), -0.5, 0.7)
s([aten.clamp.default, aten.clip.default], T(2, 5), 0.3)
s(aten.clamp.default, Z(2, 5), None, -0.2)
s(aten.clamp.default, Z(2, 5), 0.0, 6.0)
s(aten.clamp_min.default, T(2, 5), 0.2)
s(aten.clamp_max.default, T(2, 5), -0.2)
s(aten.clamp_min.default, N(2, 5), 0.0)
s(aten.clamp_max.default, Z(2, 5), 0.0)
s(aten.hardtanh.default, T(2, 5), 0.0, 6.0)
s(aten.clamp.Tensor, T(2, 3, 4), V([-0.5, 0.0, 0.1, -2.0]), V([0.5, 1.0, 0.2, 2.0]))
s(aten.clamp.Tensor, Z(2, 4), V([-0.5, 0.0, 0.1, -2.0]))
s(aten.clamp.Tensor, N(2, 4), None, T(2, 1))
s(aten.pow.Tensor_Scalar, T(2, 5), 2)
s(aten.pow.Tensor_Scalar, T(2, 5), 3)
s(aten.pow.Tensor_Scalar, P(2, 5), 0.5)
s(aten.pow.Tensor_Scalar, P(2, 5), 1.7)
s(aten.pow.Tensor_Scalar, P(2, 5), -1)
s(aten.pow.Tensor_Scalar, Z(2, 5), 2)
s(aten.pow.Tensor_Scalar, Z(2, 5), 0.5)
s(aten.pow.Tensor_Scalar, V([[0.0, 1.5, -2.0]]), 0)
s(aten.pow.Tensor_Scalar, Z(2, 5), 1)
s(aten.pow.Tensor_Tensor, P(2, 3), V([2.0, 0.5, 1.0]))
s(aten.pow.Tensor_Tensor, Z(2, 3), V([2.0, 0.5, 1.0]))
s(aten.pow.Tensor_Tensor, T(2, 3), V([2.0, 3.0, 1.0]))
s(aten.pow.Scalar, 2.0, T(2, 5))
s(aten.pow.Scalar, 0.5, Near(2, 5))
s(aten.pow.Scalar, 3, Z(2, 5))
s(aten.glu.default, T(2, 6), -1)
s(aten.glu.default, T(2, 4, 3), 1)
s(aten.glu.default, Z(2, 2), 1)

# Sums and products ---------------------------------------------------------------------------------------------------

_SUMS = [aten.add.Tensor, aten.sub.Tensor, aten.subtract.Tensor, aten.rsub.Tensor]
s(_SUMS, T(2, 3, 4), N(2, 3, 4))
s(_SUMS, T(2, 3, 4), T(3, 1))
s(_SUMS, T(4, 1), T(2, 4, 3), alpha=0.5, model=False)
s(_SUMS, Z(2, 3), Z(2, 3), alpha=-2)
s(aten.add.Tensor, T(2, 3), Hidden(2, 3), content=(Slot("self"),))
s(aten.add.Tensor, T(2, 3), 1.5)
s([aten.add.Scalar, aten.sub.Scalar, aten.subtract.Scalar, aten.rsub.Scalar], T(2, 3), 1.5)
s([aten.add.Scalar, aten.sub.Scalar, aten.subtract.Scalar, aten.rsub.Scalar], Z(2, 1), 2, 3)
s(aten.add.Tensor, T(2, 0), T(2, 0), model=False)
_PRODUCTS = [aten.mul.Tensor, aten.multiply.Tensor]
s(_PRODUCTS, T(2, 3, 4), N(2, 3, 4))
s(_PRODUCTS, T(2, 3, 4), T(3, 1))
s(_PRODUCTS, T(4, 1), T(2, 1, 3), model=False)
s(_PRODUCTS, Z(2, 3), T(2, 3))
s([aten.mul.Scalar, aten.multiply.Scalar], T(2, 3), -1.5)
s([aten.mul.Scalar, aten.multiply.Scalar], N(2, 3), 0)
_QUOTIENTS = [aten.div.Tensor, aten.divide.Tensor, aten.true_divide.Tensor]
s(_QUOTIENTS, T(2, 3, 4), P(2, 3, 4))
s(_QUOTIENTS, N(2, 3, 4), P(3, 1))
s(_QUOTIENTS, T(3, 1), P(2, 1, 4), model=False)
s([aten.div.Scalar, aten.divide.Scalar, aten.true_divide.Scalar], T(2, 3), 1.7)
s([aten.div.Scalar, aten.divide.Scalar, aten.true_divide.Scalar], Z(2, 1), 3)
s(aten.lerp.Scalar, T(2, 3), T(2, 3), 0.3)
s(aten.lerp.Scalar, N(2, 3), T(3), 1.0)
s(aten.lerp.Tensor, T(2, 3), T(2, 3), T(3))
s(aten.lerp.Tensor, T(2, 3), T(2, 1), T(2, 3))
s(aten.addcmul.default, T(2, 3), T(2, 3), N(2, 3))
s(aten.addcmul.default, T(2, 3), T(2, 3), T(2, 1), value=-0.5)
s(aten.addcmul.default, T(3), T(2, 1), T(2, 3), model=False)
s(aten.addcdiv.default, T(2, 3), T(2, 3), P(2, 3))
s(aten.addcdiv.default, T(2, 3), T(2, 1), P(3), value=2)

# Matrix products -----------------------------------------------------------------------------------------------------

s(aten.linear.default, T(2, 5, 3), T(4, 3), T(4))
s(aten.linear.default, N(2, 3), T(4, 3))
s(aten.linear.default, Z(2, 3, 2, 1), T(4, 1), T(4))
s(aten.matmul.default, T(2, 3, 4), T(2, 4, 5))
s(aten.matmul.default, N(2, 3, 4), T(4, 5))
s(aten.matmul.default, T(3, 4), T(2, 4, 5), model=False)
s(aten.matmul.default, T(2, 1, 3, 4), T(5, 4, 2))
s(aten.matmul.default, T(2, 3, 4), T(4))
s(aten.matmul.default, T(4), T(2, 4, 3), model=False)
s(aten.matmul.default, Z(2, 1, 3), T(2, 3, 1))
s(aten.matmul.default, V([[[0.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.0, 0.0]]]), T(2, 2, 3), content=(Slot("other"),))
s(aten.mm.default, T(2, 3), N(3, 4))
s(aten.mm.default, Z(2, 1), T(1, 3))
s(aten.bmm.default, T(2, 3, 4), N(2, 4, 5))
s(aten.bmm.default, T(2, 1, 1), T(2, 1, 3))
s(aten.mv.default, T(2, 3), T(3))
s(aten.mv.default, Z(2, 1), T(1))
s(aten.addmm.default, T(4), T(2, 3), T(3, 4))
s(aten.addmm.default, T(2, 4), T(2, 3), N(3, 4), beta=0.5, alpha=2)
s(aten.addmm.default, T(2, 1), T(2, 3), T(3, 4), alpha=-1)
s(aten.baddbmm.default, T(2, 3, 5), T(2, 3, 4), T(2, 4, 5))
s(aten.baddbmm.default, T(1, 5), T(2, 3, 4), T(2, 4, 5), beta=2, alpha=0.5, model=False)

# Contractions --------------------------------------------------------------------------------------------------------

s(aten.einsum.default, "bij,bjk->bik", [T(2, 3, 4), T(2, 4, 5)])
s(aten.einsum.default, "bhid, bhjd -> bhij", [T(2, 3, 4, 2), N(2, 3, 5, 2)])
s(aten.einsum.default, "bij,jk,kl", [T(2, 3, 4), T(4, 2), T(2, 3)])
s(aten.einsum.default, "...ij,jk->...ik", [T(2, 3, 4, 2), T(2, 5)])
s(aten.einsum.default, "...i,...i->...", [T(2, 3, 4), T(3, 4)])
s(aten.einsum.default, "bij->bj", [T(2, 3, 4)])
s(aten.einsum.default, "bij->jbi", [N(2, 3, 4)], model=False)
s(aten.einsum.default, "bii->bi", [T(2, 3, 3)])
s(aten.einsum.default, "bii", [T(2, 3, 3)])
s(aten.einsum.default, "bi,bj->bij", [T(2, 3), T(2, 4)])
s(aten.einsum.default, "bi,b->bi", [T(2, 3), Z(2)])
s(aten.einsum.default, "bti,btj->bt", [T(2, 3, 4), T(2, 1, 2)])
s(aten.einsum.default, "ba,bb->ab", [T(2, 3), T(2, 2)], model=False)
s(aten.bilinear.default, T(2, 3), T(2, 4), T(5, 3, 4), T(5))
s(aten.bilinear.default, T(2, 2, 3), T(2, 2, 1), T(5, 3, 1))

# Reductions ----------------------------------------------------------------------------------------------------------

s([aten.sum.default, aten.mean.default], T(2, 3, 4), model=False)
s([aten.sum.default, aten.mean.default], Z(1), model=False)
s([aten.sum.default, aten.mean.default], T(), model=False)
s([aten.sum.dim_IntList, aten.mean.dim], T(2, 3, 4), [1])
s([aten.sum.dim_IntList, aten.mean.dim], N(2, 3, 4), [-1, 1], True)
s([aten.sum.dim_IntList, aten.mean.dim], T(2, 3, 1), [2])
s([aten.sum.dim_IntList, aten.mean.dim], T(2, 3), [], model=False)
s([aten.sum.dim_IntList, aten.mean.dim], T(2, 3), [1], dtype=torch.float64)
s(aten.cumsum.default, T(2, 3, 4), 1)
s(aten.cumsum.default, N(2, 3, 4), -1)
s(aten.cumsum.default, Z(2, 1), 1)
_EXTREMES = [aten.amax.default, aten.amin.default]
s(_EXTREMES, T(2, 3, 4), [1])
s(_EXTREMES, Ties(2, 3, 4), [-1, 1], True)
s(_EXTREMES, Z(2, 3), [1])
s(_EXTREMES, N(2, 3), model=False)
s([aten.max.dim, aten.min.dim, aten.median.dim], T(2, 3, 4), 1, output=0)
s([aten.max.dim, aten.min.dim, aten.median.dim], Ties(2, 3, 4), -1, True, output=0)
s([aten.max.dim, aten.min.dim, aten.median.dim], Z(2, 1), 1, output=0)
s([aten.max.default, aten.min.default], T(2, 3), model=False)
s([aten.max.default, aten.min.default], Ties(2, 3), model=False)
s(aten.kthvalue.default, T(2, 5, 3), 2, 1, output=0)
s(aten.kthvalue.default, Ties(2, 5), 3, -1, True, output=0, low=False)
s(aten.logsumexp.default, T(2, 3, 4), [1])
s(aten.logsumexp.default, Z(2, 3), [-1], True)
s(aten.logsumexp.default, V([[-INF, 1.0, 2.0], [0.0, 0.0, -INF]]), [1])
s(aten.topk.default, T(2, 5), 2, output=0)
s(aten.topk.default, Ties(2, 5, 3), 3, 1, False, output=0)
s(aten.topk.default, Z(2, 3), 3, output=0)
s(aten.sort.default, T(2, 4, 3), 1, True, output=0)
s(aten.sort.default, Ties(2, 6), output=0)
s(aten.sort.stable, N(2, 4), stable=True, dim=1, output=0)
s(aten.sort.stable, Z(2, 3), stable=True, dim=-1, descending=True, output=0)
s(aten.msort.default, T(4, 2), model=False)
s(aten.msort.default, Ties(5), model=False)
s([aten.cummax.default, aten.cummin.default], T(2, 4, 3), 1, output=0)
s([aten.cummax.default, aten.cummin.default], Ties(2, 6), -1, output=0)
s(aten.linalg_vector_norm.default, T(2, 3, 4), 2, [1])
s(aten.linalg_vector_norm.default, N(2, 3, 4), 1, [1, 2], True)
s(aten.linalg_vector_norm.default, T(2, 5), 3, [-1])
s(aten.linalg_vector_norm.default, Z(2, 5), 2, [-1])
s(aten.linalg_vector_norm.default, Z(2, 5), 1.5, [-1])
s(aten.norm.ScalarOpt_dim, T(2, 3, 4), 2, [1], True)
s(aten.norm.ScalarOpt_dim, T(2, 3), None, [1])
s([aten.cdist.default, aten._cdist_forward.default], T(2, 3, 4), T(2, 5, 4), 2.0, None, low=False)
s([aten.cdist.default, aten._cdist_forward.default], T(2, 3, 4), T(5, 4), 1.0, None, low=False)
s(aten.cdist.default, T(2, 3), T(2, 3), 3.0, low=False)
s(aten.cdist.default, Z(2, 3), Z(4, 3), low=False)
_SPREADS = [aten.var.correction, aten.std.correction]
s(_SPREADS, T(2, 3, 4), [1])
s(_SPREADS, N(2, 3, 4), [1, 2], correction=0, keepdim=True)
s(_SPREADS, Z(2, 3), [1])
s([aten.var.dim, aten.std.dim], T(2, 3, 4), [-1])
s([aten.var.dim, aten.std.dim], T(2, 3, 4), [1, 2], False, True)

# Choices between two -------------------------------------------------------------------------------------------------

_LARGER = [
    aten.maximum.default,
    aten.minimum.default,
    aten.max.other,
    aten.min.other,
    aten.fmax.default,
    aten.fmin.default,
]
s(_LARGER, T(2, 3, 4), N(2, 3, 4))
s(_LARGER, Ties(2, 3, 4), Ties(3, 1))
s(_LARGER, Z(2, 3), Z(2, 3))
s(aten.where.self, Mask(2, 3, 4), T(2, 3, 4), N(2, 3, 4))
s(aten.where.self, Mask(3, 1), T(2, 3, 4), T(4))
s(aten.where.self, Mask(2, 3), T(2, 3), V(-INF), content=(Slot("self"),))
s(aten.where.ScalarOther, Mask(2, 3), T(2, 3), -2.0)
s(aten.where.ScalarOther, Mask(2, 3), T(2, 1), -INF)
s(aten.where.ScalarSelf, Mask(2, 3), 3.0, T(2, 3))
s(aten.where.ScalarSelf, Mask(2, 1), -INF, Z(2, 3))
s(aten.masked_fill.Scalar, T(2, 3, 4), Mask(3, 1), -2.0)
s(aten.masked_fill.Scalar, T(2, 3), Mask(2, 3), -INF)
s(aten.masked_fill.Scalar, N(2, 3), Mask(2, 3), 0)
s(aten.masked_fill.Tensor, T(2, 3), Mask(2, 1), V(1.5))
s(aten.masked_fill.Tensor, Z(2, 3), Mask(2, 3), V(-INF))

# The same values, elsewhere ------------------------------------------------------------------------------------------

_SAME = [aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
         aten.lift_fresh_copy.default, aten.positive.default]  # fmt: skip
s(_SAME, T(2, 3))
s(_SAME, N(2, 3, 4))
s(_SAME, Z(2, 0), model=False)
s(aten._to_copy.default, T(2, 3), dtype=torch.float32)
s(aten._to_copy.default, N(2, 3), dtype=torch.float64)
s(aten.to.dtype, T(2, 3), torch.bfloat16)
s(aten.to.dtype, T(2, 3), torch.float64)
s(aten.to.dtype_layout, T(2, 3), dtype=torch.float32)
s(aten.to.dtype_layout, T(2, 3), dtype=torch.float64)
s(aten.to.device, T(2, 3), torch.device("cpu"), torch.float64)
s(aten.to.device, N(2, 3), torch.device("cpu"), torch.float32)
s([aten.to.other, aten.type_as.default], T(2, 3), T(1))
s([aten.to.other, aten.type_as.default], N(2, 0), T(1), model=False)
s(aten.copy.default, T(2, 3), N(2, 3))
s(aten.copy.default, T(2, 3), T(3), model=False)
s([aten.expand.default, aten.broadcast_to.default], T(2, 1, 3), [2, 4, 3])
s([aten.expand.default, aten.broadcast_to.default], T(2, 3), [4, -1, 3], model=False)
s([aten.expand.default, aten.broadcast_to.default], Z(2, 1), [2, 1])
s(aten.expand_as.default, T(2, 1), T(2, 3))
s(aten.expand_as.default, T(3), T(2, 3), model=False)
s([aten.tril.default, aten.triu.default], T(2, 3, 4))
s([aten.tril.default, aten.triu.default], N(2, 4, 3), -1)
s([aten.tril.default, aten.triu.default], Z(2, 1, 3), 1)
s([aten.view.default, aten.reshape.default, aten._unsafe_view.default], T(2, 3, 4), [2, -1])
s([aten.view.default, aten.reshape.default, aten._unsafe_view.default], Z(2, 1, 4), [2, 2, 2])
s(aten.reshape.default, N(2, 3, 4), [2, 2, 6])
s([aten.view_as.default, aten.reshape_as.default], T(2, 6), T(2, 2, 3))
s([aten.view_as.default, aten.reshape_as.default], Z(2, 1), T(2))
s(aten.flatten.using_ints, T(2, 3, 4), 1)
s(aten.flatten.using_ints, N(2, 3, 4), 0, -1, model=False)
s(aten.unflatten.int, T(2, 6), 1, [2, -1])
s(aten.unflatten.int, N(2, 6, 3), -2, [3, 2])
s(aten.ravel.default, T(2, 3), model=False)
s(aten.ravel.default, N(2, 3), model=False)
s(aten.squeeze.default, T(2, 1, 3, 1))
s(aten.squeeze.default, T(2, 3))
s(aten.squeeze.dim, T(2, 1, 3), 1)
s(aten.squeeze.dim, T(2, 3), -1)
s(aten.squeeze.dims, T(2, 1, 3, 1), [1, -1])
s(aten.squeeze.dims, N(2, 1, 3), [2, 1])
s(aten.unsqueeze.default, T(2, 3), -1)
s(aten.unsqueeze.default, N(2, 3), 1)
s(aten.permute.default, T(2, 3, 4), [0, 2, 1])
s(aten.permute.default, N(2, 3, 4), [-1, 0, 1], model=False)
_SWAPS = [aten.transpose.int, aten.swapaxes.default, aten.swapdims.default]
s(_SWAPS, T(2, 3, 4), 1, 2)
s(_SWAPS, N(2, 3, 4), -1, -2)
s(_SWAPS, T(2, 3, 4), 0, 1, model=False)
s([aten.movedim.int, aten.moveaxis.int], T(2, 3, 4, 5), 1, 3)
s([aten.movedim.int, aten.moveaxis.int], T(2, 3, 4), 0, -1, model=False)
s([aten.movedim.intlist, aten.moveaxis.intlist], T(2, 3, 4, 5), [1, -1], [2, 1])
s([aten.movedim.intlist, aten.moveaxis.intlist], N(2, 3, 4), [0, 1], [1, 0], model=False)
s([aten.mT.default, aten.mH.default, aten.adjoint.default], T(2, 3, 4))
s([aten.mT.default, aten.mH.default, aten.adjoint.default], N(2, 1, 4))
s([aten.numpy_T.default, aten.t.default], T(2, 3), model=False)
s([aten.numpy_T.default, aten.t.default], T(4), model=False)
s(aten.flip.default, T(2, 3, 4), [1, -1])
s(aten.flip.default, N(2, 3), [1])
s(aten.roll.default, T(2, 3, 4), [1, -2], [1, 2])
s(aten.roll.default, N(2, 3, 4), [5], [-1])
s(aten.roll.default, T(2, 3), [2], [], model=False)
s(aten.pixel_shuffle.default, T(2, 8, 2, 3), 2)
s(aten.pixel_shuffle.default, N(2, 4, 1, 1), 2)
s(aten.pixel_unshuffle.default, T(2, 2, 4, 6), 2)
s(aten.pixel_unshuffle.default, Z(2, 1, 3, 3), 3)

# A part of the values, or several copies -----------------------------------------------------------------------------

s(aten.slice.Tensor, T(2, 5, 3), 1, 1, 4)
s(aten.slice.Tensor, N(2, 5, 3), -2, -4, 9223372036854775807, 2)
s(aten.slice.Tensor, T(2, 5), 1, None, -1)
s(aten.slice.Tensor, T(2, 5), 1, 0, 9223372036854775807)
s(aten.slice.Tensor, T(2, 5), 1, 3, 3)
s(aten.select.int, T(2, 3, 4), 1, 2)
s(aten.select.int, N(2, 3, 4), -1, -1)
s(aten.narrow.default, T(2, 5), 1, 1, 3)
s(aten.narrow.default, N(2, 5, 3), -2, -2, 2)
s([aten.split.Tensor, aten.unsafe_split.Tensor], T(2, 5, 3), 2, 1, output=2)
s([aten.split.Tensor, aten.unsafe_split.Tensor], N(2, 4), 2, -1, output=1)
s(
    [aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default, aten.split.sizes],
    T(2, 5, 3),
    [1, 3, 1],
    1,
    output=1,
)
s(
    [aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default, aten.split.sizes],
    N(2, 4),
    [1, 3],
    -1,
    output=0,
)
s([aten.chunk.default, aten.unsafe_chunk.default], T(2, 5, 3), 2, 1, output=1)
s([aten.chunk.default, aten.unsafe_chunk.default], N(2, 6), 3, -1, output=0)
s(aten.tensor_split.indices, T(2, 5), [1, -1], 1, output=1)
s(aten.tensor_split.indices, T(2, 5, 3), [2, 9], -2, output=1)
s(aten.tensor_split.sections, T(2, 5), 3, 1, output=2)
s(aten.tensor_split.sections, N(2, 4, 3), 2, 1, output=0)
s(aten.unbind.int, T(2, 3, 4), 1, output=2)
s(aten.unbind.int, N(2, 3), -1, output=0)
s(aten.diagonal.default, T(2, 3, 3), 0, 1, 2)
s(aten.diagonal.default, N(2, 3, 5), 1, -1, -2)
s(aten.diagonal.default, T(3, 2, 4), -1, 2, 0, model=False)
s(aten.repeat.default, T(2, 3), [1, 2])
s(aten.repeat.default, N(2, 3), [2, 1, 3], model=False)
s(aten.repeat_interleave.self_int, T(2, 3), 2, 1)
s(aten.repeat_interleave.self_int, N(2, 3, 2), 3, -2)
s(aten.repeat_interleave.self_int, T(2, 3), 2, model=False)
s(aten.unfold.default, T(2, 7), 1, 3, 2)
s(aten.unfold.default, N(2, 6, 3), -2, 2, 2)
s(aten.unfold.default, T(2, 6, 3), 1, 2, 3)
s(aten.im2col.default, T(2, 3, 4, 5), [2, 3], [1, 1], [0, 0], [1, 1])
s(aten.im2col.default, N(2, 2, 6, 5), [2, 2], [2, 1], [1, 2], [2, 3])
s(aten.im2col.default, Z(2, 1, 3, 3), [3, 3], [1, 1], [2, 2], [1, 1])
s(aten.col2im.default, T(2, 12, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])
s(aten.col2im.default, T(2, 8, 4), [5, 5], [2, 2], [1, 1], [0, 0], [3, 3])
s(aten.col2im.default, N(2, 8, 9), [4, 4], [2, 2], [1, 1], [1, 1], [2, 2])
s([aten.pad.default, aten.constant_pad_nd.default], T(2, 3, 4), [1, 2, 0, 1])
s([aten.pad.default, aten.constant_pad_nd.default], T(2, 3, 4), [-1, 2, 1, -1])
s(aten.constant_pad_nd.default, T(2, 3), [1, 0], 2.5)
s(aten.pad.default, N(2, 3), [1, 0], "constant", -INF)
for _mode in ("reflect", "replicate", "circular"):
    s(aten.pad.default, T(2, 3, 4), [1, 2], _mode)
    s(aten.pad.default, N(2, 3, 4, 5), [2, 1, 0, 3], _mode)
s(aten.pad.default, T(2, 1, 1, 1), [2, 1, 0, 3], "replicate")

# Several side by side ------------------------------------------------------------------------------------------------

_CATS = [aten.cat.default, aten.concat.default, aten.concatenate.default]
s(_CATS, [T(2, 3), N(2, 1), T(2, 2)], 1)
s(_CATS, [T(2, 3, 4), T(2, 3, 4)], -2)
s(_CATS, [T(2, 3), T(1, 3)], 0, model=False)
s(aten.cat.default, [T(2, 3), V([]), T(2, 2)], 1, content=(Slot("tensors", 0), Slot("tensors", 2)))
s(aten.cat.default, [T(2, 3), Z(2, 0)], 1, content=(Slot("tensors", 0),))
s(aten.stack.default, [T(2, 3), N(2, 3), T(2, 3)], 1)
s(aten.stack.default, [T(2, 3), Z(2, 3)], -1)
s(aten.stack.default, [T(3)], 0, model=False)

# Reading and writing by index ----------------------------------------------------------------------------------------

s(aten.index_select.default, T(2, 4, 3), 1, Ids(4, 6))
s(aten.index_select.default, N(2, 4), -1, V([3, 0]))
s(aten.gather.default, T(2, 4, 3), 1, Ids(4, 2, 6, 3))
s(aten.gather.default, N(2, 4, 3), -1, Ids(3, 2, 1, 2))
s(aten.index.Tensor, T(2, 4, 3), [None, Ids(4, 5)])
s(aten.index.Tensor, N(2, 4, 3), [None, Ids(4, 2, 2), Ids(3, 2, 1)])
s(aten.index.Tensor, T(2, 4), [None, V([-1, 0, -1])])
s(aten.index.Tensor, T(2, 4), [V([[True, False, True, False], [False, True, True, False]])], model=False)
s(aten.scatter.src, T(2, 4, 3), 1, V([[[0, 1, 3]], [[2, 2, 1]]]), T(2, 1, 3))
s(aten.scatter.src, T(2, 4), -1, V([[1, 1, 3], [0, 0, 0]]), T(2, 3))
s(aten.scatter.src, T(2, 4), 1, V([[1, 2], [0, 3]]), N(3, 4), content=(Slot("self"),))
s(aten.scatter.src, T(2, 4), 1, V([[1, 2]]), T(2, 3), content=(Slot("src"),), model=False)
s(aten.scatter.value, T(2, 4), 1, Ids(4, 2, 2), 1.5)
s(aten.scatter.value, N(2, 4), -1, Ids(4, 2, 3), -INF)
s(aten.scatter_add.default, T(2, 4), 1, Ids(4, 2, 6), T(2, 6))
s(aten.scatter_add.default, Z(2, 4, 3), 1, Ids(4, 2, 5, 3), N(2, 5, 3))
s(aten.scatter_add.default, T(2, 4), 1, Ids(4, 1, 2), T(2, 3), model=False)
for _reduce in ("sum", "mean", "amax", "amin"):
    s(aten.scatter_reduce.two, T(2, 4), 1, Ids(4, 2, 5), T(2, 5), _reduce)
    s(aten.scatter_reduce.two, Ties(2, 4), 1, Ids(4, 2, 5), Ties(2, 5), _reduce)
    s(aten.scatter_reduce.two, T(2, 4), 1, Ids(4, 2, 3), Ties(2, 5), _reduce, include_self=False)
s(aten.index_add.default, T(2, 3, 4), 1, V([0, 2, 0]), T(2, 3, 4))
s(aten.index_add.default, N(2, 3), -1, V([2]), T(2, 1), alpha=-2)
s(aten.index_put.default, T(2, 4, 3), [None, V([0, 2])], T(2, 2, 3))
s(aten.index_put.default, T(2, 4, 3), [None, V([1, 1, 3])], T(2, 3, 3))
s(aten.index_put.default, T(2, 4, 3), [None, V([0, 2]), V([1, 2])], T(1), content=(Slot("self"),))
s(aten.index_put.default, T(2, 4), [None, V([0, 2])], T(2, 1), model=False)
s(aten.index_put.default, T(2, 4), [None, V([0, 2, 0])], T(2, 3), True)
s(aten.index_put.default, T(2, 4), [Mask(2, 4)], V(0.5), content=(Slot("self"),))
s(aten.index_put.default, T(2, 4), [Mask(2, 4)], V(0.5), model=False)
s(aten.slice_scatter.default, T(2, 5, 3), T(2, 2, 3), 1, 1, 3)
s(aten.slice_scatter.default, N(2, 5), T(2, 3), -1, 0, 9223372036854775807, 2)
s(aten.slice_scatter.default, T(2, 5), T(2, 2), 1, -2)
s(aten.select_scatter.default, T(2, 5, 3), T(2, 3), 1, 2)
s(aten.select_scatter.default, N(2, 5), T(2), -1, -1)
s(aten.masked_scatter.default, T(2, 3), Mask(2, 3), T(4, 3), content=(Slot("self"),))
s(aten.masked_scatter.default, T(2, 4, 3), Mask(2, 4, 1), T(8, 3), model=False)
s(aten.max_unpool2d.default, T(2, 1, 2, 2), V([[[[0, 3], [8, 10]]], [[[5, 5], [9, 15]]]]), [4, 4])
s(aten.max_unpool2d.default, Z(2, 1, 1, 1), V([[[[1]]], [[[3]]]]), [2, 2])
s(aten.max_unpool3d.default, Z(2, 1, 1, 1, 1), V([[[[[1]]]], [[[[0]]]]]), [1, 1, 2], [1, 1, 2], [0, 0, 0])
s(aten.max_unpool3d.default, T(2, 1, 1, 1, 2), V([[[[[0, 7]]]], [[[[3, 4]]]]]), [2, 2, 2], [2, 2, 2], [0, 0, 0])

# Convolutions --------------------------------------------------------------------------------------------------------

s(aten.conv1d.default, T(2, 3, 8), T(4, 3, 3), T(4), [2], [1])
s(aten.conv1d.default, N(2, 4, 8), T(6, 2, 2), None, [1], [0], [3], 2)
s(aten.conv2d.default, T(2, 3, 6, 7), T(4, 3, 3, 2), T(4), [2, 1], [1, 0], [1, 2])
s(aten.conv2d.default, N(2, 4, 5, 5), T(4, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 4)
s(aten.conv2d.default, T(2, 3, 5, 5), T(4, 3, 1, 1), T(4), [2, 2])
s(aten.conv2d.default, T(2, 3, 5, 6), T(4, 3, 1, 1), T(4), [3, 3], [1, 1])
s(aten.conv2d.default, Z(2, 4, 4, 4), T(2, 2, 1, 1), T(2), [2, 1], [0, 0], [1, 1], 2)
s(aten.conv2d.default, T(2, 2, 1, 1), T(3, 2, 3, 3), T(3), [1, 1], [4, 4])
s(aten.conv2d.default, T(2, 2, 7, 7), T(3, 2, 2, 2), T(3), [3, 3])
s(aten.conv3d.default, T(2, 2, 4, 4, 3), T(3, 2, 2, 3, 1), T(3), [1, 2, 1], [0, 1, 0])
s(aten.conv3d.default, Z(2, 2, 2, 2, 2), T(2, 1, 1, 1, 1), None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 2)
for _pad in ("same", "valid"):
    s(aten.conv1d.padding, T(2, 3, 6), T(4, 3, 4), T(4), [1], _pad)
    s(aten.conv2d.padding, T(2, 2, 5, 6), T(2, 2, 2, 3), T(2), [1, 1], _pad, [2, 1])
    s(aten.conv3d.padding, N(2, 2, 3, 3, 3), T(2, 1, 2, 2, 2), None, [1, 1, 1], _pad, [1, 1, 1], 2)
s(aten.conv_transpose1d.default, T(2, 3, 5), T(3, 2, 4), T(2), [2], [1], [1])
s(aten.conv_transpose1d.default, T(2, 4, 3), T(4, 2, 2), None, [3], [0], [2], 2, [2])
s(aten.conv_transpose2d.input, T(2, 3, 4, 4), T(3, 2, 3, 3), T(2), [2, 2], [1, 1], [1, 1])
s(aten.conv_transpose2d.input, N(2, 4, 3, 3), T(4, 1, 2, 3), None, [1, 2], [0, 1], [0, 0], 4, [2, 1])
s(aten.conv_transpose2d.input, T(2, 2, 3, 3), T(2, 3, 1, 1), T(3), [2, 2])
s(aten.conv_transpose3d.input, T(2, 2, 2, 3, 2), T(2, 2, 2, 2, 2), T(2), [2, 2, 2])
s(aten.conv_transpose3d.input, Z(2, 2, 2, 2, 2), T(2, 1, 1, 2, 1), T(2), [1, 2, 1], [0, 1, 0], [0, 1, 0], 2)
s(aten.convolution.default, T(2, 2, 5, 5), T(3, 2, 3, 3), T(3), [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
s(aten.convolution.default, T(2, 2, 4), T(2, 3, 3), T(3), [2], [1], [1], True, [1], 1)

# Pools ---------------------------------------------------------------------------------------------------------------

s(aten.avg_pool1d.default, T(2, 3, 7), [3], [2], [1])
s(aten.avg_pool1d.default, N(2, 3, 8), [2])
s(aten.avg_pool2d.default, T(2, 3, 6, 7), [3, 2], [2, 2], [1, 0])
s(aten.avg_pool2d.default, T(2, 1, 6, 7), [3], [2], [1], True, False)
s(aten.avg_pool2d.default, T(2, 1, 5, 5), [2], [2], [1], True, True, 3)
s(aten.avg_pool2d.default, Z(2, 1, 5, 5), [2], [2], [1], True, False, -2)
s(aten.avg_pool3d.default, T(2, 1, 4, 4, 5), [2], [2], [0], low=False)
s(aten.avg_pool3d.default, T(2, 2, 3, 3, 3), [2, 1, 3], [1, 2, 2], [1, 0, 1], True, False, low=False)
s(aten.adaptive_avg_pool1d.default, T(2, 3, 7), [3])
s(aten.adaptive_avg_pool1d.default, N(2, 3, 4), [1])
s(aten.adaptive_avg_pool2d.default, T(2, 3, 5, 4), [3, 2])
s(aten.adaptive_avg_pool2d.default, T(2, 3, 2, 2), [5, 1])
s(aten.adaptive_avg_pool2d.default, T(2, 3, 4, 4), [1, 1])
s(aten.adaptive_avg_pool3d.default, T(2, 2, 3, 4, 5), [2, 2, 2])
s(aten.adaptive_avg_pool3d.default, T(2, 2, 3, 4, 5), [1, 1, 1])
s(aten.max_pool1d.default, T(2, 3, 7), [3], [2], [1])
s(aten.max_pool1d.default, Ties(2, 3, 8), [2], [], [0], [3])
s(aten.max_pool1d.default, T(2, 3, 2), [9], [1], [4])  # windows that reach beyond both ends
s(aten.max_pool1d.default, Ties(2, 3, 2), [7], [2], [3])
s(aten.max_pool1d_with_indices.default, T(2, 3, 7), [2], [3], [1], [1], True, output=0)
s(aten.max_pool1d_with_indices.default, Z(2, 3, 4), [4], output=0)
_MAX2 = [(aten.max_pool2d.default, None), (aten.max_pool2d_with_indices.default, 0)]
for _op, _at in _MAX2:
    s(_op, T(2, 3, 6, 7), [3, 2], [2, 2], [1, 0], output=_at)
    s(_op, Ties(2, 2, 7, 7), [3], [2], [1], [2], True, output=_at)
    s(_op, N(2, 2, 5, 5), [2], [3], [0], [1], True, output=_at)
    s(_op, T(2, 2, 3, 2), [13, 9], [1, 1], [6, 4], output=_at)
for _op, _at in [(aten.max_pool3d.default, None), (aten.max_pool3d_with_indices.default, 0)]:
    s(_op, T(2, 2, 4, 4, 5), [2], [2], output=_at)
    s(_op, Ties(2, 1, 5, 3, 4), [3, 2, 1], [1, 2, 3], [1, 0, 0], [1, 1, 2], True, output=_at)
s(aten.adaptive_max_pool1d.default, T(2, 3, 7), [3], output=0)
s(aten.adaptive_max_pool1d.default, Ties(2, 3, 6), [1], output=0)
s(aten.adaptive_max_pool2d.default, T(2, 3, 6, 4), [3, 2], output=0)
s(aten.adaptive_max_pool2d.default, Ties(2, 2, 5, 7), [3, 4], output=0)
s(aten.adaptive_max_pool2d.default, N(2, 2, 3, 3), [1, 1], output=0)
s(aten.adaptive_max_pool2d.default, T(2, 2, 2, 3), [4, 1], output=0)
s(aten.adaptive_max_pool3d.default, T(2, 2, 4, 5, 3), [2, 2, 2], output=0)
s(aten.adaptive_max_pool3d.default, Z(2, 1, 2, 2, 2), [1, 1, 1], output=0)

# Interpolation and sampling ------------------------------------------------------------------------------------------

for _vec, _size, _out, _scale in (
    ("upsample_linear1d", (5,), [8], [1.7]), ("upsample_bilinear2d", (4, 5), [7, 3], [2.0, 0.6]),
    ("upsample_trilinear3d", (2, 3, 4), [3, 5, 2], [1.5, 2.0, 0.5]), ("upsample_bicubic2d", (4, 5), [7, 3], [2.0, 0.6]),
    ("_upsample_bicubic2d_aa", (4, 5), [3, 7], [0.5, 2.0]), ("_upsample_bilinear2d_aa", (4, 5), [3, 7], [0.5, 2.0]),
):  # fmt: skip
    _packet = getattr(aten, _vec)
    _traits = {"low": not _vec.startswith("_")}
    s(_packet.vec, T(2, 2, *_size), _out, False, None, **_traits)
    s(_packet.vec, N(2, 2, *_size), None, True, _scale, **_traits)
    s(_packet.default, T(2, 2, *_size), _out, True, **_traits)
    s(_packet.default, T(2, 1, *(1 for _ in _size)), _out, False, **_traits)
for _vec, _size, _out, _scale in (
    ("upsample_nearest1d", (5,), [8], [1.7]), ("upsample_nearest2d", (4, 5), [7, 3], [2.0, 0.6]),
    ("upsample_nearest3d", (2, 3, 4), [3, 5, 2], [1.5, 2.0, 0.5]), ("_upsample_nearest_exact1d", (5,), [8], [1.7]),
    ("_upsample_nearest_exact2d", (4, 5), [7, 3], [2.0, 0.6]),
    ("_upsample_nearest_exact3d", (2, 3, 4), [3, 5, 2], [2.0] * 3),
):  # fmt: skip
    _packet = getattr(aten, _vec)
    s(_packet.vec, T(2, 2, *_size), _out, None)
    s(_packet.vec, N(2, 2, *_size), None, _scale)
    s(_packet.default, T(2, 2, *_size), _out)
    s(_packet.default, Z(2, 1, *(1 for _ in _size)), _out)
for _op in (aten.grid_sampler.default, aten.grid_sampler_2d.default):
    for _mode in (0, 1, 2):
        s(_op, T(2, 3, 4, 5), T(2, 3, 2, 2), _mode, 0, False)
        s(_op, N(2, 2, 4, 5), T(2, 3, 2, 2), _mode, 1, True)
        s(_op, T(2, 1, 3, 3), T(2, 3, 2, 2), _mode, 2, _mode != 1)
s(aten.grid_sampler.default, Z(2, 1, 1, 1), V([[[[9.0, 9.0]]], [[[0.0, 0.0]]]]), 0, 0, False)
s(aten.grid_sampler.default, T(2, 2, 3, 2, 4), T(2, 2, 2, 2, 3), 0, 0, True)
s(aten.grid_sampler_3d.default, T(2, 1, 3, 2, 4), T(2, 2, 2, 2, 3), 0, 1, False)
s(aten.grid_sampler_3d.default, T(2, 1, 3, 2, 4), T(2, 2, 2, 2, 3), 1, 2, True)

# Norms ---------------------------------------------------------------------------------------------------------------

for _op, _at in [(aten.batch_norm.default, None), (aten._native_batch_norm_legit_no_training.default, 0)]:
    _rest = (False, 0.1, 1e-5, True) if _at is None else (0.1, 1e-5)
    s(_op, T(2, 3, 4, 4), T(3), T(3), T(3), P(3), *_rest, output=_at)
    s(_op, N(2, 3), None, None, T(3), P(3), *_rest, output=_at)
    s(_op, Z(2, 3, 1), T(3), None, Z(3), Z(3), *_rest, output=_at, tolerance=20)
for _op, _at in [(aten.layer_norm.default, None), (aten.native_layer_norm.default, 0)]:
    s(_op, T(2, 3, 4), [4], T(4), T(4), 1e-5, output=_at)
    s(_op, N(2, 3, 4), [3, 4], T(3, 4), T(3, 4), 1e-5, output=_at)
    s(_op, T(2, 3, 4), [4], None, None, 1e-3, output=_at)
    s(_op, Z(2, 3), [3], T(3), None, 1e-5, output=_at)
s(aten.rms_norm.default, T(2, 3, 4), [4], T(4))
s(aten.rms_norm.default, N(2, 3, 4), [3, 4], None, 1e-6)
s(aten.rms_norm.default, Z(2, 3), [3], T(3), 1e-6)
s(aten._fused_rms_norm.default, T(2, 3, 4), [4], T(4), 1e-6, output=0)
s(aten._fused_rms_norm.default, Z(2, 4), [4], None, None, output=0)
s(aten.group_norm.default, T(2, 4, 3, 3), 2, T(4), T(4))
s(aten.group_norm.default, N(2, 4), 2, T(4), T(4))
s(aten.group_norm.default, Z(2, 3, 5), 3)
s(aten.instance_norm.default, T(2, 3, 4, 4), T(3), T(3), None, None, True, 0.1, 1e-5, True)
s(aten.instance_norm.default, N(2, 3, 5), None, None, None, None, True, 0.1, 1e-5, True)
s(aten.instance_norm.default, T(2, 3, 4), T(3), T(3), T(3), P(3), False, 0.1, 1e-5, True)
_SOFTMAX = [aten.softmax.int, aten.log_softmax.int]
s(_SOFTMAX, T(2, 3, 4), -1)
s(_SOFTMAX, Ties(2, 3, 4), 1)
s(_SOFTMAX, Z(2, 3), 1)
s(_SOFTMAX, T(2, 3), -1, torch.float64)
s([aten._softmax.default, aten._log_softmax.default], T(2, 3, 4), -1, False)
s([aten._softmax.default, aten._log_softmax.default], N(2, 3, 4), 1, False)
s(aten._safe_softmax.default, T(2, 3, 4), -1)
s(aten._safe_softmax.default, V([[-INF, -INF], [0.5, -INF]]), -1)
s(_SOFTMAX, V([[0.3, -1e4, 0.1], [1e3, -1e3, 0.0]]), -1)
s([aten.softmax.int, aten._safe_softmax.default], V([[0.3, -INF, 0.1], [0.0, 0.0, -INF]]), -1)

# Attention -----------------------------------------------------------------------------------------------------------

_SDPA = aten.scaled_dot_product_attention.default
s(_SDPA, T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 2))
s(_SDPA, N(2, 3, 4, 5), T(2, 3, 4, 5), N(2, 3, 4, 5), None, 0.0, True)
s(_SDPA, T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 5), Mask(2, 1, 4, 6), scale=0.3)
s(_SDPA, T(2, 3, 4, 5), T(2, 3, 6, 5), T(2, 3, 6, 5), Hidden(4, 6))
s(_SDPA, T(2, 2, 2), T(2, 2, 2), T(2, 2, 2), V([[False, False], [True, True]]))
s(_SDPA, T(2, 4, 3, 5), T(2, 2, 6, 5), T(2, 2, 6, 5), enable_gqa=True)

# Recurrent cells -----------------------------------------------------------------------------------------------------


def _cell(
    gates: int, size: int, hidden: int, layers: int = 1, ways: int = 1, bias: bool = True, project: int = 0
) -> list[Spec]:
    """Parameters of an LSTM (gates 4), GRU (3) or RNN (1), as torch lists them."""
    params: list[Spec] = []
    out = project or hidden
    for layer in range(layers):
        for _ in range(ways):
            params += [T(gates * hidden, ways * out if layer else size), T(gates * hidden, out)]
            params += [T(gates * hidden), T(gates * hidden)] * bias
            params += [T(project, hidden)] * bool(project)
    return params


_LSTM = aten.lstm.input
s(_LSTM, T(2, 3, 4), [T(1, 2, 3), T(1, 2, 3)], _cell(4, 4, 3), True, 1, 0.0, False, False, True, output=0, low=False)
s(
    _LSTM,
    T(3, 2, 4),
    [Z(1, 2, 3), Z(1, 2, 3)],
    _cell(4, 4, 3),
    True,
    1,
    0.0,
    False,
    False,
    False,
    output=1,
    model=False,
    low=False,
)
s(
    _LSTM,
    N(2, 3, 4),
    [T(4, 2, 3), T(4, 2, 3)],
    _cell(4, 4, 3, 2, 2),
    True,
    2,
    0.0,
    False,
    True,
    True,
    output=0,
    low=False,
)
s(
    _LSTM,
    T(2, 3, 4),
    [T(1, 2, 2), T(1, 2, 3)],
    _cell(4, 4, 3, project=2),
    True,
    1,
    0.0,
    False,
    False,
    True,
    output=0,
    low=False,
)
s(
    _LSTM,
    T(3, 2, 4),
    [T(1, 2, 3), T(1, 2, 3)],
    _cell(4, 4, 3, bias=False),
    False,
    1,
    0.0,
    False,
    False,
    False,
    output=2,
    model=False,
    low=False,
)
s(_LSTM, Z(2, 1, 4), [Z(1, 2, 3), Z(1, 2, 3)], _cell(4, 4, 3), True, 1, 0.0, False, False, True, output=0, low=False)
for _op, _gates in ((aten.gru.input, 3), (aten.rnn_tanh.input, 1), (aten.rnn_relu.input, 1)):
    s(_op, T(2, 3, 4), T(1, 2, 3), _cell(_gates, 4, 3), True, 1, 0.0, False, False, True, output=0, low=False)
    s(
        _op,
        T(3, 2, 4),
        T(4, 2, 3),
        _cell(_gates, 4, 3, 2, 2),
        True,
        2,
        0.0,
        False,
        True,
        False,
        output=1,
        model=False,
        low=False,
    )
    s(
        _op,
        Z(2, 3, 4),
        Z(1, 2, 3),
        _cell(_gates, 4, 3, bias=False),
        False,
        1,
        0.0,
        False,
        False,
        True,
        output=0,
        low=False,
    )

# Spectra and complex values -------------------------------------------------------------------------------------------

for _norm in (0, 1, 2):
    s(aten._fft_c2c.default, C(2, 5, 4), [1, 2], _norm, True, low=False)
    s(aten._fft_c2c.default, C(2, 4), [1], _norm, False, low=False)
    s(aten._fft_r2c.default, T(2, 3, 6), [2], _norm, True, low=False)
    s(aten._fft_r2c.default, T(2, 3, 5), [1, 2], _norm, True, low=False)
    s(aten._fft_r2c.default, T(2, 3, 5), [1, 2], _norm, False, low=False)
    s(aten._fft_c2r.default, C(2, 3, 4), [2], _norm, 6, low=False)
    s(aten._fft_c2r.default, C(2, 3, 4), [1, 2], _norm, 7, low=False)
    s(aten._fft_c2r.default, C(2, 1), [1], _norm, 1, low=False)
s(aten.view_as_real.default, C(2, 3), low=False)
s(aten.view_as_real.default, C(2, 1, 4), low=False)
s(aten.view_as_complex.default, T(2, 3, 2), low=False)
s(aten.view_as_complex.default, Z(2, 2), low=False)
s(aten.complex.default, T(2, 3), T(2, 3), low=False)
s(aten.complex.default, Z(2, 1), T(2, 1), low=False)
s([aten._conj.default, aten.conj_physical.default, aten._conj_physical.default], C(2, 3), low=False)
s([aten._conj.default, aten.conj_physical.default, aten._conj_physical.default], C(2, 0, 3), low=False)
s(aten.mul.Tensor, C(2, 3), C(3), low=False)
s(aten.mul.Tensor, T(2, 3), C(3), low=False)
s(aten.add.Tensor, C(2, 3), C(1, 3), low=False)
s(aten.sub.Tensor, C(2, 3), T(2, 3), low=False)
s(aten.div.Tensor, C(2, 3), C(3), low=False)
s(aten.neg.default, C(2, 3), low=False)
s([aten.abs.default, aten.absolute.default], C(2, 3), low=False)
s([aten.clone.default, aten.contiguous.default], C(2, 3), low=False)
s(aten.reshape.default, C(2, 3, 2), [2, 6], low=False)
s(aten.permute.default, C(2, 3, 2), [0, 2, 1], low=False)
s(aten.slice.Tensor, C(2, 5), 1, 1, 4, 2, low=False)
s(aten.select.int, C(2, 5), 1, 3, low=False)
s(aten.cat.default, [C(2, 2), C(2, 3)], 1, low=False)
s(aten.stack.default, [C(2, 2), C(2, 2)], 1, low=False)
s(aten.sum.dim_IntList, C(2, 3, 4), [1], low=False)
s(aten.mean.dim, C(2, 3, 4), [2], True, low=False)
s(aten.expand.default, C(2, 1, 4), [2, 3, 4], low=False)
s(aten.matmul.default, C(2, 3, 4), C(4, 5), low=False)
s(aten.matmul.default, C(5), C(2, 5, 3), low=False, model=False)
s(aten.bmm.default, C(2, 3, 4), C(2, 4, 5), low=False)
s(aten.mm.default, C(2, 4), C(4, 5), low=False)
s(aten.mv.default, C(2, 4), C(4), low=False)
s(aten.addmm.default, C(5), C(2, 4), C(4, 5), beta=0.5, alpha=2, low=False)
s(aten.baddbmm.default, C(2, 3, 5), C(2, 3, 4), C(2, 4, 5), low=False)
s(aten.linear.default, C(2, 3, 4), C(5, 4), C(5), low=False)
s(aten.einsum.default, "bixy,ioxy->boxy", [C(2, 3, 4, 2), C(3, 5, 4, 2)], low=False)
s(aten.einsum.default, "bi,bj->bij", [C(2, 3), C(2, 4)], low=False)
s(aten.addcmul.default, C(2, 3), C(2, 3), C(3), value=0.5, low=False)
s(aten.addcdiv.default, C(2, 3), C(2, 3), C(3), value=0.5, low=False)
s(aten.lerp.Scalar, C(2, 3), C(2, 3), 0.3, low=False)
s(aten.rsub.Tensor, C(2, 3), C(2, 3), alpha=2, low=False)
s(aten.add.Tensor, C(2, 3), C(2, 3), alpha=2j, low=False)
s(aten.cumsum.default, C(2, 3), 1, low=False)
s(aten.pad.default, C(2, 3), [1, 2], low=False)
s(aten.pad.default, C(2, 3, 5), [1, 2], "circular", low=False)
s(aten.constant_pad_nd.default, C(2, 3), [1, -1], 2.0, low=False)
s([aten.tril.default, aten.triu.default], C(2, 3, 3), low=False)
s(aten.diagonal.default, C(2, 3, 4), 1, 1, 2, low=False)
s(aten.repeat.default, C(2, 3), [1, 2], low=False)
s(aten.repeat_interleave.self_int, C(2, 3), 2, 1, low=False)
s(aten.unfold.default, C(2, 5), 1, 3, 2, low=False)
s(aten.copy.default, C(2, 3), C(2, 3), low=False)
s(aten.where.self, Mask(2, 3), C(2, 3), C(2, 3), low=False)
s(aten.masked_fill.Scalar, C(2, 3), Mask(2, 3), 2.0, low=False)
s(aten.index_select.default, C(2, 5), 1, Ids(5, 3), low=False)
s(aten.gather.default, C(2, 5), 1, Ids(5, 2, 3), low=False)
s(aten.index.Tensor, C(2, 5), [None, Ids(5, 3)], low=False)
s(aten.index_put.default, C(2, 5), [None, Ids(5, 3)], C(2, 3), low=False)
s(aten.index_put.default, C(2, 5), [None, Ids(5, 3)], C(2, 3), True, low=False)
s(aten.index_put.default, C(2, 5), [Mask(2, 5)], C(), low=False, model=False)
s(aten.scatter.src, C(2, 5), 1, Ids(5, 2, 3), C(2, 3), low=False)
s(aten.scatter.value, C(2, 5), 1, Ids(5, 2, 3), 2.0, low=False)
s(aten.scatter_add.default, C(2, 5), 1, Ids(5, 2, 3), C(2, 3), low=False)
s(aten.index_add.default, C(2, 5), 1, Ids(5, 3), C(2, 3), low=False)
s(aten.slice_scatter.default, C(2, 5), C(2, 2), 1, 1, 3, low=False)
s(aten.select_scatter.default, C(2, 5), C(2), 1, 3, low=False)
s(aten.masked_scatter.default, C(2, 3), Mask(2, 3), C(4, 3), model=False, low=False)
s(aten.polar.default, P(2, 3), T(2, 3), low=False)
s(aten.polar.default, Z(2, 1), T(3), low=False)
