"""The rooms of the package and the arrows between them, counted from its imports.

A room is a folder or a module directly under `omenn_fx`. There is an arrow from one room to another where any module of
the first imports any of the second; imports inside functions and imports for type checking count too.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import grimp
import networkx as nx
from layout import PACKAGE, find_in, lay_out

FACE = PACKAGE  # the package's own __init__.py


def room_of(module: str) -> str:
    """The room that a module stands in."""
    return module.split(".")[1] if "." in module else FACE


@dataclass(frozen=True)
class House:
    """What the imports of the package say: its modules, its rooms, and the arrows between each."""

    modules: nx.DiGraph
    rooms: nx.DiGraph

    @property
    def circles(self) -> list[list[str]]:
        """Groups of rooms that can be reached from one another."""
        groups = nx.strongly_connected_components(self.rooms)
        return sorted(sorted(group) for group in groups if len(group) > 1)

    @property
    def both_ways(self) -> list[tuple[str, str]]:
        """Pairs of modules that import each other, each pair once; a folder's `__init__` stands for the folder."""
        return sorted((a, b) for a, b in self.modules.edges if a < b and self.modules.has_edge(b, a))

    def floors(self, of: nx.DiGraph) -> list[list[str]]:
        """Rooms or modules by the longest chain of imports below each; those in one circle share a floor."""
        whole = nx.condensation(of)
        height: dict[int, int] = {}
        for group in reversed(list(nx.topological_sort(whole))):
            height[group] = 1 + max((height[below] for below in whole.successors(group)), default=-1)
        floors: list[list[str]] = [[] for _ in range(1 + max(height.values()))]
        for group, level in height.items():
            floors[level] += whole.nodes[group]["members"]
        return [sorted(floor) for floor in floors]


def read(root: Path) -> House:
    """Read the imports of the package in the repository at `root`."""
    find_in(lay_out(root))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    modules, rooms = nx.DiGraph(), nx.DiGraph()
    modules.add_nodes_from(graph.modules)
    rooms.add_nodes_from(map(room_of, graph.modules))
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            modules.add_edge(module, imported)
            if room_of(module) != room_of(imported):
                rooms.add_edge(room_of(module), room_of(imported))
    return House(modules, rooms)


def about(root: Path, room: str) -> str:
    """What a room says of itself: the first sentence of its docstring, without its own name in front."""
    base = root / (room if room in ("rules", "export") else f"{PACKAGE}/{room}")
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def describe(house: House) -> str:
    """The counts, and every circle."""
    rooms, modules = house.floors(house.rooms), house.floors(house.modules)
    lines = [
        f"rooms: {len(house.rooms)} on {len(rooms)} floors, {house.rooms.number_of_edges()} arrows, "
        f"{len(house.circles)} circles",
        f"modules: {len(house.modules)} on {len(modules)} floors, {house.modules.number_of_edges()} arrows, "
        f"{len(house.both_ways)} pairs that import each other",
    ]
    lines += [f"  circle of rooms: {', '.join(circle)}" for circle in house.circles]
    lines += [f"  both ways: {a} <-> {b}" for a, b in house.both_ways]
    return "\n".join(lines)
