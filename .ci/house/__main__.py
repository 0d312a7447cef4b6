"""Checks of the house: `python .ci/house COMMAND`, as `make lint` runs them.

contracts   import-linter's contracts of pyproject.toml: which room may import which
rooms       rooms, floors, arrows and circles, counted from the imports
operators   in how many files each operator's name stands
shape       functions, files and subjects of commits that are too long
types       mypy over the package as it installs
subject F   whether the commit message in file F has a short subject
map         draw docs/rooms.svg from the imports
drawn       whether docs/rooms.svg is what they draw
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import layout
import shape

HERE = Path(__file__).resolve().parents[2]
MAP = "docs/rooms.svg"


def contracts(root: Path) -> bool:
    """Run import-linter on the package as it installs."""
    from importlinter.cli import lint_imports

    layout.find_in(layout.lay_out(root))
    os.chdir(root)
    return lint_imports(config_filenames=("pyproject.toml",), no_cache=True, no_logo=True) == 0


def rooms(root: Path) -> bool:
    """Print the counts; any circle fails."""
    from rooms import describe, read

    house = read(root)
    print(describe(house))
    return not house.circles


def operators(root: Path) -> bool:
    """Print in how many files the operators' names stand."""
    from operators import report

    text, good = report(root)
    print(text)
    return good


def shapes(root: Path) -> bool:
    """Print everything that is too long."""
    found = [*shape.violations(root), *shape.long_subjects(root)]
    print("\n".join(found) or "shape: every function, file and subject is short enough")
    return not found


def types(root: Path) -> bool:
    """Run mypy on the package as it installs; its messages name the sources."""
    place = layout.lay_out(root)
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), "-p", layout.PACKAGE]
    environment = {**os.environ, "MYPYPATH": str(place)}
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    print(layout.as_source(done.stdout, root), end="")
    return done.returncode == 0


def _picture(root: Path) -> str | None:
    """The map as SVG; None of a house with circles."""
    from picture import svg
    from rooms import read

    house = read(root)
    return None if house.circles else svg(root, house)


def draw(root: Path) -> bool:
    """Write the map of the rooms."""
    picture = _picture(root)
    if picture is None:
        print("map: a house with circles has no floors; `rooms` names them")
        return False
    (root / MAP).write_text(picture, encoding="utf-8")
    print(f"map: {MAP}")
    return True


def drawn(root: Path) -> bool:
    """Say whether the map in docs/ is the one that the imports draw."""
    same = _picture(root) == (root / MAP).read_text(encoding="utf-8")
    print(f"map: {MAP} {'is as the imports draw it' if same else 'is out of date: make map'}")
    return same


COMMANDS = {
    "contracts": contracts,
    "rooms": rooms,
    "operators": operators,
    "shape": shapes,
    "types": types,
    "map": draw,
    "drawn": drawn,
}


def main() -> int:
    """Run the commands that are named, each to its end; fail where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    parser.add_argument("--root", type=Path, default=HERE, help="the repository, if it is not this one")
    given = parser.parse_args()
    if given.commands[0] == "subject":
        return 0 if shape.subject_is_short(Path(given.commands[1])) else 1
    results = [COMMANDS[name](given.root.resolve()) for name in given.commands]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
