"""Model and explanation as one module of tensors: what an exported file computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from omenn_fx.errors import OutputError, TargetError
from omenn_fx.explainer import Program
from omenn_fx.target import Positions, resolve

Tensor = torch.Tensor
OUTPUTS = ("logits", "target", "X", "C", "C_w", "C_b", "bias")
TargetMode = str | int | Sequence[int]


class Deployed(nn.Module):
    """(*inputs[, target]) -> the tensors asked for, by name.

    `target` is "input" (an int64 tensor [N] at run time, a flat position in each row of the outputs), "top1" (each
    row's largest), an int, or a list of ints (T targets at once: tensors [N, T, ...]).
    """

    def __init__(self, program: Program, batched: bool, leaves: Sequence[Any], outputs: Sequence[str], target: Any):
        super().__init__()
        self.ahead, self.back = program.halves.forward, program.halves.backward
        self.biased: list[str] = program.graph_module.meta["biased"]
        self.inputs = [n.name for n, v in zip(program.captured.inputs, leaves, strict=True) if isinstance(v, Tensor)]
        self.constants = [None if isinstance(v, Tensor) else v for v in leaves]
        self.tensors = [isinstance(v, Tensor) for v in leaves]
        self.sources, self.batched, self.target = program.names, batched, target
        self.outputs = list(outputs if "logits" in outputs else ("logits", *outputs))
        unknown = [o for o in outputs if o not in OUTPUTS]
        if unknown:
            raise OutputError(f"outputs {', '.join(map(repr, unknown))}: a file can hold {', '.join(OUTPUTS)}")
        if "C_b" in outputs and "C_b" not in self._parts(program):
            raise OutputError("this explainer makes no C_b: transform with bias='carrier' or 'contribution'")
        if "bias" in outputs and not self.biased:
            self.outputs.remove("bias")  # the model has none
        if not (target in ("input", "top1") if isinstance(target, str) else isinstance(target, (int, list, tuple))):
            raise TargetError(f"target={target!r}: an exported target is 'input', 'top1', an int or a list of ints")

    @staticmethod
    def _parts(program: Program) -> list[str]:
        result: Any = next(n for n in program.graph_module.graph.nodes if n.op == "output").args[0]
        return [name for name, value in result.items() if value is not None]

    @property
    def takes_target(self) -> bool:
        return self.target == "input"

    @property
    def several(self) -> bool:
        return isinstance(self.target, (list, tuple))

    @property
    def names(self) -> list[str]:
        """The names of the results: "C" for one explained input, "C.name" for each of several."""
        per_input = [s if len(self.sources) > 1 else "" for s in self.sources]
        return [
            f"{output}.{source}" if source else output
            for output in self.outputs
            for source in (per_input if output in ("X", "C", "C_w", "C_b") else [""])
        ]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        leaves = [next(given) if t else c for t, c in zip(self.tensors, self.constants, strict=True)]
        outputs, residuals = self.ahead(*leaves)
        rows = outputs if self.batched else outputs[None]
        positions = self._positions(rows, next(given, None))
        results = [self.back(g if self.batched else g[0], *residuals) for g in positions.cotangents(rows)]
        found = {name: self._found(name, rows, positions, results) for name in self.outputs}
        return tuple(t for name in self.outputs for t in found[name])

    def _positions(self, rows: Tensor, target: Tensor | None) -> Positions:
        if target is not None:
            return Positions(target, several=False)
        if self.target == "top1":
            return Positions(rows.flatten(1).argmax(1), several=False)
        if self.several:
            index = torch.tensor(list(self.target), device=rows.device)
            return Positions(index.expand(rows.shape[0], -1), several=True)
        positions = resolve(self.target, rows)
        assert isinstance(positions, Positions)
        return positions

    def _found(self, name: str, rows: Tensor, positions: Positions, results: list[dict[str, Any]]) -> list[Tensor]:
        if name == "logits":
            return [rows]
        if name == "target":
            return [positions.target]
        if name == "bias":
            return [self._together([r["bias"] for r in results])]
        if name == "X":
            return [self._rows(x) for x in results[0]["X"]]
        values = [[self._one(name, r, i) for r in results] for i in range(len(self.sources))]
        return [self._together([self._rows(v) for v in per_target]) for per_target in values]

    def _one(self, name: str, result: dict[str, Any], i: int) -> Tensor:
        if name != "C":
            return result[name][i]
        product = result["C_w"][i] * result["X"][i]
        return product if result["C_b"] is None else product + result["C_b"][i]

    def _rows(self, value: Tensor) -> Tensor:
        return value if self.batched else value[None]

    def _together(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values, 1) if self.several else values[0]
