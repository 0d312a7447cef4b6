"""Digits: W is as precise as the result that it makes, and every number in it is one."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx.algebra import Slot, invariants, omenn
from omenn_fx.testing import bound, called

aten = torch.ops.aten
F64, F32 = torch.float64, torch.float32

# Operands of other dtypes -------------------------------------------------------------------------------------------

VALUES = torch.tensor([3, 7, 11, 5, 9, 13])
OTHERS = {
    "int64": VALUES,
    "bool": VALUES > 4,
    "float32": torch.sqrt(VALUES),
    "float16": torch.sqrt(VALUES).half(),
}
LINEAR = {  # of a content x and another operand n: W is the gradient
    "mul": lambda x, n: n * x,
    "div": lambda x, n: x / n,
    "true_divide": lambda x, n: torch.true_divide(x, n),
    "add": lambda x, n: torch.add(x, n, alpha=0.3),
    "sub": lambda x, n: torch.sub(1 * n, x, alpha=1.7),
    "rsub": lambda x, n: torch.rsub(x, 1 * n, alpha=0.7),
    "addcdiv": lambda x, n: torch.addcdiv(x, x, n, value=0.3),
    "addcmul": lambda x, n: torch.addcmul(x, x, n, value=0.3),
    "where": lambda x, n: torch.where(x > 0, x, n),
    "masked_fill": lambda x, n: x.masked_fill(n > 5, 0.1),
    "maximum": lambda x, n: torch.maximum(30 * x, n),
    "fmin": lambda x, n: torch.fmin(n, 30 * x),
    "counted": lambda x, n: x / n.sum(),
    "reciprocal": lambda x, n: x * n.reciprocal(),
    "in float32": lambda x, n: (x.sign().float() * n).to(x.dtype) * x,
}
OTHER = {  # of these the sum alone is known beforehand
    "pow": lambda x, n: torch.pow(x.abs() + 0.5, n),
    "root": lambda x, n: torch.pow(x.abs() + 0.5, n / 10),
    "clamp": lambda x, n: torch.clamp(5 * x, max=n),
    "logaddexp": lambda x, n: torch.logaddexp(x, n),
}


class Between(nn.Module):
    """An operator between two linear layers in float64; its other operand is of a dtype of its own."""

    def __init__(self, operator, other):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, dtype=F64), nn.Linear(6, 2, dtype=F64)
        self.operator = operator
        self.register_buffer("other", other)
        self.eval()

    def forward(self, x):
        return self.last(self.operator(self.first(x), self.other))


def explained(model: nn.Module, x: torch.Tensor):
    explainer = omenn_fx.transform(model, x)
    result = explainer.validate(x, target=1)
    assert result.ok, str(result)
    got = explainer(x, target=1)
    assert got.C.dtype == x.dtype
    assert float(got.completeness_error.max()) < 1e-14
    return got


@pytest.mark.parametrize("name", [*LINEAR, *OTHER])
def test_a_float64_value_beside_another_dtype_keeps_its_digits(name):
    operator = LINEAR.get(name) or OTHER[name]
    for kind, other in OTHERS.items():
        torch.manual_seed(0)
        x, model = torch.randn(3, 4, dtype=F64), Between(operator, other)
        if not model(x).isfinite().all():  # divided by False
            continue
        got = explained(model, x)
        if name in LINEAR:
            leaf = x.clone().requires_grad_()
            # autograd's own addcmul and addcdiv compute the factor in the dtype of the other operand
            wide = other.double() if name.startswith("addc") else other
            logits = model.last(operator(model.first(leaf), wide))
            (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
            assert float((got.C_w - gradient).abs().max() / gradient.abs().max()) < 1e-13, kind


@pytest.mark.parametrize("rules", ["gradient", "deeplift", "omenn_gamma", "epsilon_plus"])
def test_other_sets_keep_the_digits_as_well(rules):
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=F64)
    model = Between(lambda x, n: torch.addcdiv(x / n, x, n + 2, value=0.3) * n.half(), VALUES)
    got = omenn_fx.transform(model, x, rules=rules)(x, target=1)
    assert float(got.completeness_error.max()) < 1e-14


def normal(*shape, dtype=F32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


MIXED = [  # operator, operands: content of one precision, others of another
    (aten.mul.Tensor, [normal(2, 3), normal(2, 3, dtype=F64)]),
    (aten.div.Tensor, [normal(2, 3, dtype=F64), normal(2, 3).half().exp()]),
    (aten.softmax.int, [normal(2, 3), -1, F64]),
    (aten.log_softmax.int, [normal(2, 3), -1, F64]),
    (aten.sum.dim_IntList, [normal(2, 3), [1], False, F64]),
    (aten.mean.dim, [normal(2, 3).bfloat16(), [1], False, F32]),
    (aten.cumsum.default, [normal(2, 3), 1, F64]),
    (aten.maximum.default, [normal(2, 3), normal(2, 3, dtype=F64)]),
    (aten.where.self, [normal(2, 3) > 0, normal(2, 3), normal(2, 3, dtype=F64)]),
    (aten.cat.default, [[normal(2, 3), normal(2, 3, dtype=F64)], 1]),
    (aten.div.Tensor, [normal(2, 3, dtype=torch.complex128), torch.tensor([3, 7, 11])]),
    (aten.mul.Tensor, [normal(2, 3, dtype=F64), normal(2, 3, dtype=torch.complex64)]),
    (aten.batch_norm.default, [normal(2, 3).bfloat16(), *[normal(3).exp()] * 4, False, 0.1, 1e-5, True]),
    (aten.layer_norm.default, [normal(2, 3).bfloat16(), [3], normal(3), normal(3), 1e-5]),
    (aten.group_norm.default, [normal(2, 4, 3).bfloat16(), 2, normal(4), normal(4)]),
]  # fmt: skip


@pytest.mark.parametrize(("op", "args"), MIXED, ids=[f"{i}-{op}" for i, (op, _) in enumerate(MIXED)])
def test_calls_of_several_precisions(op, args):
    """W is as precise as the result, takes the operand's dtype to the result's, and its transpose goes back."""
    rule, operands = omenn[op], bound(op, args)
    names = [name for name in rule.content if name in operands]
    slots = [Slot(n, i) for n in names if isinstance(operands[n], list) for i in range(len(operands[n]))]
    slots += [Slot(n) for n in names if isinstance(v := operands[n], torch.Tensor) and v.is_floating_point()]
    for content in [(slot,) for slot in slots] or [(Slot(names[0]),)]:
        call = called(op, operands, content)
        form = rule.affine(call)
        coarse = torch.finfo(call.out.dtype).eps
        assert float(invariants.node(call, form)) < 20 * coarse
        for slot, linear in form.terms.items():
            assert linear.apply(call.at(slot)).dtype == call.out.dtype
            assert linear.transpose(torch.ones_like(call.out)).dtype == call.at(slot).dtype
        assert float(invariants.transpose(call, form, torch.Generator().manual_seed(0))) < 20 * max(
            coarse, *(torch.finfo(call.at(s).dtype).eps for s in content)
        )


# Interpolation ------------------------------------------------------------------------------------------------------

FACTORS = (1.3, 1.5, 0.6, 0.7, 1.1, 2.5, 2.0, 0.5, 3.0)
SHAPES = {1: [(2,), (7,)], 2: [(3, 2), (4, 5)], 3: [(3, 2, 2), (2, 5, 3)]}
MODES = [
    *((f"upsample_{kind}", n, align) for n, kind in enumerate(("linear1d", "bilinear2d", "trilinear3d"), 1)
      for align in (False, True)),
    *((f"{kind}{n}d", n, None) for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    *((name, 2, align) for name in ("upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa")
      for align in (False, True)),
]  # fmt: skip
LAYOUTS = {1: [torch.contiguous_format], 2: [torch.contiguous_format, torch.channels_last],
           3: [torch.contiguous_format, torch.channels_last_3d]}  # fmt: skip


def sizes_and_factors(shape):
    """What `interpolate` may be given: one of the two."""
    yield from ((None, [factor] * len(shape)) for factor in FACTORS)
    yield None, [1.3, 2.0, 0.7][: len(shape)]
    yield from (
        (size, None) for size in ([2 * s for s in shape], [s + 3 for s in shape], [max(s - 1, 1) for s in shape])
    )
    yield list(shape), None


@pytest.mark.parametrize(("name", "n", "align"), MODES, ids=[f"{m[0]}-{m[2]}" for m in MODES])
def test_interpolation_reads_what_torch_reads(name, n, align):
    """Kernels differ in their index arithmetic, by dimensions, dtype, layout, channels and equal sizes."""
    op = getattr(aten, name).vec
    for shape, channels, layout, dtype in product(SHAPES[n], (1, 8), LAYOUTS[n], (F32, F64)):
        x = torch.randn(2, channels, *shape, dtype=dtype).contiguous(memory_format=layout)
        for size, factors in sizes_and_factors(shape):
            if min(size or [int(s * f) for s, f in zip(shape, factors, strict=True)]) < 1:
                continue
            args = [x, size, *([] if align is None else [align]), factors]
            call = called(op, bound(op, args), (Slot("input"),))
            form = omenn[op].affine(call)
            limit = 1e-5 if dtype is F32 else 1e-12
            where = f"{shape} {channels} {layout} {dtype} {size} {factors}"
            assert float(invariants.node(call, form)) < limit, where
            assert float(invariants.transpose(call, form, torch.Generator().manual_seed(0))) < limit, where


class Resized(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.eval()

    def forward(self, x):
        return F.interpolate(x, **self.options).flatten(1)


@pytest.mark.parametrize("options", [
    {"scale_factor": 1.3, "mode": "nearest"},
    {"scale_factor": (1.3, 2.0), "mode": "nearest-exact"},
    {"size": (2, 1), "mode": "bilinear", "antialias": True},
    {"scale_factor": 1.7, "mode": "bicubic", "recompute_scale_factor": True},
    {"size": (5, 3), "mode": "area"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_resized_maps_sum_to_the_value(options, layout):
    """Through capture, at a batch and a layout that it was not captured at."""
    torch.manual_seed(0)
    model = Resized(**options)
    explainer = omenn_fx.transform(model, torch.randn(2, 3, 3, 2, dtype=F64))
    for batch in (1, 3):
        x = torch.randn(batch, 3, 3, 2, dtype=F64).contiguous(memory_format=layout)
        y = model(x)
        got = explainer(x, target=torch.arange(y.shape[1]).expand(batch, -1))
        torch.testing.assert_close(got.sum, y, rtol=0, atol=1e-12)


# Statistics of constant rows, and numbers next to 0 -----------------------------------------------------------------

STATISTICS = {
    "std": lambda x: x.std(1),
    "var": lambda x: x.var(1),
    "square root of a variance": lambda x: x.var(1, unbiased=False).sqrt(),
    "norm": lambda x: (x - 0.7).norm(dim=1),
    "norm that underflows": lambda x: (x * 1e-25).norm(dim=1),
    "norm of denormals": lambda x: (x * 1e-42).norm(dim=1),
    "std that underflows": lambda x: (x * 1e-25 * torch.arange(8)).std(1),
    "1-norm": lambda x: torch.linalg.vector_norm(x - 0.7, 1, dim=1),
    "3-norm": lambda x: torch.linalg.vector_norm(x * 1e-25, 3, dim=1),
    "half a norm": lambda x: torch.linalg.vector_norm(torch.cat([x * 1e-30, x - 0.7], 1), 0.5, dim=1),
    "distance": lambda x: torch.cdist(x[:, None], x.flip(1)[:, None])[:, 0, 0],
    "pairwise distance": lambda x: F.pairwise_distance(x, x.flip(1), eps=0.0),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(1), dim=1),
    "normalised": lambda x: F.normalize(x * 1e-25, dim=1)[:, 0],
    "layer norm": lambda x: F.layer_norm(x, [8])[:, 0],
    "instance norm": lambda x: F.instance_norm(x[:, None])[:, 0, 0],
    "softmax": lambda x: torch.softmax(x, 1)[:, 0],
    "log of the sum of powers": lambda x: torch.logsumexp(x, 1),
    "log of a denormal": lambda x: torch.log(x * 1e-38)[:, 0],
    "root at 0": lambda x: ((x - 0.7) ** 0.5)[:, 0],
    "inverse": lambda x: ((1e20 * x * 1e-40) ** -1)[:, 0] * 1e-20,
}


class Pooled(nn.Module):
    def __init__(self, statistic, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.statistic, self.last = statistic, nn.Linear(2, 3, dtype=dtype)
        self.eval()

    def forward(self, x):
        return self.last(torch.stack([x.mean(1), self.statistic(x)], 1))


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_constant_rows(name):
    for dtype, rules in [(F32, "omenn"), (F64, "omenn_gamma"), (F32, "epsilon_plus")]:
        model, x = Pooled(STATISTICS[name], dtype), torch.full((2, 8), 0.7, dtype=dtype)
        got = omenn_fx.transform(model, x, rules=rules)(x, target=1)
        torch.testing.assert_close(got.sum, model(x)[:, 1].detach(), rtol=1e-5, atol=1e-4)
        assert float(got.C.detach().abs().max()) < 1e3


# Sums that cancel ---------------------------------------------------------------------------------------------------


class Cancels(nn.Module):
    """A constant bias before a matrix whose rows sum to 0: at the input 0 nothing is left but rounding."""

    def __init__(self, dtype, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6, dtype=dtype), nn.Linear(6, outputs, bias=False, dtype=dtype)
        with torch.no_grad():
            self.first.bias.fill_(0.37)
            self.last.weight -= self.last.weight.mean(1, keepdim=True)
        self.eval()

    def forward(self, x):
        return self.last(self.first(x))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_the_error_of_a_sum_that_cancels_is_no_number_without_meaning(dtype):
    x = torch.zeros(2, 4, dtype=dtype)
    for outputs in (1, 3):
        got = omenn_fx.transform(Cancels(dtype, outputs), x)(x, target=0)
        assert float(got.completeness_error.max()) <= 2
    silent = nn.Linear(4, 3, bias=False, dtype=dtype).eval()
    assert float(omenn_fx.transform(silent, x)(x, target=0).completeness_error.max()) == 0


def test_a_small_output_next_to_large_ones_is_held_to_what_is_added_up():
    """Rounding of the largest output is no excuse for a sum that is wrong by a visible part of the value."""
    model = nn.Linear(4, 2, bias=False, dtype=F64).eval()
    with torch.no_grad():
        model.weight[0] *= 1e3
    x = torch.randn(2, 4, dtype=F64)
    explanation = omenn_fx.transform(model, x)(x, target=1)
    assert float(explanation.completeness_error.max()) < 1e-15
    explanation.C_w.mul_(1.001)
    assert float(explanation.completeness_error.max()) > 1e-4
