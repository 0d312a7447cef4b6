"""The files of onnxruntime-web that a page needs: from a folder, from npm's, or fetched by npm."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from omenn_fx.errors import ExportError

NAME = "onnxruntime-web"
RUNTIME = f"{NAME}@1.30.0"  # the version that is tested; export/web/package.json has the same
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # the CPU build, its loader in the first
FIX = (
    f"with Node.js and a network `npm install --ignore-scripts {RUNTIME}` in any folder makes "
    f"node_modules/{NAME}: give that as --runtime-dir, or export in that folder"
)


def runtime_files(folder: Path | None = None) -> Mapping[str, bytes]:
    """The runtime's files by name, as a page loads them.

    Args:
        folder: one that holds them, the package `onnxruntime-web`, or a project with it in node_modules. None: the
            node_modules here or above, else npm fetches the package.

    Raises:
        ExportError: they are not there, or there is no npm, or it cannot fetch them.
    """
    if folder is not None:
        found = next((place for place in _inside(folder) if _has_all(place)), None)
        if found is None:
            raise ExportError(f"'{folder}' does not hold {' and '.join(FILES)}", fix=FIX)
        return _read(found)
    here = Path.cwd()
    for project in (here, *here.parents):
        place = project / "node_modules" / NAME / "dist"
        if _has_all(place):
            return _read(place)
    return _fetched()


def _inside(folder: Path) -> Iterator[Path]:
    yield folder
    yield folder / "dist"
    for above in (folder, folder / "node_modules"):
        yield above / NAME / "dist"


def _has_all(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _read(folder: Path) -> Mapping[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def _fetched() -> Mapping[str, bytes]:
    """The files out of the package that npm packs: 33 MB, which npm keeps for the next time."""
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(f"a page needs {RUNTIME}, which is in no node_modules here, and there is no npm", fix=FIX)
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", RUNTIME, "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        packed = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or packed is None:
            said = (done.stderr.strip() or done.stdout.strip() or "it wrote nothing").splitlines()[0]
            raise ExportError(f"npm cannot fetch {RUNTIME}: {said}", fix=FIX)
        with tarfile.open(packed) as archive:
            return {name: _member(archive, f"package/dist/{name}") for name in FILES}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ExportError(f"{RUNTIME} holds no file '{name}'", fix=FIX)
    return file.read()
