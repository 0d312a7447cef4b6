"""What mkdocs does beside rendering the pages: tables of results, the command line, files of the repository; and what
griffe, which reads the docstrings, has to know of this one.

A page says where a table goes by a comment, `<!-- results: coverage -->`, so that it stays plain Markdown elsewhere.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"^<!-- results: (\w+) -->$", re.M)
LINK = re.compile(r"(?<=\]\()\.\./[\w./-]+")
COMMANDS = "<!-- command line -->"
DEMO = ROOT / "build" / "demo"  # what docs/demo.py writes where it can
OPEN_DEMO = "<!-- open the demo -->"
MEASURED = "benchmarks.md"  # the page that benchmarks/README.md becomes


def without_tags(text: str) -> str:
    """<W u, v> is a product: outside of code, no sign of less opens a tag."""
    return re.sub(r"`[^`]*`|<(?!https?:)", lambda match: "&lt;" if match[0] == "<" else match[0], text)


class Docstrings(griffe.Extension):
    """rules/ and export/ stand at the top of the repository and are packages inside of omenn_fx (pyproject.toml)."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        if pkg.name == "omenn_fx":
            for room in ("rules", "export"):
                pkg.set_member(room, loader.load(room))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = without_tags(obj.docstring.value)


@cache
def tables() -> dict[str, str]:
    """Name -> Markdown, by a process of its own: the benchmarks set up libraries, logging and threads as they need."""
    made = subprocess.run([sys.executable, ROOT / "docs" / "tables.py"], capture_output=True, text=True)
    if made.returncode:
        raise PluginError(f"docs/tables.py failed:\n{made.stderr}")
    _, *parts = MARK.split(made.stdout)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def command_line() -> str:
    """Every command and option, as typer writes them; the page has a heading and a list of the commands already."""
    import typer.main
    from typer.cli import get_docs_for_click

    from omenn_fx.cli.explain import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="omenn-fx")
    return re.sub(r"^# .*|\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)


def open_demo() -> str:
    """The button, or why there is none."""
    if (DEMO / "index.html").exists():
        return "[Open the live demo](demo/index.html){ .md-button .md-button--primary }"
    return (
        "!!! note\n    This copy of the guide was built without the live demo. `python docs/demo.py` builds it or says "
        "what is missing; then `make docs`."
    )


def beside(link: str, page: str) -> str | None:
    """The file of the repository that a page of docs/ links to, where it stands outside of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The benchmarks' own page, their results, and every file of the repository that a page links to."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    text = without_tags(text)
    text = re.sub(r"\]\((?!https?:|\.|#)", "](../benchmarks/", text.replace("](../docs/", "](./"))
    files.append(File.generated(config, MEASURED, content=text.replace("# Benchmarks", "# How it was measured", 1)))
    linked = {
        beside(link, file.src_uri) for file in files.documentation_pages() for link in LINK.findall(file.content_string)
    }
    linked |= {str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    for name in sorted(linked - {None, "benchmarks/README.md"}):
        if not (ROOT / name).is_file():
            raise PluginError(f"a page links to {name}, which is no file of the repository")
        files.append(File.generated(config, f"files/{name}", abs_src_path=str(ROOT / name)))
    for path in DEMO.rglob("[!.]*"):
        if path.is_file() and path.suffix != ".md":  # which would become a page of the guide
            files.append(File.generated(config, f"demo/{path.relative_to(DEMO).as_posix()}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tables where a page asks for them, and links to where this site has what stands beside docs/."""
    here = page.file.src_uri

    def table(match: re.Match[str]) -> str:
        if match[1] not in tables():
            raise PluginError(f"{here}: docs/tables.py has no table '{match[1]}'")
        return tables()[match[1]]

    def inside(match: re.Match[str]) -> str:
        name = beside(match[0], here)
        own = match[0] if name is None else MEASURED if name == "benchmarks/README.md" else f"files/{name}"
        return own if name is None else posixpath.relpath(own, posixpath.dirname(here) or ".")

    markdown = markdown.replace(OPEN_DEMO, open_demo())
    markdown = LINK.sub(inside, MARK.sub(table, markdown))
    return markdown.replace(COMMANDS, command_line()) if COMMANDS in markdown else markdown
