"""What a file is whose path was given as a model: told by its entries and its first bytes, without loading it."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from omenn_fx.errors import CaptureError

EXPLAINER_NOTES = "omenn_fx.json"  # what Explainer.save writes into its .pt2 in addition to the program

_EXPORTED = ("archive_format", "serialized_exported_program.json")  # torch's formats since 2.7, and before
_NO_PROGRAM = "a path must name a .pt2 file saved by torch.export.save"
_EXPORT_IT = "torch.export.save(torch.export.export(model, inputs), 'model.pt2')"


def require_program(path: Path) -> None:
    """Raise CaptureError where a file holds no exported program: it says what the file is, and the way out."""
    if not path.exists():
        raise CaptureError(f"there is no file '{path}'; {_NO_PROGRAM}")
    if path.is_dir():
        raise CaptureError(f"'{path}' is a folder; {_NO_PROGRAM}")
    found = _entries(path) if zipfile.is_zipfile(path) else None
    if found is None:
        what, fix = _by_first_bytes(path)
    elif EXPLAINER_NOTES in found:
        what, fix = "an explainer that Explainer.save wrote", "load it: omenn_fx.load(path) returns what explains"
    elif found & set(_EXPORTED):
        return
    elif "constants.pkl" in found:
        what, fix = "a TorchScript module (torch.jit.save)", f"give the nn.Module that it was made from, or {_EXPORT_IT}"
    elif "data.pkl" in found:
        what, fix = ("a pickled module (torch.save)", _MODULE) if _holds_a_module(path) else ("a file of weights", _WEIGHTS)
    else:
        what, fix = "an archive without a program", f"write it by {_EXPORT_IT}"
    raise CaptureError(f"'{path}' is {what}; {_NO_PROGRAM}", fix=fix)


_WEIGHTS = (
    "build the model in Python, load its weights with model.load_state_dict(torch.load(path, weights_only=True)), and "
    "give the model itself"
)

_MODULE = (
    "torch.load(path, weights_only=False) unpickles it, which runs what code it names: where you trust the file, give what "
    "that returns; else build the model in Python and load its weights"
)


def _holds_a_module(path: Path) -> bool:
    """Whether the pickle of torch.save names a class of torch.nn; its opcodes are read, none is run."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        named = [str(argument) for code, argument, _ in pickletools.genops(archive.read(name)) if code.name == "GLOBAL"]
    return any(one.startswith("torch.nn.modules.") or one.endswith("_rebuild_parameter") for one in named)


def _entries(path: Path) -> set[str]:
    """The names of an archive's files, without their folders."""
    with zipfile.ZipFile(path) as archive:
        return {name.rpartition("/")[2] for name in archive.namelist()}


def _by_first_bytes(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        start = file.read(16)
    if start[:1] == b"\x80":
        return "a pickle, as torch.save wrote them before torch 1.6", _WEIGHTS
    if path.suffix == ".safetensors":
        return "a file of weights", "build the model, load them (safetensors.torch.load_model), and give the model itself"
    if path.suffix == ".onnx":
        return "an ONNX file", "give the nn.Module that it was made from"
    return "no archive", f"write it by {_EXPORT_IT}"
