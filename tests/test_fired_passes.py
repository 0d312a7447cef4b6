"""Every pass fires on the models it was made for, by count, however the rules are written."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from models import small_vit
from test_passes import assert_keeps, exported
from torch import nn

import omenn_fx
from omenn_fx.algebra import composites
from omenn_fx.algebra.linear import Diagonal
from omenn_fx.algebra.ruleset import omenn
from omenn_fx.export import to_program
from omenn_fx.export.passes import onnxruntime_layout, optimize
from omenn_fx.rules.ops import attention

aten, ops = torch.ops.aten, torch.ops.omenn
IMAGE = (2, 3, 12, 12)


class Residual(nn.Module):
    """A block with a shortcut of stride 2, whose sum puts a value in onnxruntime's blocked layout beside another."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.conv = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16))
        self.shortcut = nn.Sequential(nn.Conv2d(16, 16, 1, 2), nn.BatchNorm2d(16))
        self.head = nn.Linear(16 * 9, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.conv(x) + self.shortcut(x)).flatten(1))


class Case(NamedTuple):
    """A model that some passes were made for, and how many nodes each of them rewrites in it."""

    model: Callable[[], nn.Module]
    size: tuple[int, ...]
    counts: dict[str, int]


class Gated(nn.Module):
    """The sum of a convolution's result, in onnxruntime's blocked layout, and of a gate's, which is not."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 10)

    def forward(self, x):
        return self.head(F.silu(self.first(x)) + self.second(x)).flatten(1)


class Same(nn.Module):
    """Padding of one side alone in front of convolutions, as TensorFlow's "same" has it, one of them depthwise."""

    def __init__(self):
        super().__init__()
        self.dense, self.apart = nn.Conv2d(3, 24, 3, 2), nn.Conv2d(24, 24, 3, 2, groups=24)
        self.head = nn.Conv2d(24, 4, 2)

    def forward(self, x):
        x = self.apart(F.pad(self.dense(F.pad(x, [0, 1, 0, 1])).relu(), [0, 1, 0, 1])).relu()
        return self.head(F.pad(x, [0, 1, 0, 1])).mean((2, 3))


class Unbound(nn.Module):
    """An attention whose query, key and value are unbound from one projection, as in timm; shortcuts with steps."""

    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x):
        query, key, value = self.project(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.head(mixed + x[:, ::2].repeat_interleave(2, 1)).mean(1)


class Fire(nn.Module):
    """ReLUs side by side in front of a pool whose last window reaches beyond the image, as in SqueezeNet."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)
        self.pool, self.head = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(32, 4, 5)

    def forward(self, x):
        return self.head(self.pool(torch.cat([self.first(x).relu(), self.second(x).relu()], 1))).flatten(1)


class Overwritten(nn.Module):
    """A number written behind a mask that stands behind other dimensions."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = x * 2
        x[:, :, torch.arange(6) < 2] = 0.5
        return self.head(x).mean(1)


CASES = {
    "residual": Case(Residual, IMAGE, {
        "fold_constants": 21, "merge_equal_nodes": 2, "fold_batch_norms": 3, "fold_scales": 2, "pointwise_adjoints": 1,
        "forward_convolutions": 4, "sums_over_channels": 6, "same_views": 6, "parts_early": 1, "masks": 2,
        "phases_of_images": 4, "interleaved": 4, "stuffed": 2, "blocked": 2, "columns": 1,
    }),
    "clipped": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (2, 3, 40, 40), {
            "fold_constants": 7, "fold_batch_norms": 1, "fold_scales": 1, "forward_convolutions": 4,
            "sums_over_channels": 3, "same_views": 3, "parts_early": 1, "saturations": 1, "totals": 1,
        },
    ),
    "gated": Case(Gated, IMAGE, {
        "forward_convolutions": 6, "sums_over_channels": 3, "same_views": 3, "parts_early": 1, "blocked": 2,
    }),
    "same": Case(Same, IMAGE, {
        "forward_convolutions": 9, "sums_over_channels": 3, "same_views": 3, "parts_early": 1, "masks": 2,
        "interleaved": 3, "stuffed": 1,
    }),
    "unbound": Case(Unbound, (2, 6, 8), {
        "merge_equal_nodes": 1, "skip_zeros": 7, "parts_early": 2, "share_attention": 1, "columns": 2,
    }),
    "fire": Case(Fire, IMAGE, {
        "merge_equal_nodes": 5, "forward_convolutions": 6, "sums_over_channels": 3, "same_views": 3, "parts_early": 1,
        "masks": 2, "phases_of_images": 4, "interleaved": 2, "blocked": 2,
    }),
    "masked": Case(Overwritten, (2, 3, 6), {
        "fold_constants": 2, "merge_equal_nodes": 3, "masked_writes": 2, "parts_early": 4, "columns": 1,
    }),
    "tanh": Case(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), (2, 6), {
        "parts_early": 1, "repairs": 1, "columns": 2,
    }),
    "transformer": Case(lambda: small_vit()[0], (2, 3, 16, 16), {
        "fold_constants": 6, "merge_equal_nodes": 2, "forward_convolutions": 2, "sums_over_channels": 1,
        "same_views": 1, "skip_zeros": 47, "parts_early": 18, "share_attention": 2, "share_gates": 2, "columns": 9,
    }),
}  # fmt: skip


def fired(module) -> dict[str, int]:
    """Run all passes: the counts of those that fired, less the guards, of which torch makes as many as it likes."""
    onnxruntime_layout.for_onnxruntime(optimize.optimize(module))
    counts = {name: n for name, n in module.meta["rewritten"].items() if n}
    assert counts.pop("drop_assertions", 0) > 0
    return counts


def case(name):
    """The exported graph of a case before any pass, what it is called with, and what it should return."""
    torch.manual_seed(0)
    model = CASES[name].model().eval()
    return exported(model, (torch.randn(CASES[name].size),))


@pytest.mark.parametrize("name", CASES)
def test_every_pass_fires_by_count(name):
    module, values, want = case(name)
    assert fired(module) == CASES[name].counts
    assert_keeps(module, values, want, 1e-5)


def test_no_pass_is_without_a_case():
    passes = {p.__name__ for p in (*optimize.PASSES, *onnxruntime_layout.PASSES)}
    assert passes - {"drop_assertions"} == {name for case in CASES.values() for name in case.counts}


# The rules in other words --------------------------------------------------------------------------------------------


def _phases(x, blocks, stride):
    return [x[..., i :: stride[0], j :: stride[1]] for i in range(stride[0]) for j in range(stride[1])]


def _zeros_between(g, stride):
    whole = g.new_zeros(*g.shape[:2], *(n * s for n, s in zip(g.shape[2:], stride, strict=True)))
    whole[..., :: stride[0], :: stride[1]] = g
    return whole


def _weights(scores, query, key, mask, is_causal, scale):
    size = torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=-1e30))
    total = size.sum(-1, keepdim=True)
    return size / torch.where(total == 0, 1.0, total)


IN_OTHER_WORDS = {
    ops.relu_mask.default: lambda out: (out > 0).to(out.dtype),
    ops.saturation.default: lambda clipped, x, high: torch.where(x > 0, (high / x).clamp(max=1), 0.0),
    ops.gelu_ratio.default: lambda x, approximate: torch.where(x == 0, 0.5, F.gelu(x, approximate=approximate) / x),
    ops.repaired_quotient.default: lambda rise, x, slope: torch.where(x == 0, slope, rise / x),
    ops.attention_weights.default: _weights,
    ops.phases.default: _phases,
    ops.zeros_between.default: _zeros_between,
    ops.pointwise_adjoint.default: lambda g, weight: torch.einsum("no...,oi->ni...", g, weight[:, :, 0, 0]),
    ops.weighted_sum.default: lambda g, b, dim: (g * b.reshape(-1, *[1] * (g.ndim - 1 - dim))).sum(dim),
}


def _operands():
    """Operands for each composite, with what it has to take care of: zeros, a row without any key."""
    x = torch.randn(2, 3, 4, 6).masked_fill(torch.rand(2, 3, 4, 6) < 0.2, 0.0)
    q, k = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    mask = torch.rand(5, 7) < 0.5
    mask[2] = False
    scores = (q @ k.mT * 0.3).masked_fill(~mask, -math.inf)
    return {
        ops.relu_mask.default: [(x.relu(),)],
        ops.saturation.default: [(F.hardtanh(20 * x, 0, 6), 20 * x, 6.0)],
        ops.gelu_ratio.default: [(x, "none"), (x, "tanh")],
        ops.repaired_quotient.default: [(torch.tanh(x), x, 1.0)],
        ops.attention_weights.default: [(scores, q, k, mask, False, 0.3), (q @ k.mT, q, k, None, False, 1.0)],
        ops.phases.default: [(x, [2, 3], [2, 2]), (x, [4, 2], [1, 3])],
        ops.zeros_between.default: [(x, [2, 3])],
        ops.pointwise_adjoint.default: [(x, torch.randn(3, 5, 1, 1))],
        ops.weighted_sum.default: [(x, torch.randn(3), 1), (x, torch.randn(4), 2)],
    }


@pytest.mark.parametrize("operator", composites.BODIES, ids=lambda o: o._schema.name)
def test_a_composite_is_what_it_says(operator):
    """In other words it is the same, as an operator as well as in plain torch."""
    for operands in _operands()[operator]:
        want = IN_OTHER_WORDS[operator](*operands)
        torch.testing.assert_close(composites.BODIES[operator](*operands), want)
        torch.testing.assert_close(operator(*operands), want)


def _relu(call):
    """ReLU's W, written without any composite."""
    return Diagonal((call.x > 0).to(call.out.dtype), call.shape(), call.out.shape)


def _scores(call):
    """The scores of an attention, with the scale on the keys."""
    return torch.einsum("...qd,...kd->...qk", call["query"], call["key"] / math.sqrt(call["query"].shape[-1]))


@pytest.mark.parametrize("name", CASES)
def test_every_pass_fires_on_rules_in_other_words(name, monkeypatch):
    for operator, body in IN_OTHER_WORDS.items():
        monkeypatch.setitem(composites.BODIES, operator, body)
    monkeypatch.setitem(omenn.table, aten.relu.default, replace(omenn.table[aten.relu.default], form=_relu))
    monkeypatch.setattr(attention, "attention_scores", _scores)
    module, values, want = case(name)
    expected = dict(CASES[name].counts)
    assert fired(module) == expected
    assert_keeps(optimize.write_out(module), values, want, 1e-5)


# What no pass takes --------------------------------------------------------------------------------------------------


def test_no_composite_leaves_the_process(tmp_path):
    """A saved program loads where this package is not, and torch.onnx is given what it knows."""
    torch.manual_seed(0)
    explainer = omenn_fx.transform(small_vit()[0].eval(), torch.randn(2, 3, 16, 16))
    program = to_program(explainer, torch.randn(2, 3, 16, 16))
    assert not [n for n in program.graph.nodes if "omenn" in str(n.target)]


class Masked(nn.Module):
    """An attention in which one token may read nothing."""

    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(6, 12), nn.Linear(4, 3)
        mask = torch.rand(5, 5) < 0.6
        mask[2] = False
        self.register_buffer("mask", mask)

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(query, key, value, self.mask)).mean(1)


def test_attention_with_a_row_without_any_key():
    """The forward takes the weights that the rule has repaired, and not those of a softmax of nothing."""
    module, values, want = exported(Masked().eval(), (torch.randn(2, 5, 6),))
    optimize.optimize(module)
    assert module.meta["rewritten"]["share_attention"] == 1
    assert_keeps(module, values, want, 1e-5)
    assert all(torch.isfinite(result).all() for result in module(*values))
