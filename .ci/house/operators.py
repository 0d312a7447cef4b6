"""In how many files an operator's name stands: what is known of an operator should stand in one place.

A name counts where the code reads it as an attribute (`aten.mul.Tensor`, `torch.ops.aten.mul`) or has it as a whole
string ("aten.mul", "aten.mul.Tensor"). Overloads count as one operator.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from layout import INSIDE, PACKAGE

FILES = 3  # an operator's name should stand in no more files than this
SHARE = 0.95  # for at least this share of the operators
WORST = 10
NAME = re.compile(r"aten\.([a-zA-Z_]\w*)(\.\w+)?")


def names(tree: ast.AST) -> Iterator[str]:
    """The operators that a module names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if getattr(owner, "id", None) == "aten" or getattr(owner, "attr", None) == "aten":
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = NAME.fullmatch(node.value)
            if match:
                yield match[1]


def places(root: Path) -> dict[str, list[str]]:
    """Operator -> the files that name it."""
    found = defaultdict(list)
    for folder in (PACKAGE, *INSIDE):
        for path in sorted((root / folder).rglob("*.py")):
            for name in set(names(ast.parse(path.read_text(encoding="utf-8")))):
                found[name].append(path.relative_to(root).as_posix())
    return dict(sorted(found.items()))


def report(root: Path) -> tuple[str, bool]:
    """The distribution, the operators in the most files, and whether enough of them are in few."""
    found = places(root)
    counts = Counter(map(len, found.values()))
    few = sum(number for files, number in counts.items() if files <= FILES)
    share = few / len(found)
    spread = ", ".join(f"{counts[files]} in {files}" for files in sorted(counts))
    lines = [
        f"operators: {len(found)}; by the number of files that name them: {spread}",
        f"  {share:.1%} stand in at most {FILES} files (at least {SHARE:.0%} must)",
    ]
    worst = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:WORST]
    lines += [f"  {name}: {len(files)}: {', '.join(files)}" for name, files in worst if len(files) > FILES]
    return "\n".join(lines), share >= SHARE
