"""Files take their place whole: they are written and verified out of sight, so that none is half done."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from omenn_fx.errors import ExportError, OmennError, said


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file meanwhile: in a hidden folder in the folder of `path`.

    When the block ends well, what lies there takes its place: `path` itself last, for it may refer to the others. When
    it does not, whatever the reason (an interrupt, say), nothing of it stays, and what was at `path` is as it was.

    Raises:
        ExportError: it cannot be written there.
    """
    path = path.resolve() if path.is_symlink() else path
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        hidden = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    meanwhile, moved = hidden / _unused(path), list[Path]()
    try:
        yield meanwhile
        with writing(path):
            for other in [file for file in hidden.iterdir() if file != meanwhile]:
                moved.append(path.with_name(other.name))
                os.replace(other, moved[-1])
            os.replace(meanwhile, path)
    finally:
        if meanwhile.exists():  # it has not taken its place
            for other in moved:
                other.unlink(missing_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)


def weights_name(name: str) -> str:
    """The file with the weights of an ONNX file of this name, where they are too large for the file itself."""
    return f"{name}.data"


def own_weights(path: Path, names: Collection[str]) -> list[Path]:
    """Those of the files that an ONNX file refers to which were written with it: others may be another's, too."""
    own = re.compile(re.escape(path.stem) + r"(\.\d+)?" + re.escape(weights_name(path.suffix)))
    return [path.with_name(name) for name in names if own.fullmatch(name)]


def _unused(path: Path) -> str:
    """A name for the file meanwhile: its weights are named after it, and must not take the place of former ones."""
    name, count = path.name, 0
    while path.with_name(weights_name(name)).exists():
        count += 1
        name = f"{path.stem}.{count}{path.suffix}"
    return name


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, what the operating system refuses is an ExportError."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"'{path}' cannot be written: {error}") from error


@contextmanager
def as_export_error(what: str) -> Iterator[None]:
    """Errors of other libraries and of the model's own code, of whatever type, as an ExportError."""
    try:
        yield
    except (OmennError, MemoryError):
        raise
    except Exception as error:
        raise ExportError(f"{what}: {said(error)}") from error
