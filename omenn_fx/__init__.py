"""omenn-fx: compile any PyTorch model into a twin that explains itself, exactly.

import omenn_fx
explainer = omenn_fx.transform(model)
explanation = explainer(x, target=207)   # explanation.C sums to the logit
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omenn_fx import _moved
from omenn_fx._version import __version__
from omenn_fx.algebra.ruleset import omenn
from omenn_fx.checking.check import check
from omenn_fx.checking.check_report import CheckReport
from omenn_fx.checking.validation_report import ValidationReport
from omenn_fx.checking.verdict import NodeVerdict, Verdict
from omenn_fx.errors import (
    CaptureError,
    ExportError,
    FileError,
    IncompleteWarning,
    InputError,
    MixedBatchError,
    ModeError,
    NoContentError,
    NodeError,
    OmennError,
    OutputError,
    ParityError,
    SizeError,
    TargetError,
    UnsupportedOpError,
)
from omenn_fx.explainer import Explainer, transform
from omenn_fx.explanation import BiasTable, Explanation, InputExplanation
from omenn_fx.graph.affine_map import AffineMap
from omenn_fx.program import NodeInfo

if TYPE_CHECKING:
    from omenn_fx.export.archive import SavedExplainer

_moved.install()

rule = omenn.register
opaque = omenn.opaque


def _load_rules() -> None:
    import omenn_fx.rules  # noqa: F401  (fills the rule sets)


omenn.table.filled_by(_load_rules)


def load(path: str | Path, *, trusted: bool = False) -> SavedExplainer:
    """Load an explainer that `Explainer.save` wrote to a `.pt2` file.

    Args:
        path: the file.
        trusted: also load what could run code (SECURITY.md), as you would start a program.

    Raises:
        ExportError: there is no such file, or it holds no explainer.
        FileError: it is damaged, or, unless trusted, holds more than plain tensors and known operators.
    """
    from omenn_fx.export.archive import load as read

    return read(path, trusted)


__all__ = [
    "AffineMap",
    "BiasTable",
    "CaptureError",
    "CheckReport",
    "Explainer",
    "Explanation",
    "ExportError",
    "FileError",
    "IncompleteWarning",
    "InputError",
    "InputExplanation",
    "MixedBatchError",
    "ModeError",
    "NoContentError",
    "NodeError",
    "NodeInfo",
    "NodeVerdict",
    "OmennError",
    "OutputError",
    "ParityError",
    "SizeError",
    "TargetError",
    "UnsupportedOpError",
    "ValidationReport",
    "Verdict",
    "__version__",
    "check",
    "load",
    "opaque",
    "rule",
    "transform",
]
