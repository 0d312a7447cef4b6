"""The map of the rooms: one box for each, on its floor, with an arrow to every room that it needs directly.

An arrow that follows from two others is left out: where A imports B and B imports C, none is drawn from A to C.
"""

from __future__ import annotations

import textwrap
from html import escape
from pathlib import Path

import networkx as nx
from rooms import FACE, House, about

WIDTH, HEIGHT, GAP, BETWEEN, MARGIN = 214, 74, 22, 46, 20  # of a box; between boxes; between floors; around all
LETTERS, LINES = 31, 3  # of what a room says of itself
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="11">
<title>The rooms of omenn-fx and what each imports</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="#64748b"/></marker></defs>
<rect width="{w}" height="{h}" fill="#ffffff"/>
"""

Places = dict[str, tuple[float, float]]


def _description(root: Path, room: str) -> list[str]:
    """The first sentence of a room's docstring, in short lines."""
    if room == FACE:
        text = "The public face: import omenn_fx."
    else:
        text = about(root, room).replace("`", "").partition(". ")[0].rstrip(".")
        name, colon, rest = text.partition(": ")
        text = rest if colon and " " not in name else text
    return textwrap.wrap(text, LETTERS, max_lines=LINES, placeholder=" …")


def _stepwise(floors: list[list[str]], arrows: nx.DiGraph) -> tuple[nx.DiGraph, list[list[str]]]:
    """Arrows from one floor to the next alone: a longer one goes through a gap on each floor between."""
    level = {room: i for i, floor in enumerate(floors) for room in floor}
    rows = [list(floor) for floor in floors]
    steps = nx.DiGraph()
    for start, end in sorted(arrows.edges):
        stops = [f"{start}>{end}@{i}" for i in range(level[start] - 1, level[end], -1)]
        for i, stop in enumerate(stops):
            rows[level[start] - 1 - i].append(stop)
        nx.add_path(steps, [start, *stops, end])
    return steps, rows[::-1]


def _ordered(rows: list[list[str]], steps: nx.DiGraph) -> list[list[str]]:
    """On each floor, from the top one down, every room near the middle of those above that need it."""
    at: dict[str, float] = {}
    ordered = []
    for row in rows:
        middle = {}
        for name in row:
            above = [at[user] for user in steps.predecessors(name)] if name in steps else []
            middle[name] = sum(above) / len(above) if above else 0.5
        ordered.append(sorted(row, key=lambda name: (middle[name], name)))
        at |= {name: (i + 0.5) / len(row) for i, name in enumerate(ordered[-1])}
    return ordered


def _width(name: str) -> int:
    return 0 if "@" in name else WIDTH


def _places(rows: list[list[str]], width: float) -> Places:
    """The upper left corner of each box and gap."""
    found = {}
    for level, row in enumerate(rows):
        left = (width - sum(_width(name) + GAP for name in row) + GAP) / 2
        for name in row:
            found[name] = left, MARGIN + level * (HEIGHT + BETWEEN)
            left += _width(name) + GAP
    return found


def _box(root: Path, room: str, x: float, y: float) -> str:
    lines = "".join(
        f'<text x="{x + 10:.0f}" y="{y + 35 + 13 * i:.0f}" fill="#334155">{escape(line)}</text>'
        for i, line in enumerate(_description(root, room))
    )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#f1f5f9" stroke="#94a3b8"/>'
        f'<text x="{x + 10:.0f}" y="{y + 19:.0f}" font-size="14" font-weight="bold" fill="#0f172a">{room}</text>'
        f"{lines}\n"
    )


def _arrow(places: Places, start: str, end: str) -> str:
    """From the lower edge of a box or gap to the upper edge of one on the floor below; straight through a gap."""
    (x1, y1), (x2, y2) = places[start], places[end]
    x1, x2, y1 = x1 + _width(start) / 2, x2 + _width(end) / 2, y1 + HEIGHT
    tip = "" if "@" in end else ' marker-end="url(#tip)"'
    through = f" V{y2 + HEIGHT:.0f}" if "@" in end else ""
    bend = BETWEEN / 2
    path = f"M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}{through}"
    return f'<path d="{path}" fill="none" stroke="#64748b"{tip}/>\n'


def svg(root: Path, house: House) -> str:
    """The map as SVG. It needs a house without circles."""
    shown = house.rooms.subgraph(room for room in house.rooms if not room.startswith("_"))
    steps, rows = _stepwise(house.floors(shown), nx.transitive_reduction(shown))
    rows = _ordered(rows, steps)
    width = max(sum(_width(name) + GAP for name in row) for row in rows) - GAP + 2 * MARGIN
    height = len(rows) * (HEIGHT + BETWEEN) - BETWEEN + 2 * MARGIN
    places = _places(rows, width)
    drawn = "".join(_arrow(places, a, b) for a, b in sorted(steps.edges))
    boxes = "".join(_box(root, room, *places[room]) for room in sorted(shown))
    return HEAD.format(w=width, h=height) + drawn + boxes + "</svg>\n"
