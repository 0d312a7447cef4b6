"""In how many files an operator's name stands: what is known of an operator should stand in one place.

A name counts where the code reads it as an attribute (`aten.mul.Tensor`, `torch.ops.aten.mul`) or has it as a whole
string ("aten.mul", "aten.mul.Tensor"); in a file that looks operators up by `getattr(aten, name)`, also where a string
is made of such names alone ("mul", "mul div"). Overloads count as one operator. Names that a file puts together from
parts (f"upsample_{mode}") do not count.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from layout import INSIDE, PACKAGE

FILES = 3  # an operator's name should stand in no more files than this
SHARE = 0.95  # for at least this share of the operators
WORST = 10
NAME = re.compile(r"aten\.([a-zA-Z_]\w*)(\.\w+)?")


def _is_aten(node: ast.AST) -> bool:
    return getattr(node, "id", None) == "aten" or getattr(node, "attr", None) == "aten"


def names(tree: ast.AST) -> Iterator[str]:
    """The operators that a module names as what they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_aten(node.value):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = NAME.fullmatch(node.value)
            if match:
                yield match[1]


def looked_up(tree: ast.AST, known: Collection[str]) -> Iterator[str]:
    """The operators whose bare names stand in a module that looks operators up by name."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1)
    if any(getattr(call.func, "id", None) == "getattr" and _is_aten(call.args[0]) for call in calls):
        for node in ast.walk(tree):
            words = node.value.split() if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            if all(word in known for word in words):
                yield from words


def places(root: Path) -> dict[str, list[str]]:
    """Operator -> the files that name it."""
    paths = [path for folder in (PACKAGE, *INSIDE) for path in sorted((root / folder).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    named = {path: set(names(tree)) for path, tree in trees.items()}
    known = set().union(*named.values())
    found = defaultdict(list)
    for path, tree in trees.items():
        for name in named[path] | set(looked_up(tree, known)):
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
