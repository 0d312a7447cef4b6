"""The optional libraries that models come from, and the error of all that cannot be loaded."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from omenn_fx.errors import OmennError

_INSTALL = {
    "torchvision": "pip install torchvision",
    "timm": "pip install timm",
    "safetensors": "pip install safetensors",
}
_kept: list[Any] = []  # torch.library definitions live as long as their objects


class SourceError(OmennError):
    """The model or its weights cannot be loaded."""


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def import_library(name: str) -> Any:
    """Import an optional library. Raises SourceError saying what to install."""
    top = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != top:
            raise SourceError(f"'{name}' cannot be imported: {error}") from error
        raise SourceError(f"'{top}' is not installed: {_INSTALL.get(top, f'pip install {top}')}") from None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _define_torchvision_ops()
        return importlib.import_module(name)


def _define_torchvision_ops() -> None:
    """Names for torchvision's compiled operators, which a build for another torch lacks; no classifier calls them."""
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
