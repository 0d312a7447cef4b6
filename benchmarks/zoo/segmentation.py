"""torchvision's segmentation models: they return a dict with one map of logits, or two."""

from __future__ import annotations

import torch

from . import Example, census
from .common import torchvision


def build(name: str) -> Example:
    """A model at its image size in names.json."""
    model = torchvision().models.get_model(name, weights=None, weights_backbone=None)
    (shape,) = census()[f"segmentation/{name}"].inputs
    return model, (torch.randn(shape),), {}
