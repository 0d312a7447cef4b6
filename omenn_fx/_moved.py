"""Modules under the names that they had in earlier versions: code and pickles that name them go on working."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ROOMS = {
    "algebra": ("invariants", "layer", "linear", "mass"),
    "analysis": ("plan", "reference", "roles"),
    "capture": ("editor", "functionalize", "inputs"),
    "checking": ("check_report", "findings", "graph_picture", "validate", "validation_report"),
    "export.passes": ("phases",),
    "graph": ("schedule", "twin"),
    "loading": ("images",),
}
_OPERATORS = (
    "attention", "contraction", "convolution", "elementwise", "experts", "folding", "indexing",
    "normalization", "opaque", "pooling", "recurrent", "sampling", "selection", "spectral",
    "statistics", "structural",
)  # fmt: skip

# old name -> new name, both without "omenn_fx."; `omenn_fx.check` is not among them: it is the function
MOVED: dict[str, str] = {
    **{name: f"{room}.{name}" for room, names in _ROOMS.items() for name in names},
    **{f"rules.{name}": f"rules.ops.{name}" for name in _OPERATORS},
    **{f"rules.{name}": f"rules.sets.{name}" for name in ("gradient", "lrp", "shortcuts")},
    "affine": "graph.affine_map",
    "batch": "analysis.batch_dim",
    "canonical": "capture.fold_norms",
    "carry": "algebra.bias_policy",
    "cli_check": "cli.check",
    "cli_export": "cli.export",
    "composite": "analysis.layers",
    "export.layout": "export.passes.onnxruntime_layout",
    "export.simplify": "export.passes.onnx_simplify",
    "exporting": "capture.torch_export",
    "lower": "graph.build",
    "passes": "export.passes.optimize",
    "registry": "algebra",
    "rules.bilinear": "rules.ops.matrices",
    "rules.jacobian": "rules.ops.forms",
    "rules.parts": "rules.ops.complex_parts",
    "rules.attnlrp": "rules.sets.attention_lrp",
    "rules.deeplift": "rules.sets.rescale",
    "select": "analysis.endpoints",
    "sources": "loading.models",
    "zeros": "export.passes.zero_blocks",
}


class _Alias(Loader):
    """Gives the module that is meant itself, under another name: classes and tables must not exist twice."""

    def __init__(self, name: str):
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own  # the import system has put the alias's there


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        package, _, old = fullname.partition(".")
        if package != "omenn_fx" or old not in MOVED:
            return None
        new = f"omenn_fx.{MOVED[old]}"
        warnings.warn(f"{fullname} is now {new}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(new))


def install() -> None:
    """Let the import system look here last."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
