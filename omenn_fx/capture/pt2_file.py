"""A `.pt2` file becomes a program; one that is not trusted is looked through first.

torch.export.load unpickles, evaluates and loads libraries, all of it by design. What a file of plain tensors and known
operators needs is a small part of that, so that all else can be refused by name.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.export import ExportedProgram

from omenn_fx.capture.exclusive import quiet
from omenn_fx.capture.plain_program import NotPlainError, check_program
from omenn_fx.compat import archive_reader, parsed_payloads, parsed_program
from omenn_fx.errors import FileError

NOTES = "omenn_fx.json"  # the extra file of a saved explainer
_TRUST = "pass trusted=True (on the command line --trust) where you trust the file as you would trust a program"
_ENTRIES = re.compile(
    r"(models/[\w.-]+\.json|data/(weights|constants|sample_inputs)/[\w.-]+|extra/.+|executorch/.+|\.data/\w+|byteorder|"
    r"version|archive_format|archive_version|\.format_version|\.storage_alignment)"
)
_SLACK = 2**24  # bytes by which small files may grow when they are unpacked


def load_program(path: Path, trusted: bool = False, extra_files: dict[str, Any] | None = None) -> ExportedProgram:
    """The program in a `.pt2` file.

    Args:
        path: the file.
        trusted: leave out the look at what is in it.
        extra_files: filled with the contents of extra files, as torch.export.load does.

    Raises:
        FileError: it is damaged, or, unless trusted, holds what could run code or exhaust the memory.
    """
    try:
        with path.open("rb") as file:
            return read_program(file, trusted, extra_files)
    except NotPlainError as error:
        raise FileError(
            f"'{path}' is not loaded, for it could run code or exhaust the memory: {error}", fix=_TRUST
        ) from error
    except Exception as error:  # a damaged archive raises anything from zipfile to KeyError
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FileError(
            f"'{path}' cannot be read as an exported program (a .pt2 file of torch.export.save): {first}"
        ) from error


def read_program(file: BinaryIO, trusted: bool, extra_files: dict[str, Any] | None = None) -> ExportedProgram:
    """As `load_program`, from an open file. Raises NotPlainError, and whatever torch makes of a damaged archive."""
    if not trusted:
        _scan(file)
    file.seek(0)
    with quiet():
        return torch.export.load(file, extra_files=extra_files)


def _scan(file: BinaryIO) -> None:
    """Raise NotPlainError where an archive holds more than torch.export writes for plain tensors."""
    sizes = _entries(file)
    if not any(name.startswith("models/") for name in sizes):
        kind = "TorchScript" if "constants.pkl" in sizes else "weights or other data"
        raise ValueError(f"it holds {kind}, no exported program")
    file.seek(0)
    reader = archive_reader(file)
    seen = {name: _size(reader, name) for name in reader.get_all_records()}
    if seen != sizes:
        raise NotPlainError("its table of contents has two readings")
    for name in sizes:
        if not _ENTRIES.fullmatch(name):
            raise NotPlainError(f"the entry {name!r} is none of an exported program's")
    models = [name.removeprefix("models/").removesuffix(".json") for name in sizes if name.startswith("models/")]
    for model in models:
        _check_model(reader, sizes, model)


def _size(reader: Any, name: str) -> int:
    """Bytes of an entry. torch 2.11 tells them only by reading it, which takes no more memory than the file."""
    told = getattr(reader, "get_record_size", None)
    return told(name) if told is not None else len(reader.get_record(name))


def _entries(file: BinaryIO) -> dict[str, int]:
    """The sizes of the entries as the table of contents states them, by their names without the archive's own."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    within(infos, file.seek(0, io.SEEK_END))
    if any(info.filename == "version" for info in infos):
        raise NotPlainError(
            "it has the layout of torch 2.7 and older, which is unpickled; save it again with a later torch"
        )
    root = infos[0].filename.split("/")[0] + "/" if infos else ""
    for info in infos:
        parts = info.filename.split("/")
        if not info.filename.startswith(root) or ".." in parts or re.search(r"[\\:\x00-\x1f]", info.filename):
            raise NotPlainError(f"the entry {info.filename!r} lies outside of the archive's folder")
    if len({info.filename.casefold() for info in infos}) != len(infos):
        raise NotPlainError("two entries have one name")
    return {info.filename.removeprefix(root): info.file_size for info in infos}


def within(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Raise NotPlainError where entries would be much larger than the file that they come from."""
    unpacked = sum(info.file_size for info in infos)
    if unpacked > size + _SLACK:
        largest = max(infos, key=lambda info: info.file_size)
        raise NotPlainError(
            f"its entries would unpack to {unpacked:,} bytes from {size:,}, most of it '{largest.filename}'"
        )


def _check_model(reader: Any, sizes: Mapping[str, int], model: str) -> None:
    entry = f"models/{model}.json"
    try:
        check_program(parsed_program(reader.get_record(entry)))
    except NotPlainError as error:
        raise NotPlainError(f"{entry}: {error}") from None
    for folder, prefix in (("weights", "weight"), ("constants", "tensor")):
        former = f"data/{folder}/{model}.pt"
        if former in sizes:  # torch 2.8: one pickle, which torch unpickles in full where it is not plain
            _check_pickle(former, reader.get_record(former))
        else:
            config = f"data/{folder}/{model}_{folder}_config.json"
            for name, payload in parsed_payloads(reader.get_record(config)).items():
                _check_payload(f"data/{folder}/", prefix, name, payload, sizes)
    inputs = f"data/sample_inputs/{model}.pt"
    _check_pickle(inputs, reader.get_record(inputs))


def _check_payload(folder: str, prefix: str, name: str, payload: Any, sizes: Mapping[str, int]) -> None:
    """One tensor: its bytes alone, as many as its shape needs, and no pickle."""
    entry = folder + payload.path_name
    if payload.use_pickle or not re.fullmatch(prefix + r"_\d+", payload.path_name) or payload.tensor_meta is None:
        raise NotPlainError(f"{entry} ('{name[:80]}') is no plain tensor but a pickled object")
    shape = [size.value for size in payload.tensor_meta.sizes]
    if not all(isinstance(size, int) for size in shape):
        raise NotPlainError(f"{entry} ('{name[:80]}') has no fixed shape")
    if payload.tensor_meta.device.type != "meta" and math.prod(shape) > sizes[entry] + _SLACK:
        raise NotPlainError(f"{entry} ('{name[:80]}') has {sizes[entry]:,} bytes for the shape {tuple(shape)}")


def _check_pickle(entry: str, data: bytes) -> None:
    """Raise NotPlainError where a pickle is not plain tensors, numbers and text."""
    if not data:
        return
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            within(archive.infolist(), len(data))
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        named = next((re.search(r"GLOBAL (\S+)", line) for line in lines if "GLOBAL" in line), None)
        what = f"an object of '{named[1]}'" if named else "objects whose code would have to run"
        raise NotPlainError(f"{entry} pickles {what}") from None
    except Exception as error:  # torch would try again without the restriction
        raise NotPlainError(f"{entry} cannot be read as plain tensors: {type(error).__name__}") from None
