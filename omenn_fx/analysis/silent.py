"""Explained inputs that have no part of their own: they reach the output through coefficients alone, so that C is 0."""

from __future__ import annotations

from torch import fx

from omenn_fx.analysis.roles import Role, Tagged
from omenn_fx.capture.nodes import is_value, place_of, producer, read_by


def silent(tagged: Tagged) -> dict[str, fx.Node]:
    """Such an input -> the content node that reads it as a coefficient. One that the output does not read is none."""
    found = {name: _end(tagged, source) for name, source in tagged.sources.items() if not _has_part(tagged, source)}
    return {name: node for name, node in found.items() if node is not None}


def _has_part(tagged: Tagged, source: fx.Node) -> bool:
    return tagged.role[source] is Role.CONTENT


def _end(tagged: Tagged, source: fx.Node) -> fx.Node | None:
    """The first content node behind a source: what it reads of the source is held fixed."""
    reached = {source}
    for node in tagged.captured.graph.nodes:
        call, _ = producer(node)
        if is_value(node) and any(n in reached for n in read_by(call, tagged.rules.get(call.target))):
            if tagged.role[node] is Role.CONTENT:
                return node
            reached.add(node)
    return None


def without_part(name: str, node: fx.Node) -> str:
    """What there is to say of one: a sentence."""
    return (
        f"C of '{name}' is 0 everywhere, although the output depends on it: it reaches the output through coefficients "
        f"alone, which are held fixed, the last of them at {place_of(producer(node)[0]).label}"
    )
