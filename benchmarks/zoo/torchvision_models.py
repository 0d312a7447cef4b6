"""torchvision's classification models, at the smallest images that they take."""

from __future__ import annotations

import torch

from . import Example, census
from .common import torchvision

OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}  # scipy's slow initialiser


def build(name: str) -> Example:
    """A model at its image size in names.json."""
    model = torchvision().models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    (shape,) = census()[f"torchvision/{name}"].inputs
    return model, (torch.randn(shape),), {}
