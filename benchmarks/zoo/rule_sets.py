"""A model of the zoo explained by every rule set: exact, or refused by the name of what a set has no rule for.

A line of the result file has one record for each set. What stands in where a set says nothing is listed in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from omenn_fx.algebra.ruleset import rule_sets

from .check import check
from .pool import Outcome

KEPT = (
    "status", "reasons", "node", "transpose", "completeness", "mass", "relative", "scale_over_value", "weight_share",
    "stand_ins",
)  # fmt: skip
STATES = ("passed", "refused", "failed")
Line = dict[str, dict[str, Any]]


def explained(name: str, rules: str) -> dict[str, Any]:
    """Whether a set explains a model in float64, how exactly, and how often which operator has the base's form."""
    record = check(name, "float64", rules=rules)
    return {key: record[key] for key in KEPT if key in record}


def task(name: str, send: Callable[[str, Any], None]) -> None:
    """One model by every rule set, in its own process."""
    for rules in rule_sets():
        send(rules, explained(name, rules))


def line_of(outcome: Outcome) -> Line:
    """The line of the result file; a set that sent nothing failed for the reason that ended the process."""
    lost = {"status": "failed", "reasons": [outcome.ended or "sent no result"]}
    return {rules: outcome.sent.get(rules, lost) for rules in rule_sets()}


def fine(line: Line) -> bool | None:
    """Whether no set failed; None where the line lacks one."""
    return all(record["status"] != "failed" for record in line.values()) if set(rule_sets()) <= set(line) else None


def show(results: dict[str, Line], console: Console) -> None:
    """A line for each set, the operators for which the form of its base stands in, and every refusal."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in results.values():
        for rules, record in line.items():
            found.setdefault(rules, []).append(record)
    table = Table(title="rule sets in float64, on a sample of the models")
    table.add_column("", no_wrap=True)
    for column in ("models", *STATES, "something stands in", "worst completeness error", "worst node error"):
        table.add_column(column, justify="right")
    for rules, records in found.items():
        states = Counter(record["status"] for record in records)
        stands = sum(bool(record.get("stand_ins")) for record in records)
        worst = (f"{_worst(records, key):.1e}" for key in ("completeness", "node"))
        table.add_row(rules, *map(str, (len(records), *(states[s] for s in STATES), stands)), *worst)
    console.print(table)
    _show_stand_ins({r: records for r, records in found.items() if any(x.get("stand_ins") for x in records)}, console)
    for name, line in results.items():
        for rules, record in line.items():
            if record["status"] != "passed":
                reasons = "; ".join(record["reasons"])
                console.print(f"{rules} on {name}: {record['status']}, {reasons}", highlight=False)


def _worst(records: list[dict[str, Any]], key: str) -> float:
    return max((float(record[key]) for record in records if key in record), default=0.0)


def _show_stand_ins(found: dict[str, list[dict[str, Any]]], console: Console) -> None:
    table = Table(title="models with an operator that a set says nothing of: the form of its base stands in")
    table.add_column("", no_wrap=True)
    counts = {rules: Counter(op for r in records for op in r.get("stand_ins", ())) for rules, records in found.items()}
    for rules in counts:
        table.add_column(rules, justify="right")
    for op, _ in sum(counts.values(), Counter[str]()).most_common():
        table.add_row(op, *(str(count[op] or "") for count in counts.values()))
    console.print(table)
