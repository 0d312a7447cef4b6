"""An explainer in a `.pt2` file, torch.export's own format: it loads without the model's code."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.export import ExportedProgram

from omenn_fx._version import __version__
from omenn_fx.algebra.tolerances import tolerances_of
from omenn_fx.capture.pt2_file import NOTES, load_program, read_program
from omenn_fx.capture.sizes import is_symbolic
from omenn_fx.errors import ExportError, InputError
from omenn_fx.explanation import Explanation
from omenn_fx.export.deployed import inputs_of_call, tensor_of
from omenn_fx.export.files import as_export_error, whole, writing
from omenn_fx.export.program import to_program
from omenn_fx.export.sizes import FileSizes, file_sizes
from omenn_fx.graph.build import split
from omenn_fx.program import Live, Runnable
from omenn_fx.target import Target

Tensor = torch.Tensor
_KEYS = ("version", "rules", "bias", "batched", "inputs", "constants", "tensors", "explained", "biased", "kept")


def save(explainer: Live, path: str | Path, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Write an explainer, at example inputs. See `Explainer.save`."""
    path = Path(path)
    if path.suffix != ".pt2":
        raise ExportError(f"'{path}': the name of a saved explainer ends in .pt2, as torch.export wants it")
    program = to_program(explainer, *args, **kwargs)
    captured, leaves = explainer.program_for(args, dict(kwargs))  # another thread may have used another one last
    tensors = [isinstance(v, Tensor) for v in leaves]
    notes: dict[str, Any] = {
        "version": __version__,
        "rules": explainer.request.rules.name,
        "bias": explainer.bias,
        "batched": explainer.request.batched,
        "inputs": [n.name for n, t in zip(captured.captured.inputs, tensors, strict=True) if t],
        "constants": [None if t else n.meta["val"] for n, t in zip(captured.captured.inputs, tensors, strict=True)],
        "tensors": tensors,
        "explained": captured.names,
        "biased": captured.runnable.biased,
        "kept": captured.runnable.kept,
    }
    notes["sizes"] = file_sizes(captured.captured, program, notes["inputs"], explainer.request.rules).text
    with whole(path) as meanwhile, writing(path):
        torch.export.save(program, meanwhile, extra_files={NOTES: json.dumps(notes)})


def load(path: str | Path, trusted: bool = False) -> SavedExplainer:
    """Load an explainer that `Explainer.save` wrote. See `omenn_fx.load`.

    Raises:
        ExportError: no such file, or a program that is no explainer.
        FileError: it is damaged, or not plain data.
    """
    path = Path(path)
    if not path.exists():
        raise ExportError(f"there is no file '{path}'")
    notes = {NOTES: ""}
    program = load_program(path, trusted, notes)
    if not notes[NOTES]:
        raise ExportError(f"'{path}' holds a program, but not one that Explainer.save wrote")
    with as_export_error(f"'{path}' is a saved explainer, but its notes are damaged or another version's"):
        read = json.loads(notes[NOTES])
        missing = [key for key in _KEYS if key not in read]
        if missing or sum(read["tensors"]) != len(read["inputs"]) or len(read["tensors"]) != len(read["constants"]):
            raise ValueError(f"they lack {', '.join(missing)}" if missing else "its inputs are others")
        return SavedExplainer(program, read)


def _read(content: bytes) -> SavedExplainer:
    notes = {NOTES: ""}
    program = read_program(io.BytesIO(content), trusted=True, extra_files=notes)  # as a pickle is
    return SavedExplainer(program, json.loads(notes[NOTES]))


class SavedExplainer:
    """An explainer without its model: called with the model's input tensors, it returns an `Explanation`.

    Attributes:
        program: the torch.export program, (*inputs, cotangent) -> outputs, X, C_w, C_b, bias; it also compiles ahead of
            time (torch._inductor.aoti_compile_and_package).
        inputs: the names of the inputs.
        sizes: the free sizes of the inputs, and what they fulfil wherever this is the model.
        notes: what was saved beside it: versions, rule set, bias policy.
    """

    def __init__(self, program: ExportedProgram, notes: dict[str, Any]):
        self.program, self.notes = program, notes
        self.inputs: list[str] = notes["inputs"]
        self.sizes = FileSizes.read(notes.get("sizes", ""))
        module = explainer_graph_of(program)
        self._sizes = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
        names, biased, kept, batched = (notes[key] for key in ("explained", "biased", "kept", "batched"))
        self._runnable = Runnable(split(module), names, biased, kept, batched)
        values = (n.meta.get("val") for n in module.graph.nodes)
        self._limit = tolerances_of(*(v.dtype for v in values if isinstance(v, Tensor)))["completeness"]

    @torch.no_grad()
    def __call__(self, /, *inputs: Any, target: Target = None, **named: Any) -> Explanation:
        """Explain one output value per row, or several at once, from one forward.

        Args:
            *inputs, **named: the tensors among the model's inputs (or arrays), in their order or by name.
            target: as of an `Explainer`.

        Raises:
            InputError: not those inputs, of other sizes than the program takes, or NaN or inf (names the input).
            TargetError: as of an `Explainer`.
        """
        values = inputs_of_call(self.inputs, inputs, named)
        given = [tensor_of(name, value) for name, value in zip(self.inputs, values, strict=True)]
        tensors = iter(given)
        kinds = zip(self.notes["tensors"], self.notes["constants"], strict=True)
        leaves = [next(tensors) if tensor else constant for tensor, constant in kinds]
        self._check(given)
        return self._runnable.explain(leaves, target).require_sum(self._limit)

    def _check(self, given: list[Tensor]) -> None:
        wanted = [value for value in self._sizes[:-1] if isinstance(value, Tensor)]
        free: dict[str, int] = {}  # a size that stays free is the same wherever it stands
        for name, value, want in zip(self.inputs, given, wanted, strict=True):
            sizes = [
                free.setdefault(str(w), h) if is_symbolic(w) else int(w)
                for w, h in zip(want.shape, value.shape, strict=False)
            ]
            alike = (value.dtype, value.device, value.ndim) == (want.dtype, want.device, want.ndim)
            if not alike or sizes != list(value.shape):
                taken = ", ".join("N" if is_symbolic(w) else str(w) for w in want.shape)
                sizes_known = f" where N is {', '.join(map(str, free.values()))}" if free else ""
                have, kept = (f" on {v.device}" if value.device != want.device else "" for v in (value, want))
                raise InputError(
                    f"input '{name}' is {tuple(value.shape)} {value.dtype}{have}; this explainer was saved for "
                    f"({taken}) {want.dtype}{kept}{sizes_known}"
                )
        self.sizes.check(self.inputs, given)

    def __reduce__(self) -> tuple[Any, ...]:
        """As the bytes of its file: worker processes get one."""
        file = io.BytesIO()
        torch.export.save(self.program, file, extra_files={NOTES: json.dumps(self.notes)})
        return _read, (file.getvalue(),)

    def __repr__(self) -> str:
        return (
            f"SavedExplainer({', '.join(self.inputs)}; rules={self.notes['rules']!r}, bias={self.notes['bias']!r}, "
            f"omenn-fx {self.notes['version']})"
        )


def explainer_graph_of(program: ExportedProgram) -> fx.GraphModule:
    """A program of `to_program` as an explainer graph again: a cotangent, and a dict for its output."""
    module: Any = program.module(check_guards=False)
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    output = graph.output_node()
    output.args = (pytree.tree_unflatten(list(output.args[0]), program.call_spec.out_spec),)
    *inputs, cotangent = [n for n in graph.nodes if n.op == "placeholder"]
    # torch.export reads a free size from whichever input has it, but the forward must not wait for the cotangent
    sizes = {str(s): (n, d) for n in inputs for d, s in enumerate(getattr(n.meta["val"], "shape", ()))}
    for node in list(cotangent.users):
        if node.target is torch.ops.aten.sym_size.int:
            node.args = sizes.get(str(cotangent.meta["val"].shape[node.args[1]]), node.args)
    return fx.GraphModule(module, graph, class_name="ExplainerGraph")
