"""timm's models, by name."""

from __future__ import annotations

import torch
from torch import nn

from . import Example, census
from .common import timm

BATCH = 2


def build(name: str) -> Example:
    """A model at its image size in names.json; a name that is not in it at timm's own."""
    own = list(timm().get_pretrained_cfg(name).input_size)
    entry = census().get(f"timm/{name}")
    shape = entry.inputs[0] if entry else [BATCH, *own]
    model = timm().create_model(name) if shape[1:] == own else resized(name, shape[-1])
    return model, (torch.randn(shape),), {}


def resized(name: str, size: int) -> nn.Module:
    """A model for another image size; one that is convolutions alone takes any."""
    try:
        return timm().create_model(name, img_size=size)
    except TypeError:
        return timm().create_model(name)
