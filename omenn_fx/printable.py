"""Text of files and models made safe to print: it may hold what steers a terminal, or turns the order of letters.

Imports nothing of omenn_fx; rich comes at first use.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# control, format (bidirectional marks), surrogates (bytes of file names), private use, line and paragraph separators
_KINDS = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
_KEPT = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")


def printable(text: object) -> str:
    """A text in which every character is seen: an escape as \\x1b, a change of direction as \\u202e."""
    return "".join(_shown(c) if unicodedata.category(c) in _KINDS and c not in _KEPT else c for c in str(text))


def _shown(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


class Printable:
    """What rich prints of anything, with the text in it made printable; the styles are rich's own."""

    def __init__(self, what: Any):
        self.what = what

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        for segment in console.render(self.what, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class Fitted:
    """A table of rich; in a terminal that is narrower than its words, a line for each cell.

    What is cut off a number leaves another number.
    """

    def __init__(self, table: Any):
        self.table = table

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        needed = console.measure(self.table, options=options.update_width(1000)).minimum
        if needed <= options.max_width:
            yield self.table
            return
        if self.table.title:
            yield self.table.title
        columns = self.table.columns
        for row in zip(*(column.cells for column in columns), strict=True):
            for column, cell in zip(columns, row, strict=True):
                if str(cell):
                    yield Text(" ".join(f"{column.header} {cell}".split()))
