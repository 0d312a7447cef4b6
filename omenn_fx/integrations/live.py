"""One explainer for a model that others hold, and may change, between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from omenn_fx.capture.torch_export import require_eval
from omenn_fx.explainer import Explainer, transform


class LiveExplainer:
    """Explains a model as it is at each call, and does not keep it alive.

    An explainer shares its weights with the model, so what changes in place (an optimizer's step, `load_state_dict`,
    `reset_parameters`) reaches it by itself. Where tensors or modules were replaced, a new explainer is made. An
    attribute of the user's own that steers `forward` is not seen.

    Args:
        **options: those of `omenn_fx.transform`.
    """

    def __init__(self, **options: Any):
        self.options = options
        self._explainer: Explainer | None = None
        self._layout: list[tuple[Any, ...]] = []
        self._tensors: list[torch.Tensor] = []

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[Explainer]:
        """The explainer of a model. Raises ModeError where the model is in train mode."""
        require_eval(model)
        layout, tensors = _parts(model)
        replaced = layout != self._layout or any(a is not b for a, b in zip(tensors, self._tensors, strict=True))
        if self._explainer is None or replaced:
            self._explainer = transform(model, **self.options)
            self._layout, self._tensors = layout, tensors
        explainer = self._explainer
        explainer.model = model
        try:
            yield explainer
        finally:
            explainer.model = None


def _parts(model: nn.Module) -> tuple[list[tuple[Any, ...]], list[torch.Tensor]]:
    """What a capture holds of a model: names and kinds, and the tensors themselves."""
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    layout: list[tuple[Any, ...]] = [(name, type(module)) for name, module in model.named_modules()]
    layout += [(name, t.dtype, t.device) for name, t in tensors.items()]
    return layout, list(tensors.values())
