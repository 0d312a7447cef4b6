"""The public face: `transform` makes an `Explainer`, a module that returns an `Explanation` instead of bare logits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import ExportedProgram

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.analysis.endpoints import Explain, Output
from omenn_fx.analysis.plan import Request
from omenn_fx.analysis.roles import Decision
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.exclusive import exclusive
from omenn_fx.capture.inputs import (
    check_autocast,
    check_finite,
    flatten_inputs,
    positional,
)
from omenn_fx.capture.isolate import deep_copied, isolated
from omenn_fx.capture.kept import kept
from omenn_fx.capture.outputs import tensors_only
from omenn_fx.capture.torch_export import Source, load_source, require_eval
from omenn_fx.checking.complete import require_sum
from omenn_fx.checking.validate import validate
from omenn_fx.checking.validation_report import ValidationReport
from omenn_fx.compat import compile_inside, keep_out_of_compilation
from omenn_fx.errors import OmennError
from omenn_fx.explanation import Explanation
from omenn_fx.graph.affine_map import AffineMap, Recorder, affine_map
from omenn_fx.program import NodeInfo, Program
from omenn_fx.programs import Programs
from omenn_fx.target import Target

if TYPE_CHECKING:
    from omenn_fx.export.onnx import OnnxFile

log = logging.getLogger("omenn_fx")
Tensor = torch.Tensor


def transform(
    model: Source,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    explain: Explain = None,
    at: str | None = None,
    output: Output = None,
    rules: str | RuleSet = "omenn",
    bias: str = "carrier",
    roles: Mapping[str, str] | None = None,
    dynamic_batch: bool = True,
    batched: bool = True,
    trusted: bool = False,
) -> Explainer:
    """Compile a model into a twin that explains itself (the OMENN method, arXiv 2412.02399).

    Args:
        model: an nn.Module in eval mode, an fx.GraphModule, an ExportedProgram or the path of a `.pt2` file.
        example_inputs: a tensor or a tuple of positional inputs to capture at; without, the first call captures.
        example_kwargs: keyword inputs to capture at.
        explain: which inputs carry content, by name or position (one or several), or the names of floating-point nodes
            inside of the model. Default: every floating-point input; where all inputs are integers, what the ids look
            up, computed ids too (embeddings, and bags of them token by token), else the numbers that forward reads.
        at: a module's path or a node's name, whose value is explained, not the inputs'; what goes around it is a bias.
        output: which tensor of a tuple, dict or ModelOutput is explained: name, position, or a callable that picks it;
            or the name of a node inside of the model (`nodes` lists them: the logits below a softmax). Default: the
            logits (the only tensor, the one named so, else the first floating-point one).
        rules: the rule set, by name or itself (`omenn_fx.rules.sets`): "omenn", or another choice of W and b, such as
            LRP's composites.
        bias: "carrier" (bias mass carried to the input by position), "contribution" (in proportion to each input's
            contribution) or "none" (no C_b; the table per node stays).
        roles: overrides, node name, module path or pattern -> "content" or "coefficient".
        dynamic_batch: capture with a symbolic batch size; a model that fixes its batch is captured at that size.
        batched: False where all inputs together are one sample without a batch dimension: the nodes of a graph, a pair
            of image and text. The explanation then has a batch of one in front: outputs [1, ...], C [1, ...].
        trusted: load a `.pt2` file that could run code (SECURITY.md), as you would start a program; else a FileError.

    Raises:
        ModeError, CaptureError: the model is in train mode; torch.export cannot capture it, by the line.
        UnsupportedOpError: operators on the way have no rule; lists all of them.
        NoContentError, OutputError, InputError: nothing to explain. MixedBatchError: samples meet.
    """
    request = Request.of(
        rules, roles, explain=explain, at=at, output=output, bias=bias, dynamic_batch=dynamic_batch, batched=batched
    )
    explainer = Explainer(load_source(model, trusted), request)
    if example_inputs is not None or example_kwargs:
        explainer.prepare(*positional(example_inputs), **(example_kwargs or {}))
    return explainer


class Explainer(nn.Module):
    """A model and its explainer graph. Call it like the model; it returns an `Explanation`. Made by `transform`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Explainer:
        """An explainer, unpickled ones too, whose captures are never part of a compiled graph."""
        keep_out_of_compilation(Explainer, "_captured_for", "_follow")
        compile_inside(Explainer, "__call__")
        return super().__new__(cls)

    def __init__(self, model: Source, request: Request, programs: Programs | None = None):
        super().__init__()
        source = load_source(model)
        self.model = source if isinstance(source, nn.Module) else None
        self._exported = source if isinstance(source, ExportedProgram) else None
        if self.model is not None:
            require_eval(self.model)
        self.request = request
        self._programs = Programs() if programs is None else programs
        self.training = False

    @property
    def bias(self) -> str:
        """The bias policy."""
        return self.request.bias

    def with_request(self, request: Request) -> Explainer:
        """An explainer of the same model for another request."""
        return Explainer(self._source, request)

    @property
    def _source(self) -> nn.Module | ExportedProgram:
        source = self.model if self.model is not None else self._exported
        assert source is not None
        return source

    # Capture ------------------------------------------------------------------------------------------------------

    def prepare(self, *args: Any, **kwargs: Any) -> Explainer:
        """Capture at example inputs now, so that the first explanation costs nothing extra. Returns self."""
        self._programs.capture(self._source, args, kwargs, self.request)
        return self

    def _captured_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, list[Any]]:
        with exclusive():  # once, however many threads ask for it
            found = self._programs.find(args, kwargs)
            if found is None:
                self._programs.require_alike(args, kwargs)
                program = self.prepare(*args, **kwargs).ready
                # another thread may have used another program since
                found = self._programs.find(args, kwargs) or (program, flatten_inputs(program.captured, args, kwargs))
            return found

    def program_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, list[Any]]:
        """What was captured for inputs like these (captured now where nothing fits), and their leaves in its order."""
        self._follow()
        return self._program_for(args, kwargs)

    def _follow(self) -> bool:
        return self.model is not None and self._programs.follow(self.model)

    def _program_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, list[Any]]:
        check_autocast(pytree.tree_leaves((args, kwargs)))
        found = self._programs.find(args, kwargs, tick=not torch.compiler.is_dynamo_compiling())
        return self._captured_for(args, kwargs) if found is None else found

    def _apply(self, fn: Any, recurse: bool = True) -> Explainer:
        """`.to`, `.double`, `.cuda`: the model moves, and is captured anew at the next call."""
        if self._exported is not None:
            raise OmennError("an exported program keeps its dtype and device; transform the model itself to move it")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._programs.clear()
        return self

    def train(self, mode: bool = True) -> Explainer:
        """An explainer is always in eval mode; train(True) is ignored for it and its model."""
        return super().train(False) if self.model is not None else self

    # Explaining ---------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, target: Target = None, **kwargs: Any) -> Explanation:
        """As `forward`. Whether the model has changed is asked here, where torch.compile does not compile it away."""
        if self._follow():
            self._captured_for(args, kwargs)
        explanation: Explanation = super().__call__(*args, target=target, **kwargs)
        return explanation

    def forward(self, *args: Any, target: Target = None, **kwargs: Any) -> Explanation:
        """Explain one output value per row, or several at once.

        Args:
            *args, **kwargs: the model's own inputs.
            target: None: the top output of each row; int: that class; tuple of ints: a position of outputs
                [N, A, B, ...]; tuple with slices, `...` or boolean masks: the sum of what it indexes in a row (a class
                over a region); LongTensor [N]: a class per row; LongTensor [N, T]: T targets at once; a floating-point
                tensor: the weights of a sum over the outputs, of shape [...] (all rows alike), [N, ...] or
                [N, T, ...]; a callable: outputs -> one of these.

        Raises:
            InputError: not tensors, another rank or dtype, NaN or inf (names the input).
            TargetError: out of range or of the wrong shape.

        Warns:
            IncompleteWarning: sum(C) is not the explained value; names the node that `validate` would name first.
        """
        with torch.no_grad():  # as a decorator it would be what torch.compile starts from, not `__call__`
            program, leaves = self._program_for(args, kwargs)
            if torch.compiler.is_dynamo_compiling():
                return program.runnable.explain(leaves, target)
            check_finite(program.captured, leaves)
            return require_sum(program.runnable.explain(leaves, target), program, leaves, self.request.policy)

    def validate(
        self,
        *args: Any,
        target: Target = None,
        tolerance: float | None = None,
        double: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> ValidationReport:
        """The invariants of the method on these inputs, measured at every node.

        Forward (the twin's outputs are the model's), dynamic linearity (W h + b == h), linearity of W, the dot test
        of its transpose, completeness, and bias mass. Values are let go of as soon as nothing after them reads them.

        Args:
            *args, **kwargs: the model's own inputs.
            target: as of a call.
            tolerance: the largest relative error of all invariants. Default: by dtype, about 1e-10 in float64 and 1e-5
                in float32.
            double: also explain a copy of the model in float64, and report how far outputs and C are from it.
            seed: of the random vectors that W is tried with, and of what the model draws itself.

        Raises:
            NodeError: a rule raises at a node.
        """
        return validate(self, args, kwargs, target=target, tolerance=tolerance, double=double, seed=seed)

    def in_float64(self) -> Explainer:
        """An explainer of a copy of the model in float64. Raises OmennError for an exported program."""
        return self.converted(torch.float64)

    def converted(self, dtype: torch.dtype, device: str | None = None) -> Explainer:
        """An explainer of a copy of the model in another dtype. Raises OmennError for an exported program."""
        if self.model is None:
            raise OmennError("an exported program keeps its dtype; transform the model itself to compare with float64")
        return Explainer(deep_copied(self.model).to(device=device, dtype=dtype), self.request)

    @torch.no_grad()
    def reference(self, *args: Any, **kwargs: Any) -> Tensor:
        """The explained output as the model itself computes it, without our graph: [N, ...]."""
        program, leaves = self.program_for(args, kwargs)
        if self.model is None:
            assert self._exported is not None
            return program.output_of(self._exported.module()(*args, **kwargs), leaves)
        copied = isolated(self.model)
        with kept(copied):  # it shares its buffers
            return program.output_of(tensors_only(copied(*args, **kwargs)), leaves)  # as at capture

    # Leaving the process ------------------------------------------------------------------------------------------

    def to_onnx(
        self,
        path: str | Path,
        *inputs: Any,
        outputs: Sequence[str] = ("logits", "C", "completeness"),
        target: str | int | Sequence[int] = "input",
        opset: int | None = None,
        dtype: str = "float32",
        dynamic: Sequence[str] = ("batch",),
        verify: bool = True,
        metadata: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> OnnxFile:
        """Write model and explanation as one ONNX graph, which onnxruntime runs without Python, torch or autograd.

        Args:
            path: the file; weights of more than 2 GB go into a file beside it. What was there stays until the new file
                is verified, and where that fails.
            *inputs, **kwargs: example inputs, which the file is verified on. Default: random ones like those captured.
            outputs: of "logits" (the explained output, always there), "C", "C_w", "C_b" (tensors of the input's shape;
                with several explained inputs "C.name" of each), "X" (for integer ids, their embeddings), "bias" [N, V]
                (the share of each node, named in the metadata), "target" [N] and "completeness" [N] (|sum(C) - value|
                relative to sum |C_w X| + sum |C_b|: at most 1e-5 in float32 where the runtime computes the right map).
                Names that inputs have get a "_".
            target: "input": an int64 input `target` [N], a flat position in each row of the outputs, or -1 for the
                row's largest; "top1": each row's largest output; an int; a list of T ints: T explanations at once,
                tensors [N, T, ...].
            opset: of ONNX. Default: torch.onnx's.
            dtype: "float32" or "float16": of weights, inputs and outputs.
            dynamic: what stays free: "batch" (where it was captured so), "tokens" (the length of sequences), "height"
                and "width" (of images); or ().
            verify: check the file with onnx, and onnxruntime's results against this explainer's, on the inputs and on
                others like them that the model takes.
            metadata: more entries for the file's metadata (text), such as the normalisation of the images.

        Raises:
            ExportError: an operator has no translation, a library is missing, the file cannot be written, or no input
                is given and the model takes none of the random ones.
            ParityError: onnxruntime computes something else; names the first node that differs.
        """
        from omenn_fx.export.onnx import to_onnx  # onnx is needed here alone

        return to_onnx(
            self, path, inputs, input_kwargs=kwargs, outputs=outputs, target=target, opset=opset, dtype=dtype,
            dynamic=dynamic, verify=verify, metadata=metadata,
        )  # fmt: skip

    def save(self, path: str | Path, *inputs: Any, **kwargs: Any) -> None:
        """Write the explainer to a `.pt2` file (torch.export's format), which `omenn_fx.load` reads without the model.

        Args:
            path: a name that ends in .pt2.
            *inputs, **kwargs: example inputs.

        Raises:
            ExportError: another ending, or the file cannot be written.
            InputError: the inputs do not fit the model.
        """
        from omenn_fx.export.archive import save  # an explainer leaves by the rooms behind it

        save(self, path, inputs, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What was captured stays behind: a worker process captures for itself at its first call."""
        return self.__dict__ | {"_programs": Programs()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Explainers that earlier versions pickled keep the bias policy beside the request."""
        bias = state.pop("bias", None)
        state.pop("_current", None)
        super().__setstate__(state | {"_programs": Programs()})  # type: ignore[no-untyped-call]
        if bias is not None:
            self.request = replace(self.request, bias=bias)

    # Looking inside -----------------------------------------------------------------------------------------------

    @property
    def _current(self) -> Program | None:
        return self._programs.current

    @property
    def _captured(self) -> Captured | None:
        return None if self._current is None else self._current.captured

    @property
    def ready(self) -> Program:
        """What was captured last. Raises OmennError where nothing is yet."""
        if self._current is None:
            raise OmennError("nothing is captured yet: give example_inputs to transform, or call the explainer once")
        return self._current

    @property
    def graph_module(self) -> fx.GraphModule:
        """The explainer graph: (*inputs, cotangent) -> outputs, X, C_w, C_b, bias. Names follow the source nodes."""
        return self.ready.graph_module

    @property
    def nodes(self) -> list[NodeInfo]:
        """Every node of the captured graph, in order."""
        return self.ready.nodes

    @property
    def decisions(self) -> list[Decision]:
        """The products of two content values where a policy decided, and how."""
        return list(self.ready.tagged.decisions)

    @property
    def opaque(self) -> list[tuple[str, str]]:
        """(reader, operand) for every input-dependent value added as a bias its way to the input not being linear."""
        return list(self.ready.tagged.opaque)

    @torch.no_grad()
    def affine(
        self, inputs: Tensor | tuple[Any, ...] | Mapping[str, Any], to: str, since: str | None = None
    ) -> AffineMap:
        """The exact affine map to a node, at these inputs.

        Args:
            inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
            to: the node's name (`explainer.nodes` lists them).
            since: None: from the explained input (all of them); a node's name: from that node; "operands": the node's
                own local map from its content operands.

        Raises:
            ValueError: no such content node.
        """
        args = (inputs,) if isinstance(inputs, Tensor) else inputs if isinstance(inputs, tuple) else ()
        kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
        program, leaves = self.program_for(args, kwargs)
        check_finite(program.captured, leaves)
        values = Recorder(program.captured.module).record(leaves)
        return affine_map(program.tagged, values, to, since)

    def extra_repr(self) -> str:
        state = "not captured yet" if self._current is None else f"{len(self._current.captured.graph.nodes)} nodes"
        return f"rules={self.request.rules.name!r}, bias={self.bias!r}, {state}"
