"""What `omenn_fx.check` says of a model of the zoo, with its weights and without any."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import omenn_fx
from omenn_fx.checking.check_report import CheckReport
from omenn_fx.checking.verdict import Verdict

from . import build

COPIES = tuple(f"aten.{op}.default" for op in ("contiguous", "clone", "view", "_unsafe_view", "reshape"))


def checked(name: str) -> dict[str, Any]:
    """The verdicts of one model.

    `same_on_meta`: the meta device gives the same verdict on the model and the same problems; `same_nodes_on_meta`: on
    every node too (a model may ask for its device, and be another graph there).
    """
    model, args, kwargs = build(name, calibrated=False)
    start = time.process_time()
    report = omenn_fx.check(model, args, example_kwargs=kwargs)
    seconds = time.process_time() - start
    record = {
        "supported": report.supported,
        "seconds": round(seconds, 3),
        "verdicts": {k: v for k, v in report.counts.items() if k != "constant"},
        "problems": [str(p).splitlines()[0][:200] for p in report.problems],
        "warnings": dict(Counter(w.kind.code for w in report.warnings)),
    }
    try:
        meta = omenn_fx.check(model.to("meta"), args, example_kwargs=kwargs)
    except Exception as error:
        return record | {"same_on_meta": False, "meta": f"{type(error).__name__}: {error}"[:200]}
    same = [p.kind for p in meta.problems] == [p.kind for p in report.problems]
    why = {} if same else {"meta": [str(p).splitlines()[0][:200] for p in meta.problems]}
    return record | {"same_on_meta": same, "same_nodes_on_meta": same and _live(meta) == _live(report), **why}


def _live(report: CheckReport) -> list[tuple[str, Verdict]]:
    """Operators and verdicts, less views and copies, which follow the memory layout that a device gives."""
    return [(n.op, n.verdict) for n in report.nodes if n.verdict is not Verdict.CONSTANT and n.op not in COPIES]
