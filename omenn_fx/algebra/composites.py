"""Composites: the steps of rules that an exporter translates as a whole, by name and operands.

A rule calls one as any function of tensors. It computes in plain torch, in eager mode and under torch.compile; in an
explainer graph it is one node. While an explainer is exported (`kept`) each call becomes the operator `omenn::name`, so
a pass finds what a value is and what it belongs to, however the step is written here. What no pass took is written out
by the same plain torch (`export.passes.optimize.write_out`): no exported file holds an operator of this package.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.library import Library, infer_schema, register_fake
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from omenn_fx.compat import OpOverload

Tensor = torch.Tensor
Function = TypeVar("Function", bound=Callable[..., Any])

_LIBRARY = Library("omenn", "DEF")
_OPERATORS: dict[Callable[..., Any], OpOverload] = {}
BODIES: dict[Any, Callable[..., Any]] = {}  # operator -> the plain torch that it stands for


def composite(body: Function) -> Function:
    """Decorator: a function of tensors and numbers, called by position, that an exporter sees as one operator."""

    @functools.wraps(body)
    def call(*operands: Any) -> Any:
        if has_torch_function(operands):  # a value of a graph that is built, or an export that keeps composites
            return handle_torch_function(call, operands, *operands)
        return body(*operands)

    name = body.__name__
    _LIBRARY.define(name + infer_schema(body, mutates_args=()))
    _LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    register_fake(f"omenn::{name}", body, lib=_LIBRARY)
    operator = getattr(torch.ops.omenn, name).default
    _OPERATORS[call], BODIES[operator] = operator, body
    return call  # type: ignore[return-value]


def kept() -> AbstractContextManager[Any]:
    """Within it, composites are called as operators."""
    return _Kept()


class _Kept(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _OPERATORS.get(func, func)(*args, **(kwargs or {}))


# Coefficients --------------------------------------------------------------------------------------------------------


@composite
def relu_mask(out: Tensor) -> Tensor:
    """1 where a ReLU passes its operand on, else 0, of the ReLU's result: never negative, so that its sign will do."""
    return torch.sign(out)


@composite
def saturation(clipped: Tensor, x: Tensor, high: float) -> Tensor:
    """min(max(x, 0), high) / x, 0 at and below 0; `clipped` is the dividend, which the forward has made."""
    return clipped / torch.clamp(x, min=torch.finfo(x.dtype).tiny)


@composite
def gelu_ratio(x: Tensor, approximate: str) -> Tensor:
    """gelu(x) / x."""
    if approximate == "tanh":
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


@composite
def repaired_quotient(difference: Tensor, x: Tensor, slope: float) -> Tensor:
    """difference / x, and `slope` where x is 0; everywhere else the quotient is finite."""
    return torch.nan_to_num(difference / x, nan=slope, posinf=slope, neginf=slope)


@composite
def attention_weights(
    scores: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> Tensor:
    """The softmax of `scores`, which are those of the attention with all the other operands.

    Behind a mask a row without any key is 0, as in torch.
    """
    weights = torch.softmax(scores, -1)
    return weights if mask is None else torch.nan_to_num(weights, nan=0.0)


# Moves and sums ------------------------------------------------------------------------------------------------------


@composite
def phases(x: Tensor, blocks: list[int], stride: list[int]) -> list[Tensor]:
    """Every stride-th position of the last dimensions, of blocks * stride positions, from each of the first ones on.

    Views of one copy at most: nothing is read with steps, which is slow in onnxruntime.
    """
    n, lead = len(stride), x.ndim - len(stride)
    split = x.reshape([*x.shape[:lead], *(v for pair in zip(blocks, stride, strict=True) for v in pair)])
    parts = [split.permute([*range(lead + 1, lead + 2 * n, 2), *range(lead), *range(lead, lead + 2 * n, 2)])]
    for s in stride:
        parts = [part[i] for part in parts for i in range(s)]
    return parts


@composite
def zeros_between(g: Tensor, stride: list[int]) -> Tensor:
    """Each value at the first position of its stride, zeros behind it, in the dimensions from the third on."""
    n = len(stride)
    for d in range(n):
        g = g.unsqueeze(3 + 2 * d)
    g = F.pad(g, [v for s in reversed(stride) for v in (0, s - 1, 0, 0)])
    for d in range(n):
        g = g.flatten(2 + d, 3 + d)
    return g


@composite
def pointwise_adjoint(g: Tensor, weight: Tensor) -> Tensor:
    """The transpose of a convolution with a kernel of 1 and no stride: a matrix over the channels of every sample."""
    matrix = weight.flatten(1).t().expand(g.shape[0], -1, -1)
    moved: Tensor = torch.bmm(matrix, g.flatten(2)).unflatten(2, list(g.shape[2:]))
    return moved


@composite
def weighted_sum(g: Tensor, b: Tensor, dim: int) -> Tensor:
    """The sum of g * b over a dimension along which b is a vector, without forming the product."""
    letters = "abcdefghijk"[: g.ndim]
    rest = letters.replace(letters[dim], "")
    return torch.einsum(f"{letters},{letters[dim]}->{rest}", g, b)
