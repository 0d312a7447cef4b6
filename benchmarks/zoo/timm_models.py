"""timm's models, by name."""

from __future__ import annotations

import torch
from torch import nn

from . import Example
from .common import timm

BATCH = 2
MIXES = {"csatv2", "csatv2_21m"}  # its spatial attention multiplies (B, N) by (N, B): samples of a batch meet
SMALL = 96  # the image of a model that takes any size
LARGE = 256  # above it, a model with a size of its own is built for MEDIUM
MEDIUM = 224


def build(name: str) -> Example:
    """A model at an image that takes less time than its own, where its own is large."""
    with torch.device("meta"):
        own = list(timm().create_model(name).default_cfg["input_size"])  # a deprecated name has no other way to it
    model, (x,), _ = smaller(name, own)
    return model, (x[:1] if name in MIXES else x,), {}


def resized(name: str, size: int) -> nn.Module:
    """A model for another image size; one that is convolutions alone takes any."""
    try:
        return timm().create_model(name, img_size=size)
    except TypeError:
        return timm().create_model(name)


def smaller(name: str, own: list[int]) -> Example:
    """A model at a smaller image, if it runs there; else at its own size."""
    takes_any = True
    try:
        with torch.device("meta"):
            timm().create_model(name, img_size=own[-1])
        takes_any = False
    except TypeError:
        pass
    size = min(own[-1], SMALL) if takes_any else MEDIUM if own[-1] > LARGE else own[-1]
    if size != own[-1]:
        try:
            model, x = resized(name, size).eval(), torch.randn(BATCH, own[0], size, size)
            with torch.no_grad():
                model(x)
            return model, (x,), {}
        except (RuntimeError, AssertionError, ValueError):
            pass
    return timm().create_model(name), (torch.randn(BATCH, *own),), {}


def below(parameters: int) -> dict[str, int]:
    """Every name of timm's with fewer parameters than that -> their number."""
    sizes = {}
    for name in timm().list_models():
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in timm().create_model(name).parameters())
    return {name: size for name, size in sizes.items() if size < parameters}
