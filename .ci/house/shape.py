"""The shape of the code: short functions, short files, short subjects of commits."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

FUNCTION, FILE, SUBJECT = 50, 400, 72  # lines, lines, characters
SINCE = "ffb1676ec4a5c50c2fca8eab0a4936fb69f97f8f"  # subjects are checked from the commit after this one


def sources(root: Path) -> list[Path]:
    """Every Python file outside of tests, generated folders and environments."""
    tops = [path for path in root.iterdir() if path.is_dir() and path.name in FOLDERS]
    return sorted(path for top in tops for path in top.rglob("*.py"))


FOLDERS = ("omenn_fx", "rules", "export", "benchmarks", "docs", "examples", ".ci")


def long_functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Functions with more lines than allowed, from `def` to the last line, docstring included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION:
                yield node, length


def violations(root: Path) -> Iterator[str]:
    """Every function and file that is too long."""
    for path in sources(root):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root)
        lines = len(text.splitlines())
        if lines > FILE:
            yield f"{name}: {lines} lines, at most {FILE}"
        for function, length in long_functions(ast.parse(text)):
            yield f"{name}:{function.lineno}: {function.name} has {length} lines, at most {FUNCTION}"


def long_subjects(root: Path) -> Iterator[str]:
    """Commits since the house was built whose subject is too long; none where git has no such history."""
    command = ["git", "-C", str(root), "log", "--no-merges", "--format=%h %s", f"{SINCE}..HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        commit, _, subject = line.partition(" ")
        if len(subject) > SUBJECT:
            yield f"commit {commit}: its subject has {len(subject)} characters, at most {SUBJECT}: {subject}"


def subject_is_short(message: Path) -> bool:
    """Whether the subject of a commit message in a file is short enough; for the commit hook."""
    lines = message.read_text(encoding="utf-8").splitlines()
    return len(lines[0] if lines else "") <= SUBJECT
