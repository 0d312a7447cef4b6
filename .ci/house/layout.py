"""The package as it installs: one tree `omenn_fx/` with `rules` and `export` inside it, made of links to the sources.

`rules/` and `export/` stand at the top of the repository and install as `omenn_fx.rules` and `omenn_fx.export`.
Tools that find modules by their path (import-linter, mypy) cannot know that, so they read this tree.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path

PACKAGE = "omenn_fx"
INSIDE = ("rules", "export")  # folders at the top of the repository that install inside the package


def lay_out(root: Path) -> Path:
    """Bring `build/house/omenn_fx` up to date for the repository at `root`, and return the folder that holds it."""
    package = root / "build" / "house" / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    sources = [path for path in (root / PACKAGE).iterdir() if path.name != "__pycache__"]
    wanted = {path.name: path for path in [*sources, *(root / name for name in INSIDE)]}
    for link in package.iterdir():
        if link.name not in wanted or link.resolve() != wanted[link.name].resolve():
            link.unlink(missing_ok=True)
    for name, path in wanted.items():
        with suppress(FileExistsError):  # there already, or made by another process at this moment
            (package / name).symlink_to(path.resolve())
    return package.parent


def as_source(text: str, root: Path) -> str:
    """A message about a file of the tree, as one about the source that the file is a link to."""
    place = f"build/house/{PACKAGE}/"
    for name in INSIDE:
        text = text.replace(f"{root}/{place}{name}/", f"{name}/").replace(f"{place}{name}/", f"{name}/")
    return text.replace(f"{root}/{place}", f"{PACKAGE}/").replace(place, f"{PACKAGE}/")


class _Finder:
    """Finds the package in the tree, and not where it is installed."""

    def __init__(self, package: Path) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != PACKAGE:
            return None
        folder = [str(self.package)]
        return importlib.util.spec_from_file_location(
            name, self.package / "__init__.py", submodule_search_locations=folder
        )


def find_in(place: Path) -> None:
    """From now on, this process finds the package in the tree under `place`."""
    sys.meta_path.insert(0, _Finder(place / PACKAGE))  # type: ignore[arg-type]
