"""The npm packages for the tests of the browser's package: onnxruntime-web, and TypeScript for its types.

python tests/npm.py    # beside this Python; does nothing where they are there, or npm is missing
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "export" / "web" / "package.json"
FOLDER = Path(os.environ.get("OMENN_NPM") or Path(sys.prefix) / "npm")
WANTED = json.loads(PACKAGE.read_text(encoding="utf-8"))["devDependencies"]


def found() -> Path | None:
    """The folder node_modules that has all of them in the versions that are asked for."""
    modules = FOLDER / "node_modules"
    return modules if all(_version(modules / name) == version for name, version in WANTED.items()) else None


def _version(package: Path) -> str | None:
    try:
        return json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError):
        return None


def fetch(folder: Path, *packages: str) -> None:
    """Packages as name@version into the node_modules of a folder; no script of a package runs."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(["npm", "install", "--prefix", str(folder), *quiet, *packages], check=True)


if __name__ == "__main__" and found() is None and shutil.which("npm") and shutil.which("node"):
    fetch(FOLDER, *(f"{name}@{version}" for name, version in WANTED.items()))
    print("packages for the tests:", ", ".join(f"{name} {version}" for name, version in WANTED.items()))
