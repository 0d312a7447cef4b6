"""Random weights that hide nothing: no bias is zero, no norm is the identity, no layer is switched off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Perturb all vectors of parameters and all running statistics, and redraw weights that an initialiser made equal.

    A vector is a parameter with at most one dimension that is not 1: biases, norm weights, layer scales, class tokens.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype)

    for p in model.parameters():
        if not p.is_floating_point() or p.numel() == 0:
            continue
        if p.numel() == max(p.shape, default=1):
            p.add_(0.2 * normal(p))
        elif bool((p == p.reshape(-1)[0]).all()):
            p.copy_(normal(p) / p.shape[-1] ** 0.5)
    for norm in _norms(model):
        norm.running_mean.add_(0.2 * normal(norm.running_mean))
        norm.running_var.mul_(normal(norm.running_var).mul(0.3).exp())


@torch.no_grad()
def calibrate(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> None:
    """Running statistics in the neighbourhood of those of the inputs.

    With statistics drawn alone a deep network lets no more than 1e-8 of its input through, or overflows.
    """
    generator = torch.Generator().manual_seed(seed)

    def near(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        var = x.var(1) + 0.1 * x.var()
        norm.running_mean.copy_(x.mean(1) + 0.3 * var.sqrt() * torch.randn(len(x), generator=generator))
        norm.running_var.copy_(var * (0.5 + torch.rand(len(x), generator=generator)))

    hooks = [norm.register_forward_pre_hook(near) for norm in _norms(model)]
    if hooks:
        model(*args, **kwargs)
    for hook in hooks:
        hook.remove()


def _norms(model: nn.Module) -> list[Any]:
    """The layers with running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
