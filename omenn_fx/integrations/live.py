"""One explainer for a model that others hold, and may change, between calls."""

from __future__ import annotations

from typing import Any

from torch import nn

from omenn_fx.analysis.plan import Request
from omenn_fx.explainer import Explainer
from omenn_fx.programs import Programs


class LiveExplainer:
    """Explains a model as it is at each call, as every explainer does, and does not keep it alive.

    Args:
        **options: those of `omenn_fx.transform`.
    """

    def __init__(self, **options: Any):
        self._request = Request.of(**options)
        self._programs = Programs()

    def of(self, model: nn.Module) -> Explainer:
        """An explainer of a model, with what was captured of it before. Raises ModeError in train mode."""
        return Explainer(model, self._request, self._programs)
