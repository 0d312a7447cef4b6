"""OMENN as an `explain_func` of Quantus (https://github.com/understandable-machine-intelligence-lab/Quantus)."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from omenn_fx.integrations.live import LiveExplainer

_explainers: WeakKeyDictionary[nn.Module, dict[str, LiveExplainer]] = WeakKeyDictionary()


def explain(
    model: nn.Module,
    inputs: ArrayLike | torch.Tensor,
    targets: ArrayLike | torch.Tensor,
    *,
    bias: str = "carrier",
    reduce_axes: Sequence[int] = (1,),
    keepdims: bool = True,
    device: object = None,
) -> np.ndarray:
    """The contributions C = C_w * X + C_b to the targets' outputs; by default summed over channels, as Quantus' own.

    Pass it as `explain_func`, and the keyword arguments as `explain_func_kwargs`. A model is captured once for each
    shape of its inputs (the batch size apart). Weights may change between calls, as randomisation metrics do, and
    models are not kept alive.

    Args:
        model: in eval mode, with outputs [N, K].
        inputs: [N, C, ...] or [N, F], converted to the dtype and device of the model.
        targets: classes [N], or one for all rows.
        bias: the bias policy of `omenn_fx.transform`.
        reduce_axes: the axes to sum over, none of them the batch; () for none. Inputs [N, F] are never reduced.
        keepdims: whether summed axes stay, with size 1.
        device: not needed, as the model says where it is; Quantus passes it.

    Returns:
        [N, 1, ...] by default; [N, C, ...] for reduce_axes=(). Each row sums to its target's output (not for
        bias="none", which leaves the biases' part out).

    Raises:
        ModeError: the model is in train mode.
        TargetError: no such class.
        OmennError: the model cannot be explained; the error says where and why.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.as_tensor(inputs).to(weight.device, weight.dtype)
    classes = torch.as_tensor(targets).reshape(-1)
    live = _explainers.setdefault(model, {}).setdefault(bias, LiveExplainer(bias=bias))  # from any thread
    C = live.of(model)(x, target=int(classes) if classes.numel() == 1 else classes.long()).C
    axes = tuple(reduce_axes) if x.ndim > 2 else ()
    return (C.sum(axes, keepdim=keepdims) if axes else C).cpu().numpy()
