"""Weights from a file into a model: plain tensors alone, that fit it and hold numbers."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from omenn_fx.capture.plain_program import NotPlainError
from omenn_fx.capture.pt2_file import within
from omenn_fx.loading.libraries import SourceError, first_line, import_library


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state_dict from a file into a model. Raises SourceError where it cannot be read or does not fit."""
    state = {name.removeprefix("module."): value for name, value in read_state_dict(path).items()}
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    # A counter of training steps that no eval-mode forward reads: files often lack it.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    unlike = [f"{k} ({kind})" for k, v in state.items() if k in own and (kind := _unlike(v, own[k]))]
    shapes = [
        f"{k} {tuple(v.shape)} in the file, {tuple(own[k].shape)} in the model"
        for k, v in state.items()
        if k in own and not _unlike(v, own[k]) and v.shape != own[k].shape
    ]
    problems = [
        f"{what} ({len(names)}): {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", missing),
            ("not in the model", unexpected),
            ("another kind of tensor", unlike),
            ("another shape", shapes),
        )
        if names
    ]
    if problems:
        raise SourceError("\n  ".join([f"the weights in '{path}' do not fit the model:", *problems]))
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # hooks of a model raise what they like
        raise SourceError(f"the weights in '{path}' cannot be loaded into the model: {first_line(error)}") from error


def _unlike(value: torch.Tensor, own: torch.Tensor) -> str:
    """How a tensor is another kind than the dense one of the model, which would take it with a loss or not at all."""
    if is_lazy(own):
        return "not made yet in the model: call it once"
    if value.is_meta:
        return "on the meta device, without values"
    if value.is_nested or value.layout is not own.layout:
        return "nested" if value.is_nested else f"{value.layout}: save its .to_dense()"
    if value.is_quantized and not own.is_quantized:
        return f"{value.dtype}: save its .dequantize()"
    if _kind(value) != _kind(own):
        return f"{value.dtype} for {own.dtype}"
    return ""


def _kind(value: torch.Tensor) -> str:
    return "complex" if value.is_complex() else "floating" if value.is_floating_point() else "whole"


def require_values(model: nn.Module | ExportedProgram) -> None:
    """Raise SourceError where weights have no values, or hold NaN or inf: no explanation of such a model exists.

    A buffer may hold inf: masks do.
    """
    found = [f"'{name}' ({what})" for name, value, is_buffer in _weights(model) if (what := _lost(value, is_buffer))]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise SourceError(
            f"the weights are no numbers that a model computes with: {', '.join(found[:3])}{more}; load weights from "
            "before they were lost"
        )


def _weights(model: nn.Module | ExportedProgram) -> Iterator[tuple[str, torch.Tensor, bool]]:
    if isinstance(model, ExportedProgram):
        buffers = model.graph_signature.buffers
        yield from ((name, value, name in buffers) for name, value in model.state_dict.items())
    else:
        yield from ((name, value, False) for name, value in model.named_parameters())
        yield from ((name, value, True) for name, value in model.named_buffers())


def _lost(value: torch.Tensor, is_buffer: bool) -> str:
    if is_lazy(value) or not (value.is_floating_point() or value.is_complex()) or value.layout is not torch.strided:
        return ""
    if value.is_meta:
        return "on the meta device, without values"
    value = value.float() if value.itemsize == 1 else value  # float8 knows no isnan
    nan, inf = int(value.isnan().sum()), 0 if is_buffer else int(value.isinf().sum())
    counts = [f"{count} {name}" for count, name in ((nan, "NaN"), (inf, "inf")) if count]
    return f"{' and '.join(counts)} of {value.numel()}" if counts else ""


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from .pth, .pt (no code in it is run) or .safetensors. Raises SourceError."""
    if not path.is_file():
        raise SourceError(f"there is no weights file '{path}'")
    try:
        if path.suffix == ".safetensors":
            return import_library("safetensors.torch").load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                within(archive.infolist(), path.stat().st_size)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SourceError:
        raise
    except NotPlainError as error:
        raise SourceError(f"the weights in '{path}' are not read: {error}") from error
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"'{path}' holds no plain state_dict: it is damaged, or it pickles objects whose code would have to run; "
            "torch.save(model.state_dict(), path) makes one"
        ) from error
    except Exception as error:  # a damaged file raises anything from zipfile to KeyError
        raise SourceError(f"the weights in '{path}' cannot be read: {first_line(error)}") from error
    for key in ("state_dict", "model"):  # what training scripts wrap it in
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not _is_state_dict(state):
        raise SourceError(f"'{path}' holds a {type(state).__name__}, not a state_dict (a name for every tensor)")
    return state


def _is_state_dict(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and bool(state)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    )
