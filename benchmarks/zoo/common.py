"""What the groups share: optional libraries, and a wrapper that picks one output."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from omenn_fx.loading.models import import_library


def torchvision() -> ModuleType:
    """torchvision, also where its wheel is built for another torch."""
    return import_library("torchvision")


def timm() -> ModuleType:
    """timm (which imports torchvision)."""
    torchvision()
    return import_library("timm")


def transformers() -> ModuleType:
    """transformers (which imports torchvision where that is installed)."""
    if importlib.util.find_spec("torchvision"):
        torchvision()
    return import_library("transformers")


class Pick(nn.Module):
    """A model that returns one part of what another returns."""

    def __init__(self, model: nn.Module, part: str):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return getattr(self.model(*args, **kwargs), self.part)
