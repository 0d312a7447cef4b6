"""The model zoo of the coverage benchmark: 578 architectures with random weights, built by name.

    model, args, kwargs = zoo.build("timm/resnet18", torch.float64)

A name is "group/model"; `names.json` lists them all, with the shapes of their inputs, their number of parameters and
whether torch.export captures them. A name of timm may also be one that the list does not hold.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from .random_weights import calibrate, randomise

__all__ = ["GROUPS", "Entry", "Example", "build", "calibrate", "census", "missing", "randomise"]

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Builder = Callable[[str], Example]

# group -> (module of this package with a function `build(model name)`, libraries that it needs)
GROUPS = {
    "plain": ("plain", ("torchvision",)),
    "huggingface": ("huggingface", ("transformers",)),
    "pyg": ("pyg", ("torch_geometric",)),
    "segmentation": ("segmentation", ("torchvision",)),
    "torchvision": ("torchvision_models", ("torchvision",)),
    "timm": ("timm_models", ("timm", "torchvision")),
}


@dataclass(frozen=True)
class Entry:
    """One line of `names.json`."""

    inputs: list[list[int]]
    parameters: int
    exports: bool


@cache
def census() -> dict[str, Entry]:
    """Every model of the zoo, group by group."""
    text = Path(__file__).with_name("names.json").read_text(encoding="utf-8")
    return {name: Entry(**entry) for name, entry in json.loads(text).items()}


def missing(group: str) -> list[str]:
    """The libraries that a group needs and that are not installed."""
    return [library for library in GROUPS[group][1] if importlib.util.find_spec(library) is None]


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, calibrated: bool = True) -> Example:
    """(model in eval mode, args, kwargs), the same numbers at every call and in every dtype.

    `calibrated`: random norm statistics and biases, fitted to the activations; not needed where only shapes are.
    """
    group, _, model_name = name.partition("/")
    builder: Builder = importlib.import_module(f".{GROUPS[group][0]}", __name__).build
    torch.backends.mha.set_fastpath_enabled(True)  # a model may turn it off
    torch.manual_seed(seed)
    model, args, kwargs = builder(model_name)
    model.eval().requires_grad_(False)
    if calibrated:
        randomise(model, seed)
        calibrate(model, args, kwargs, seed)
    args, kwargs = pytree.tree_map(lambda leaf: _cast(leaf, dtype), (args, kwargs))
    return model.to(dtype), args, kwargs


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
