"""What a file is whose path was given as a model: told by its entries and its first bytes, without loading it."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from omenn_fx.capture.pt2_file import NOTES
from omenn_fx.errors import FileError

_EXPORTED = ("archive_format", "serialized_exported_program.json")  # torch's formats since 2.7, and before
_NO_PROGRAM = "a path must name a .pt2 file saved by torch.export.save"
_EXPORT_IT = "torch.export.save(torch.export.export(model, inputs), 'model.pt2')"


def require_program(path: Path) -> None:
    """Raise FileError where a file holds no exported program: it says what the file is, and the way out."""
    if not path.exists():
        raise FileError(f"there is no file '{path}'; {_NO_PROGRAM}")
    if path.is_dir():
        raise FileError(f"'{path}' is a folder; {_NO_PROGRAM}")
    what, fix = _of_an_archive(path) if zipfile.is_zipfile(path) else _of_first_bytes(path)
    if what:
        raise FileError(
            f"'{path}' cannot be read as an exported program: it is {what}, no exported program; {_NO_PROGRAM}", fix=fix
        )


_WEIGHTS = (
    "build the model in Python, load its weights with model.load_state_dict(torch.load(path, weights_only=True)), and "
    "give the model itself"
)

_MODULE = (
    "torch.load(path, weights_only=False) unpickles it, which runs what code it names: where you trust the file, give "
    "what that returns; else build the model in Python and load its weights"
)


_PICKLE = 2**24  # bytes of a pickle that is looked into: a small file may unpack to gigabytes


def _holds_a_module(path: Path) -> bool:
    """Whether the pickle of torch.save names a class of torch.nn; its opcodes are read, none is run."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        if archive.getinfo(name).file_size > _PICKLE:
            return False
        named = [str(argument) for code, argument, _ in pickletools.genops(archive.read(name)) if code.name == "GLOBAL"]
    return any(one.startswith("torch.nn.modules.") or one.endswith("_rebuild_parameter") for one in named)


def _of_an_archive(path: Path) -> tuple[str, str]:
    """What an archive is, and the way out; nothing of a program."""
    with zipfile.ZipFile(path) as archive:
        found = {name.rpartition("/")[2] for name in archive.namelist()}
    if NOTES in found:
        return "an explainer that Explainer.save wrote", f"load it: omenn_fx.load('{path}') returns what explains"
    if found & set(_EXPORTED):
        return "", ""
    if "constants.pkl" in found:
        return "a TorchScript module (torch.jit.save)", f"give the nn.Module that it was made from, or {_EXPORT_IT}"
    if "data.pkl" not in found:
        return "an archive without a program", f"write it by {_EXPORT_IT}"
    return ("a pickled module (torch.save)", _MODULE) if _holds_a_module(path) else ("a file of weights", _WEIGHTS)


def _of_first_bytes(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        start = file.read(1)
    if start == b"\x80":
        return "a pickle, as torch.save wrote them before torch 1.6", _WEIGHTS
    if path.suffix == ".safetensors":
        return "a file of weights", "build the model, load them (safetensors.torch.load_model), and give that"
    if path.suffix == ".onnx":
        return "an ONNX file", "give the nn.Module that it was made from"
    return "no archive", f"write it by {_EXPORT_IT}"
