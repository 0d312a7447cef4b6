"""The trained models and labelled data of the folder shared/ beside the repository, and the code that reads them."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]
ASSETS = REPOSITORY.parent / "shared" / "assets"


@cache
def module_at(path: Path) -> ModuleType:
    """A Python file that is no part of a package, run once. Raises FileNotFoundError where it is absent."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not here; trained models and data are read from {ASSETS}")
    spec = importlib.util.spec_from_file_location(f"assets_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
