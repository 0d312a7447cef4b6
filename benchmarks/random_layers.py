"""The layers that random networks are made of: tables of a name, what the layer needs of a shape, and how it is made.

A layer reads one or two values and returns one; some write into what they read. `MAKERS` has all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]  # with the batch
LARGEST = 1024  # numbers in a row of a value
ANY, SPATIAL = (2, 3, 4, 5), (3, 4, 5)
CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
MAX_POOLS: dict[int, Any] = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
AVERAGE_POOLS: dict[int, Any] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
ADAPTIVE_POOLS: dict[int, Any] = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}


class Apply(nn.Module):
    """A function of parts with parameters and of the values that are read."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*self.parts, *values)


class Weight(nn.Module):
    """A parameter as a part of a layer."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)

    def forward(self) -> Tensor:
        return self.weight


@dataclass(frozen=True)
class Maker:
    """A kind of layer: the ranks of the value that it reads, what else it needs of the shape, and how it is made."""

    name: str
    ranks: tuple[int, ...]
    fits: Callable[[Shape], bool]
    make: Callable[..., nn.Module]  # (random, shape) or, of two values, (random, shape, other shape)
    reads: int = 1


# What layers need ----------------------------------------------------------------------------------------------------


def anything(_: Shape) -> bool:
    return True


def even_channels(s: Shape) -> bool:
    return s[1] % 2 == 0


def even_width(s: Shape) -> bool:
    return s[-1] % 2 == 0


def several(s: Shape) -> bool:
    """At least three of everything, as kernels and reflections want."""
    return min(s[1:]) >= 3


def wide(s: Shape) -> bool:
    return min(s[2:]) >= 3


def small(s: Shape) -> bool:
    """Room for four times as many."""
    return 4 * count(s) <= LARGEST


def short(s: Shape) -> bool:
    """A recurrence is unrolled."""
    return s[1] <= 8 and s[2] <= 32


def count(s: Shape) -> int:
    return torch.Size(s[1:]).numel()


# Layers of one value -------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "gelu": F.gelu, "silu": F.silu, "mish": F.mish,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"), "hardswish": F.hardswish, "softplus": F.softplus,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softsign": F.softsign, "relu6": F.relu6, "selu": F.selu,
    "hardtanh": F.hardtanh, "hardsigmoid": F.hardsigmoid, "logsigmoid": F.logsigmoid, "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink, "sin": torch.sin, "abs": torch.abs, "clamp": lambda x: x.clamp(-0.8, 1.5),
    "square": lambda x: 0.3 * x**2, "gaussian": lambda x: torch.exp(-x * x), "root": lambda x: (x * x + 1).sqrt(),
    "log": lambda x: torch.log1p(x.abs()), "rational": lambda x: x / (1 + x * x), "erf": torch.erf,
    "softmax": lambda x: 3 * x.softmax(-1), "log_softmax": lambda x: x.log_softmax(-1),
    "softmax of channels": lambda x: 3 * x.softmax(1), "cumsum": lambda x: 0.3 * x.cumsum(-1),
    "normalize": lambda x: 2 * F.normalize(x, dim=1), "centre": lambda x: x - x.mean(-1, keepdim=True),
    "sort": lambda x: x.sort(dim=-1, stable=True).values, "flip": lambda x: x.flip(-1), "roll": lambda x: x.roll(1, 1),
    "mask": lambda x: x.masked_fill(x < -0.5, 0.1), "where": lambda x: torch.where(x > 0.2, x, 0.3 * x - 0.1),
    "float and back": lambda x: x.to(x.dtype),
    "dropout": lambda x: F.dropout(x, 0.5, training=False), "negative": lambda x: 0.1 - x,
    "even by shape": lambda x: x if x.shape[-1] % 2 == 0 else F.pad(x, (0, 1)),
    "loop over channels": lambda x: torch.stack([c * (i + 1) / x.shape[1] for i, c in enumerate(x.unbind(1))], 1),
}  # fmt: skip
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_": F.relu_, "silu inplace": lambda x: F.silu(x, inplace=True), "mul_": lambda x: x.mul_(0.7),
    "add_": lambda x: x.add_(0.2), "clamp_": lambda x: x.clamp_(-1, 1),
    "masked_fill_": lambda x: x.masked_fill_(x < 0, 0.1),
    "relu_ of a half": lambda x: (x[:, : x.shape[1] // 2 + 1].relu_(), x)[1],
}  # fmt: skip


def _write_first(x: Tensor) -> Tensor:
    x[:, 0] = x[:, -1] * 0.5
    return x


def _add_to_last(x: Tensor) -> Tensor:
    x[..., -1] += 0.3
    return x


def _write_a_copy(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:] = torch.tanh(x[:, :-1])
    return y + 0.5 * x


def _write_transposed(x: Tensor) -> Tensor:
    x.transpose(1, -1)[:, 0].mul_(0.5)
    return x


def _linear(_: Any, s: Shape) -> nn.Module:
    return nn.Linear(s[-1], 8 if s[-1] < 8 else s[-1])


def _einsum(_: Any, s: Shape) -> nn.Module:
    return Apply(lambda w, x: torch.einsum("n...d,de->n...e", x, w()), Weight(s[-1], 8))


def _scaled_and_shifted(_: Any, s: Shape) -> nn.Module:
    return Apply(lambda a, b, x: a() * x + b(), Weight(s[-1]), Weight(s[-1]))


def _convolution(r: random.Random, s: Shape) -> nn.Module:
    groups, kernel = r.choice([1, 1, 2 if even_channels(s) else 1, s[1]]), r.choice([1, 3])
    mode = r.choice(["zeros", "zeros", "reflect", "circular", "replicate"])
    options = {"padding": kernel // 2, "padding_mode": mode, "groups": groups, "bias": r.random() < 0.7}
    stride = r.choice([1, 1, 2]) if wide(s) else 1
    return CONVOLUTIONS[len(s)](s[1], s[1] * (2 if s[1] < 8 else 1), kernel, stride=stride, **options)


def _transposed(r: random.Random, s: Shape) -> nn.Module:
    return TRANSPOSED[len(s)](s[1], max(s[1] // 2, 1), 2, stride=r.choice([1, 2]))


def _dilated(_: Any, s: Shape) -> nn.Module:
    return CONVOLUTIONS[len(s)](s[1], s[1], 3, dilation=2, padding=2)


def _pooled(r: random.Random, s: Shape) -> nn.Module:
    pools, stride = r.choice([MAX_POOLS, AVERAGE_POOLS]), r.choice([1, 2])
    return Apply(lambda x: pools[len(s)](x, 2, stride))


def _recurrence(r: random.Random, s: Shape) -> nn.Module:
    kind, both = r.choice([nn.LSTM, nn.GRU, nn.RNN]), r.random() < 0.4
    rnn = kind(s[2], 6, num_layers=r.choice([1, 1, 2]), batch_first=True, bidirectional=both)
    return Apply(lambda rnn, x: rnn(x)[0], rnn)


def _self_attention(r: random.Random, s: Shape) -> nn.Module:
    attend = nn.MultiheadAttention(s[2], 2, batch_first=True)
    weights = r.random() < 0.5
    return Apply(lambda attend, x: x + attend(x, x, x, need_weights=weights)[0], attend)


def _sdpa(r: random.Random, s: Shape) -> nn.Module:
    causal = r.random() < 0.5

    def attend(qkv: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)

    return Apply(attend, nn.Linear(s[2], 3 * s[2]))


def _written_attention(_: Any, s: Shape) -> nn.Module:
    def attend(q: nn.Module, k: nn.Module, x: Tensor) -> Tensor:
        scores = torch.einsum("nid,njd->nij", q(x), k(x)) / s[2] ** 0.5
        return scores.tril().masked_fill(scores > 4, 4).softmax(-1) @ x

    return Apply(attend, nn.Linear(s[2], s[2]), nn.Linear(s[2], s[2], bias=False))


def _encoder(r: random.Random, s: Shape) -> nn.Module:
    return nn.TransformerEncoderLayer(
        s[2], 2, 2 * s[2], batch_first=True, norm_first=r.random() < 0.5, activation=r.choice(["relu", "gelu"])
    )


def _gate(r: random.Random, s: Shape) -> nn.Module:
    gate = r.choice([torch.sigmoid, torch.tanh, F.softplus])
    return Apply(lambda inner, x: gate(inner(x)) * x, nn.Linear(s[-1], s[-1]))


def _highway(_: Any, s: Shape) -> nn.Module:
    def mix(gate: nn.Module, inner: nn.Module, x: Tensor) -> Tensor:
        g = torch.sigmoid(gate(x))
        return g * torch.relu(inner(x)) + (1 - g) * x

    return Apply(mix, nn.Linear(s[-1], s[-1]), nn.Linear(s[-1], s[-1]))


def _squeeze_excite(_: Any, s: Shape) -> nn.Module:
    over = tuple(range(2, len(s)))

    def excite(inner: nn.Module, x: Tensor) -> Tensor:
        return x * torch.sigmoid(inner(x.mean(over))).reshape(x.shape[0], -1, *[1] * len(over))

    return Apply(excite, nn.Linear(s[1], s[1]))


def _resized(r: random.Random, s: Shape) -> nn.Module:
    modes = {3: ("nearest", "linear"), 4: ("nearest", "bilinear", "bicubic"), 5: ("nearest", "trilinear")}[len(s)]
    mode, size = r.choice(modes), [n + 1 if n > 3 else 2 * n for n in s[2:]]
    return Apply(lambda x: F.interpolate(x, size=size, mode=mode))


def _padded(r: random.Random, s: Shape) -> nn.Module:
    mode = r.choice(["constant", "reflect", "replicate"])
    return Apply(lambda x: F.pad(x, (1,) * 2 * (len(s) - 2), mode=mode))


def _unfolded(_: Any, s: Shape) -> nn.Module:
    return Apply(lambda inner, x: inner(F.unfold(x, 2, stride=2)), nn.Conv1d(4 * s[1], 8, 1))


def _residual(r: random.Random, s: Shape) -> nn.Module:
    return Apply(lambda inner, x: x + 0.5 * inner(F.relu(x)), nn.Linear(s[-1], s[-1]))


def _mixture(_: Any, s: Shape) -> nn.Module:
    def mix(router: nn.Module, first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        g = router(x).softmax(-1)
        return g[..., :1] * first(x) + g[..., 1:] * second(x)

    return Apply(mix, nn.Linear(s[-1], 2), nn.Linear(s[-1], s[-1]), nn.Linear(s[-1], s[-1]))


def of(function: Callable[[Tensor], Tensor]) -> Callable[..., nn.Module]:
    """A layer without parameters."""
    return lambda *_: Apply(function)


def reduced(r: random.Random, s: Shape) -> nn.Module:
    reduce = r.choice([torch.mean, torch.amax, torch.logsumexp, torch.var, torch.sum])
    over = tuple(range(2, len(s)))
    return Apply(lambda x: reduce(x, over))


# name: ranks, what it needs of the shape, how it is made
ONE: dict[str, tuple[tuple[int, ...], Callable[[Shape], bool], Callable[..., nn.Module]]] = {
    "linear": (ANY, anything, _linear),
    "einsum": (ANY, anything, _einsum),
    "matmul from the left": ((3, 4), anything, lambda r, s: Apply(lambda w, x: w() @ x, Weight(5, s[-2]))),
    "scale and shift": (ANY, anything, _scaled_and_shifted),
    "prelu": (ANY, anything, lambda r, s: nn.PReLU(s[1])),
    "convolution": (SPATIAL, anything, _convolution),
    "dilated convolution": (SPATIAL, wide, _dilated),
    "transposed convolution": (SPATIAL, small, _transposed),
    "batch norm": (ANY, anything, lambda r, s: BATCH_NORMS[len(s)](s[1])),
    "layer norm": (ANY, lambda s: s[-1] > 2, lambda r, s: nn.LayerNorm(s[-1])),
    "rms norm": (ANY, lambda s: s[-1] > 2, lambda r, s: nn.RMSNorm(s[-1])),
    "group norm": (SPATIAL, lambda s: even_channels(s) and wide(s), lambda r, s: nn.GroupNorm(2, s[1])),
    "instance norm": (SPATIAL, wide, lambda r, s: INSTANCE_NORMS[len(s)](s[1], affine=True)),
    "response norm": ((4,), several, lambda r, s: nn.LocalResponseNorm(3)),
    "pool": (SPATIAL, wide, _pooled),
    "adaptive pool": (SPATIAL, wide, lambda r, s: Apply(lambda x: ADAPTIVE_POOLS[len(s)](x, 2))),
    "resize": (SPATIAL, small, _resized),
    "pad": (SPATIAL, lambda s: wide(s) and small(s), _padded),
    "pixel shuffle": ((4,), lambda s: s[1] % 4 == 0, of(lambda x: F.pixel_shuffle(x, 2))),
    "unfold": ((4,), wide, _unfolded),
    "recurrence": ((3,), short, _recurrence),
    "self attention": ((3,), even_width, _self_attention),
    "sdpa": ((3,), even_width, _sdpa),
    "attention by einsum": ((3,), anything, _written_attention),
    "transformer layer": ((3,), even_width, _encoder),
    "gate": (ANY, anything, _gate),
    "highway": (ANY, anything, _highway),
    "mixture": (ANY, anything, _mixture),
    "residual": (ANY, anything, _residual),
    "squeeze and excite": (SPATIAL, anything, _squeeze_excite),
    "glu": (ANY, lambda s: even_channels(s) and s[1] > 2, of(lambda x: F.glu(x, 1))),
    "swap halves": (ANY, even_channels, of(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1))),
    "split": (ANY, several, of(lambda x: torch.cat([x[:, :1].sigmoid(), x.split([1, x.shape[1] - 1], 1)[1]], 1))),
    "every second": (ANY, several, of(lambda x: x[:, ::2])),
    "pick": (ANY, several, of(lambda x: x[:, [0, 2, 1, 0]])),
    "without the first": (ANY, several, of(lambda x: x.narrow(1, 1, x.shape[1] - 1))),
    "triangle": (SPATIAL, anything, of(lambda x: x.tril(1))),
    "transpose": ((3, 4), anything, of(lambda x: x.transpose(1, -1))),
    "permute and view": ((4,), anything, of(lambda x: x.permute(0, 2, 1, 3).contiguous().view(len(x), x.shape[2], -1))),
    "write the first": (ANY, several, of(_write_first)),
    "add to the last": (ANY, anything, of(_add_to_last)),
    "write a copy": (ANY, several, of(_write_a_copy)),
    "write a transposed view": (SPATIAL, several, of(_write_transposed)),
    "volume to image": ((5,), anything, of(lambda x: x.flatten(2, 3))),
    "image to tokens": ((4,), anything, of(lambda x: x.flatten(2).transpose(1, 2))),
    "tokens to image": ((3,), even_width, of(lambda x: x.transpose(1, 2).unflatten(1, (2, -1)))),
    "vector to tokens": ((2,), even_width, of(lambda x: x.unflatten(1, (2, -1)))),
    "vector to outer product": ((2,), lambda s: s[1] <= 16, of(lambda x: x[:, :, None] * torch.tanh(x[:, None, :4]))),
    "reduce": (SPATIAL, wide, reduced),
    "last step": ((3,), anything, of(lambda x: x[:, -1])),
    "flatten": (SPATIAL, lambda s: count(s) <= 256, of(lambda x: x.flatten(1))),
}  # fmt: skip


# Layers of two values ------------------------------------------------------------------------------------------------


def _to_shape(r: random.Random, s: Shape, other: Shape) -> nn.Module:
    """The other value as a vector of channels that broadcasts against the first."""
    over = tuple(range(2, len(other)))
    to = nn.Linear(other[1], s[1])
    return Apply(lambda to, y: to(y.mean(over) if over else y).reshape(y.shape[0], -1, *[1] * (len(s) - 2)), to)


def combined(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., nn.Module]:
    """A layer of the first value and of the other, as it is or made to fit."""

    def make(r: random.Random, s: Shape, other: Shape) -> nn.Module:
        fitted = nn.Identity() if s == other else _to_shape(r, s, other)
        return Apply(lambda fit, x, y: function(x, fit(y)), fitted)

    return make


def _cross_attention(r: random.Random, s: Shape, other: Shape) -> nn.Module:
    heads = 2 if even_width(s) else 1
    attend = nn.MultiheadAttention(s[2], heads, kdim=other[-1], vdim=other[-1], batch_first=True)
    return Apply(lambda attend, x, y: attend(x, *[y.reshape(y.shape[0], -1, other[-1])] * 2)[0], attend)


def _bilinear(_: Any, s: Shape, other: Shape) -> nn.Module:
    return Apply(lambda inner, x, y: inner(x, y.flatten(1)[:, :4]), nn.Bilinear(s[1], min(4, count(other)), 6))


TWO: dict[str, tuple[tuple[int, ...], Callable[..., nn.Module]]] = {
    "add": (ANY, combined(lambda x, y: x + y)),
    "weighted sum": (ANY, combined(lambda x, y: torch.add(0.6 * x, y, alpha=-0.4))),
    "gated by": (ANY, combined(lambda x, y: x * torch.sigmoid(y))),
    "modulated by": (ANY, combined(lambda x, y: x * (1 + torch.tanh(y)) + 0.3 * y)),
    "product": (ANY, combined(lambda x, y: x * y)),
    "quotient": (ANY, combined(lambda x, y: x / (1 + y.abs()))),
    "maximum": (ANY, combined(torch.maximum)),
    "chosen by": (ANY, combined(lambda x, y: torch.where(y > 0, x, y))),
    "lerp": (ANY, combined(lambda x, y: torch.lerp(x, y.expand_as(x), 0.3))),
    "concatenate": (ANY, combined(lambda x, y: torch.cat([x, y.expand_as(x)], 1))),
    "stack": (ANY, combined(lambda x, y: torch.stack([x, y.expand_as(x)]).mean(0))),
    "add in place": (ANY, combined(lambda x, y: x.add_(y))),
    "write over the first": (ANY, combined(lambda x, y: (x[:, :1].copy_(y[:, :1]), x)[1])),
    "cross attention": ((3,), _cross_attention),
    "bilinear": ((2,), _bilinear),
}

MAKERS = [
    *(Maker(name, ANY, anything, of(f)) for name, f in FUNCTIONS.items()),
    *(Maker(name, ANY, anything, of(f)) for name, f in IN_PLACE.items()),
    *(Maker(name, *row) for name, row in ONE.items()),
    *(Maker(name, ranks, small, make, reads=2) for name, (ranks, make) in TWO.items()),
]
SIMPLE = {*FUNCTIONS, *IN_PLACE}
