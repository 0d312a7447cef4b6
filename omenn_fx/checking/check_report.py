"""The report of a check: a table to read, JSON and SARIF for machines, a graph for networkx, a picture."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn_fx._version import __version__
from omenn_fx.checking.graph_picture import svg
from omenn_fx.checking.verdict import COLOURS, NOWHERE, PROBLEMS, WARNINGS, Finding, NodeVerdict, Verdict
from omenn_fx.printable import Fitted, Printable

if TYPE_CHECKING:  # imported where a report is shown: importing omenn_fx should cost little
    import networkx as nx
    from rich.table import Table

SARIF = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


@dataclass(frozen=True)
class CheckReport:
    """What `check` found. `print` shows it; `supported` is whether `transform` succeeds.

    Attributes:
        model: the model's class.
        rules: the rule set.
        nodes: a verdict for each node, in the graph's order; empty where the model could not be captured.
        problems: all that keeps the model from being explained.
        warnings: what is exact but probably not meant.
        edges: (operand, result) by name.
    """

    model: str
    rules: str
    nodes: list[NodeVerdict]
    problems: list[Finding]
    warnings: list[Finding]
    edges: list[tuple[str, str]] = field(default_factory=list)

    @property
    def supported(self) -> bool:
        """Whether every way from the explained input to the output has an affine form."""
        return not self.problems

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> how many nodes."""
        counted = Counter(n.verdict for n in self.nodes)
        return {v.value: counted[v] for v in Verdict if counted[v]}

    # For people ------------------------------------------------------------------------------------------------------

    def __rich__(self) -> Printable:
        from rich.console import Group
        from rich.text import Text

        head = Text.assemble(
            (self.model, "bold"), ": ", ("supported", "green") if self.supported else ("not supported", "bold red")
        )
        parts: list[Any] = [head]
        if self.nodes:
            parts.append(Fitted(self._table()))
        for title, style, findings in (("problem", "red", self.problems), ("warning", "yellow", self.warnings)):
            for finding in findings:
                parts.append(Text.assemble((f"{title}: ", f"bold {style}"), str(finding)))
        return Printable(Group(*parts))

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("verdict", "nodes", "operators"):
            number = name == "nodes"
            table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for verdict in Verdict:
            nodes = [n for n in self.nodes if n.verdict is verdict]
            if not nodes:
                continue
            ops = Counter(n.op.removeprefix("aten.").removesuffix(".default") for n in nodes)
            shown = [f"{op} {count}" for op, count in ops.most_common(8)] if verdict is not Verdict.CONSTANT else []
            rest = len(ops) - len(shown) if shown else 0
            table.add_row(
                Text(verdict.value, style=COLOURS[verdict]),
                str(len(nodes)),
                Text(", ".join(shown) + (f" and {rest} more" if rest else "")),  # a name may look like markup
            )
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return text.getvalue().rstrip()

    # For machines ----------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """All of the report as JSON."""
        return json.dumps(
            {
                "tool": {"name": "omenn-fx", "version": __version__},
                "model": self.model,
                "rules": self.rules,
                "supported": self.supported,
                "counts": self.counts,
                "problems": [_plain(f) for f in self.problems],
                "warnings": [_plain(f) for f in self.warnings],
                "nodes": [{**asdict(n), "verdict": n.verdict.value} for n in self.nodes],
            },
            indent=1,
        )

    def to_sarif(self) -> str:
        """Problems, warnings and opaque biases as SARIF 2.1.0, for annotations on the user's own lines."""
        opaque = {"ruleId": "OMENN200", "level": "note"}
        results = [_result(f, "error") for f in self.problems] + [_result(f, "warning") for f in self.warnings]
        for node in self.nodes:
            if node.verdict is Verdict.OPAQUE:
                located = _locations(node.file, node.line, node.module or node.name)
                results.append({**opaque, "message": {"text": f"{node.op}: {node.reason}"}, "locations": located})
        kinds = [(k.code, k.title) for k in (*PROBLEMS, *WARNINGS)] + [("OMENN200", "an input-dependent bias is added")]
        driver = {
            "name": "omenn-fx",
            "version": __version__,
            "informationUri": "https://arxiv.org/abs/2412.02399",
            "rules": [{"id": code, "shortDescription": {"text": title}} for code, title in kinds],
        }
        run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
        return json.dumps({"$schema": SARIF, "version": "2.1.0", "runs": [run]}, indent=1)

    def to_networkx(self) -> nx.DiGraph:
        """Operand -> result; nodes have op, module, verdict, reason, file and line."""
        import networkx as nx

        graph = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.name, **{**asdict(node), "verdict": node.verdict.value})
        graph.add_edges_from((a, b) for a, b in self.edges if a in graph and b in graph)
        return graph

    def to_svg(self) -> str:
        """The graph by module, coloured by verdict; a click on a module opens or closes it."""
        verdict = "supported" if self.supported else f"not supported: {len(self.problems)} problems"
        return svg(f"{self.model}: {verdict}", self.nodes)


def _plain(finding: Finding) -> dict[str, Any]:
    place = finding.place
    return {
        "code": finding.kind.code,
        "title": finding.kind.title,
        "op": place.op,
        "node": place.node,
        "module": place.module,
        "file": place.file,
        "line": place.line,
        "reason": finding.reason,
        "fix": finding.fix,
    }


def _result(finding: Finding, level: str) -> dict[str, Any]:
    place = finding.place
    located = [] if place == NOWHERE else _locations(place.file, place.line, place.module or place.node or place.op)
    message = f"{finding.reason}\nWhat to change: {finding.fix}."
    return {"ruleId": finding.kind.code, "level": level, "message": {"text": message}, "locations": located}


def _locations(file: str, line: int, name: str) -> list[dict[str, Any]]:
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": name}]}
    if file:
        path = Path(file)
        here = Path.cwd()
        inside = path.is_absolute() and path.is_relative_to(here)
        uri = path.relative_to(here).as_posix() if inside else path.as_uri() if path.is_absolute() else path.as_posix()
        location["physicalLocation"] = {"artifactLocation": {"uri": uri}, "region": {"startLine": max(line, 1)}}
    return [location]
