"""The picture of a check: the graph as a tree of modules, coloured by verdict, in one SVG without anything beside it.

Opened in a browser, a click on a module (or Enter) opens and closes it. Each module's bar shows what its nodes are; a
node is a dot with its operator, its reason in the tooltip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape as escaped

from omenn_fx.checking.verdict import COLOURS, NodeVerdict, Verdict
from omenn_fx.printable import printable

WIDTH, ROW, INDENT, BAR = 960, 20, 18, 220
HEAD = 74  # title and legend above the first row
OPEN = 1  # modules this deep are open at first

SCRIPT = """
const rows = [...document.querySelectorAll('.row')];
const byId = new Map(rows.map(r => [r.dataset.id, r]));
function seen(r) {
  for (let p = byId.get(r.dataset.in); p; p = byId.get(p.dataset.in)) if (p.dataset.open !== '1') return false;
  return true;
}
function place() {
  let y = HEAD;
  for (const r of rows) {
    const shown = seen(r);
    r.setAttribute('display', shown ? 'inline' : 'none');
    if (!shown) continue;
    r.setAttribute('transform', `translate(0 ${y})`);
    const mark = r.querySelector('.mark');
    if (mark) mark.textContent = r.dataset.open === '1' ? '\\u25be' : '\\u25b8';
    y += ROW;
  }
  const root = document.documentElement;
  root.setAttribute('height', y + 12);
  root.setAttribute('viewBox', `0 0 WIDTH ${y + 12}`);
  document.getElementById('paper').setAttribute('height', y + 12);
}
for (const r of rows) if (r.dataset.open !== undefined) {
  const flip = () => { r.dataset.open = r.dataset.open === '1' ? '0' : '1'; place(); };
  r.addEventListener('click', flip);
  r.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { flip(); e.preventDefault(); } });
}
place();
"""


@dataclass
class Module:
    """A module with the modules and nodes inside of it, in the order of the graph."""

    path: str
    inside: list[Module | NodeVerdict] = field(default_factory=list)
    modules: dict[str, Module] = field(default_factory=dict)

    def nodes(self) -> list[NodeVerdict]:
        """All nodes at any depth."""
        found: list[NodeVerdict] = []
        for item in self.inside:
            found += item.nodes() if isinstance(item, Module) else [item]
        return found


def tree(nodes: Iterable[NodeVerdict]) -> Module:
    """Nodes by module path; constants are left out."""
    root = Module("")
    for node in nodes:
        if node.verdict is Verdict.CONSTANT:
            continue
        at, path = root, ""
        for part in node.module.split(".") if node.module else ():
            path = f"{path}.{part}" if path else part
            if part not in at.modules:
                at.modules[part] = Module(path)
                at.inside.append(at.modules[part])
            at = at.modules[part]
        at.inside.append(node)
    return root


def escape(text: str) -> str:
    """A text of the user's as text of the SVG: without what XML cannot hold, such as control characters."""
    return escaped(printable(text))


def svg(title: str, nodes: Sequence[NodeVerdict]) -> str:
    """The SVG of a graph's nodes, as text."""
    rows: list[str] = []
    visible = _rows(tree(nodes), "", 0, True, rows, [HEAD])
    height = HEAD + ROW * visible + 12
    script = SCRIPT.replace("HEAD", str(HEAD)).replace("ROW", str(ROW)).replace("WIDTH", str(WIDTH))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
            'font-family="system-ui, sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect id="paper" width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="16" y="28" font-size="16" font-weight="600">{escape(title)}</text>',
            *_legend(nodes),
            *rows,
            f"<script><![CDATA[{script}]]></script>",
            "</svg>",
        ]
    )


def _legend(nodes: Sequence[NodeVerdict]) -> list[str]:
    counts = Counter(n.verdict for n in nodes)
    parts, x = [], 16
    for verdict in Verdict:
        count = counts[verdict]
        if count:
            parts.append(f'<circle cx="{x + 5}" cy="50" r="5" fill="{COLOURS[verdict]}"/>')
            parts.append(f'<text x="{x + 15}" y="54" fill="#333">{verdict.value} {count}</text>')
            x += 30 + 7 * len(f"{verdict.value} {count}")
    return parts


def _rows(module: Module, parent: str, depth: int, shown: bool, rows: list[str], y: list[int]) -> int:
    """Append the rows inside of a module; the number of those that are visible at first."""
    visible = 0
    for item in module.inside:
        name = f"r{len(rows)}"
        where = f'data-id="{name}" data-in="{parent}"'
        at = f'transform="translate(0 {y[0]})"' if shown else 'display="none"'
        rows.append(
            _module_row(item, where, at, depth) if isinstance(item, Module) else _node_row(item, where, at, depth)
        )
        if shown:
            y[0] += ROW
            visible += 1
        if isinstance(item, Module):
            visible += _rows(item, name, depth + 1, shown and depth < OPEN, rows, y)
    return visible


def _module_row(module: Module, where: str, at: str, depth: int) -> str:
    nodes = module.nodes()
    counts = Counter(n.verdict for n in nodes)
    x, bar = 16 + INDENT * depth, []
    start = float(WIDTH - BAR - 16)
    for verdict in Verdict:
        if counts[verdict]:
            width = BAR * counts[verdict] / len(nodes)
            bar.append(f'<rect x="{start:.1f}" y="4" width="{width:.1f}" height="12" fill="{COLOURS[verdict]}"/>')
            start += width
    said = ", ".join(f"{v.value} {counts[v]}" for v in Verdict if counts[v])
    label = f"{escape(module.path)}: {said}"
    return (
        f'<g class="row" {where} {at} data-open="{int(depth < OPEN)}" tabindex="0" role="button" aria-label="{label}" '
        f'style="cursor:pointer"><title>{label}</title><rect x="{x - 4}" y="0" width="{WIDTH - x - 12}" height="{ROW}" '
        f'fill="#f4f4f6"/><text class="mark" x="{x}" y="14">{"▾" if depth < OPEN else "▸"}</text>'
        f'<text x="{x + 16}" y="14" font-weight="600">{escape(module.path.rpartition(".")[2])}</text>'
        f'<text x="{WIDTH - BAR - 28}" y="14" text-anchor="end" fill="#666">{len(nodes)}</text>{"".join(bar)}</g>'
    )


def _node_row(node: NodeVerdict, where: str, at: str, depth: int) -> str:
    x = 16 + INDENT * depth
    line = f"\n{node.file}:{node.line}" if node.file else ""
    title = f"{node.verdict.value}: {node.reason}{line}"
    op = node.op.removeprefix("aten.").removesuffix(".default")
    return (
        f'<g class="row" {where} {at}><title>{escape(title)}</title>'
        f'<circle cx="{x + 6}" cy="10" r="5" fill="{COLOURS[node.verdict]}"/>'
        f'<text x="{x + 18}" y="14">{escape(op)} <tspan fill="#888">{escape(node.name)}</tspan></text></g>'
    )
