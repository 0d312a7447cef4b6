"""What onnxruntime reads and other engines do not, written another way with the same values to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

WIDEST = 8  # inputs of a Concat: WebGPU binds no more buffers by default, and leaves the others out without an error
_END = np.iinfo(np.int64).max


def portable(model: Any) -> None:
    """Rewrite an onnx_ir.Model in place: ConstantOfShape with its value, no wide Concat, a Slice where a Pad crops, no
    kernel of the size of a map that its image was multiplied with.

    A negative Pad stays where sizes are unknown, or in another mode than constant.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))
        elif node.op_type == "Concat" and len(node.inputs) > WIDEST:
            _narrow(node)
        elif node.op_type == "Pad":
            _crop_first(node)
        elif node.op_type == "Conv":
            _larger_kernel(node)


def without_free_shapes(model: Any) -> None:
    """Take out the shapes of values inside that depend on a free size: tract takes the symbol for another number than
    the input's, and every runtime infers them anyway."""
    ends = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in ends and value.shape is not None and not value.shape.is_static():
                value.shape = None


def _narrow(node: Any) -> None:
    """A Concat of many as a tree of Concats of few."""
    parts = list(node.inputs)
    while len(parts) > WIDEST:
        groups = [parts[i : i + WIDEST] for i in range(0, len(parts), WIDEST)]
        parts = [g[0] if len(g) == 1 else _before(node, "Concat", g, {"axis": node.attributes["axis"]}) for g in groups]
    _replace(node, "Concat", parts, {"axis": node.attributes["axis"]})


def _crop_first(node: Any) -> None:
    """A Pad with negative sizes is a Slice, and a Pad of the rest where there is any."""
    mode = node.attributes.get("mode")
    x, pads = node.inputs[:2]
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    found = ir.convenience.get_const_tensor(pads)
    if found is None or axes is not None or (mode is not None and mode.as_string() != "constant"):
        return
    sizes = found.numpy().astype(np.int64)
    before, after = np.split(np.minimum(sizes, 0), 2)
    cropped = np.flatnonzero(before + after)
    known = x.shape is not None and all(isinstance(x.shape[int(i)], int) for i in cropped)
    # what is more than the whole of an axis would take from the padding too
    if not len(cropped) or not known or any(x.shape[int(i)] + before[i] + after[i] < 0 for i in cropped):
        return
    ends = np.where(after == 0, _END, after)
    bounds = [_constant(node, v[cropped]) for v in (-before, ends)] + [_constant(node, cropped.astype(np.int64))]
    if (sizes <= 0).all():
        _replace(node, "Slice", [x, *bounds], {})
        return
    inside = _before(node, "Slice", [x, *bounds], {})
    rest = [inside, _constant(node, np.maximum(sizes, 0)), *node.inputs[2:]]
    _replace(node, "Pad", rest, dict(node.attributes))


def _larger_kernel(node: Any) -> None:
    """A ring of zeros around a kernel of the same size as the constant map that the image is multiplied with: OpenVINO
    2026.4 multiplies the kernel with such a map instead, in silence."""
    made = node.inputs[0].producer()
    weight = ir.convenience.get_const_tensor(node.inputs[1])
    if made is None or made.op_type not in ("Mul", "Div") or weight is None:
        return
    kernel = tuple(weight.numpy().shape[2:])
    maps = [ir.convenience.get_const_tensor(value) for value in made.inputs]
    if max(kernel) == 1 or not any(m is not None and m.numpy().shape[-len(kernel) :] == kernel for m in maps):
        return
    pads = node.attributes.get("pads")
    dilations = node.attributes.get("dilations")
    auto = node.attributes.get("auto_pad")
    if auto is not None and auto.as_string() != "NOTSET":
        return
    n = len(kernel)
    before = list(pads.as_ints()) if pads is not None else [0] * (2 * n)
    steps = list(dilations.as_ints()) if dilations is not None else [1] * n
    wider = np.pad(weight.numpy(), [(0, 0), (0, 0), *[(1, 1)] * n])
    node.replace_input_with(1, _constant(node, wider))
    node.attributes["pads"] = ir.AttrInt64s("pads", [p + s for p, s in zip(before, steps * 2, strict=True)])
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", wider.shape[2:])


def _constant(node: Any, value: np.ndarray) -> Any:
    return _before(node, "Constant", [], {"value": ir.AttrTensor("value", ir.tensor(value))})


def _new(node: Any, kind: str, inputs: list[Any], attributes: dict[str, Any]) -> Any:
    made = ir.Node("", kind, inputs, list(attributes.values()), metadata_props=dict(node.metadata_props))
    node.graph.insert_before(node, made)
    return made


def _before(node: Any, kind: str, inputs: list[Any], attributes: dict[str, Any]) -> Any:
    return _new(node, kind, inputs, attributes).outputs[0]


def _replace(node: Any, kind: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    made = _new(node, kind, inputs, attributes)
    old, new = node.outputs[0], made.outputs[0]
    new.name, new.shape, new.dtype = old.name, old.shape, old.dtype
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
