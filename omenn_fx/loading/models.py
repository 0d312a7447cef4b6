"""Where a model comes from on the command line: a MODEL spec, its weights, its preprocessing, its class names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.export import ExportedProgram

from omenn_fx.capture.torch_export import load_source
from omenn_fx.errors import InputError
from omenn_fx.loading import images
from omenn_fx.loading.images import Preprocess, Steps
from omenn_fx.loading.libraries import SourceError, first_line, import_library
from omenn_fx.loading.weights import load_weights, read_state_dict

__all__ = [
    "FORMS",
    "Loaded",
    "Sizes",
    "SourceError",
    "files_of",
    "import_library",
    "load",
    "load_weights",
    "read_names",
    "read_state_dict",
]

FORMS = "torchvision:NAME, timm:NAME, package.module:factory, file.py:factory or model.pt2"


@dataclass(frozen=True)
class Sizes:
    """What a user says about preprocessing; None: what the model says, else the ImageNet standard."""

    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Loaded:
    """A model ready to explain images.

    Attributes:
        model: in eval mode, or an exported program.
        preprocess: PIL image -> [1, C, H, W].
        classes: a name for every class, or None.
        untrained: its weights are random.
    """

    model: nn.Module | ExportedProgram
    preprocess: Preprocess
    classes: Sequence[str] | None = None
    untrained: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the weights (float32 without any)."""
        values = self.model.state_dict.values() if isinstance(self.model, ExportedProgram) else self.model.parameters()
        return next((v.dtype for v in values if v.is_floating_point()), torch.float32)


def load(
    spec: str,
    weights: Path | None = None,
    pretrained: bool = False,
    sizes: Sizes | None = None,
    trusted: bool = False,
) -> Loaded:
    """Load the model that a spec names.

    Args:
        spec: torchvision:NAME, timm:NAME, package.module:factory, file.py:factory or model.pt2.
        weights: a state_dict: .pth, .pt (read with weights_only=True) or .safetensors.
        pretrained: ask torchvision or timm for its own weights (it downloads them).
        sizes: the user's own preprocessing.
        trusted: load a `.pt2` file that could run code, as you would start a program.

    Raises:
        FileError: a `.pt2` file is damaged, or, unless trusted, holds more than plain tensors and known operators.
        SourceError: no such model, factory, file or library; unreadable or misfitting weights.
        InputError: the preprocessing does not fit.
    """
    sizes = sizes or Sizes()
    if weights and pretrained:
        raise SourceError("--weights and --pretrained both name the weights: give one of them")
    library, _, name = spec.partition(":")
    if library in ("torchvision", "timm") and name:
        model, own, classes = (_torchvision if library == "torchvision" else _timm)(name, pretrained)
        if weights:
            load_weights(model, weights)
        known = bool(weights) or pretrained
        return Loaded(model.eval(), own(sizes), classes if known else None, untrained=not known)
    if pretrained:
        raise SourceError(f"--pretrained is for torchvision:NAME and timm:NAME; '{spec}' brings its own weights")
    if spec.endswith(".pt2"):
        if weights:
            raise SourceError(f"'{spec}' is an exported program and holds its weights: leave --weights out")
        program = _program(Path(spec), trusted)
        return Loaded(program, _standard(sizes, _input_shape(program)))
    model = _factory(spec)
    if weights:
        load_weights(model, weights)
    return Loaded(model.eval(), _standard(sizes))


def files_of(spec: str) -> list[Path]:
    """The files that a spec names or, where it is loaded already, was loaded from: nothing may write over them."""
    place = spec if spec.endswith(".pt2") else spec.rpartition(":")[0]
    if place.endswith((".pt2", ".py")):
        return [Path(place)]
    source = getattr(sys.modules.get(place), "__file__", None)
    return [Path(source)] if source else []


# A library's model: its module, its own preprocessing with the user's changes, its class names
Named = tuple[nn.Module, Callable[[Sizes], Preprocess], Sequence[str] | None]

# The kinds of spec ------------------------------------------------------------------------------------------------


def _torchvision(name: str, pretrained: bool) -> Named:
    models = import_library("torchvision").models
    known = models.list_models(module=models)
    if name not in known:
        raise SourceError(f"torchvision has no classification model '{name}'{_similar(name, known)}")
    best = models.get_model_weights(name).DEFAULT
    model = _made(
        f"torchvision:{name}", pretrained, lambda: models.get_model(name, weights=best if pretrained else None)
    )
    return model, partial(_torchvision_preprocess, best.transforms()), best.meta["categories"]


def _timm(name: str, pretrained: bool) -> Named:
    timm = import_library("timm")
    if not timm.is_model(name):
        raise SourceError(f"timm has no model '{name}'{_similar(name, timm.list_models())}")
    model = _made(f"timm:{name}", pretrained, lambda: timm.create_model(name, pretrained=pretrained))
    config = timm.data.resolve_model_data_config(model)
    return model, partial(_timm_preprocess, config), imagenet_names(model)


def _made(spec: str, pretrained: bool, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # a library's download fails in many ways: urllib, huggingface_hub, a broken file
        if not pretrained:
            raise SourceError(f"'{spec}' cannot be made: {first_line(error)}") from error
        raise SourceError(
            f"the pretrained weights of '{spec}' cannot be had: {first_line(error)}\n--pretrained needs internet, or "
            "the library's own cache; --weights FILE takes a state_dict from a file"
        ) from error


def _factory(spec: str) -> nn.Module:
    place, _, name = spec.rpartition(":")
    if not place or not name:
        kind = Path(spec).suffix
        if kind in (".pth", ".pt", ".th", ".bin", ".safetensors"):
            raise SourceError(
                f"'{spec}' holds weights, no model: name the model first ({FORMS}), then --weights {spec}"
            )
        raise SourceError(f"'{spec}' names no model: give {FORMS}")
    module = _file_module(Path(place)) if place.endswith(".py") else _module(place)
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise SourceError(f"'{place}' has no '{name}'{_similar(name, public)}")
    made = getattr(module, name)
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except (Exception, SystemExit) as error:
            raise SourceError(f"{spec} failed: {type(error).__name__}: {first_line(error)}{_line_of(error)}") from error
    if not isinstance(made, nn.Module):
        raise SourceError(f"{spec} gave a {type(made).__name__}, not a torch.nn.Module")
    return made


def _module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` does
        sys.path.insert(0, folder)
    return _imported(name, lambda: importlib.import_module(name))


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise SourceError(f"there is no file '{path}'")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as `python file.py` does: the file may import its neighbours
        sys.path.insert(0, folder)
    name = f"_omenn_fx_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _imported(str(path), partial(spec.loader.exec_module, module))
    return module


def _imported(what: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (Exception, SystemExit) as error:  # a script may end the process, which would look like a success
        raise SourceError(f"'{what}' cannot be imported: {type(error).__name__}: {error}{_line_of(error)}") from error


def _program(path: Path, trusted: bool) -> ExportedProgram:
    if not path.is_file():
        raise SourceError(f"there is no file '{path}'")
    program = load_source(path, trusted)
    assert isinstance(program, ExportedProgram)
    return program


def _input_shape(program: ExportedProgram) -> tuple[Any, ...]:
    """The shape of the program's first input."""
    name = next(iter(program.graph_signature.user_inputs), None)
    node = next((n for n in program.graph.nodes if n.name == name), None)
    return tuple(getattr(node.meta.get("val"), "shape", ())) if node is not None else ()


# Preprocessing and names ------------------------------------------------------------------------------------------


def _standard(sizes: Sizes, shape: tuple[Any, ...] = ()) -> Preprocess:
    """The ImageNet standard, or what a program's own input shape [N, C, H, W] and the user say."""
    wanted: Any = sizes.size
    if len(shape) == 4:
        if wanted is None and all(isinstance(s, int) for s in shape[2:]):
            wanted = tuple(shape[2:])
        channels = shape[1]
        if isinstance(channels, int) and channels != len(sizes.mean or images.IMAGENET_MEAN):
            raise InputError(
                f"the model reads {channels} channel(s): give --mean and --std with {channels} value(s) each"
            )
    mean, std = sizes.mean or images.IMAGENET_MEAN, sizes.std or images.IMAGENET_STD
    return images.standard(wanted or 224, sizes.resize, mean, std)


def _torchvision_preprocess(own: Any, sizes: Sizes) -> Preprocess:
    """torchvision's own transform of a model's weights, with the user's changes."""
    crop = sizes.size or own.crop_size[0]
    resize = sizes.resize or (own.resize_size[0] if crop == own.crop_size[0] else None)
    filter = Image.Resampling[own.interpolation.name]
    return images.standard(crop, resize, sizes.mean or tuple(own.mean), sizes.std or tuple(own.std), filter)


def _timm_preprocess(config: dict[str, Any], sizes: Sizes) -> Preprocess:
    """timm's own transform of this model, with the user's changes."""
    config = dict(config)
    if sizes.size or sizes.resize:
        side = sizes.size or max(config["input_size"][1:])
        images.check_size(side, side, sizes.resize)
    if sizes.size:
        config["input_size"] = (config["input_size"][0], sizes.size, sizes.size)
    if sizes.resize:
        config["crop_pct"] = config["input_size"][-1] / sizes.resize
    config["mean"], config["std"] = sizes.mean or config["mean"], sizes.std or config["std"]
    transform = import_library("timm").data.create_transform(**config, is_training=False)
    own = transform
    if config.get("crop_mode", "center") == "center":

        def transform(image: Image.Image) -> torch.Tensor:
            return own(images.trimmed(image))

    return Preprocess(transform, tuple(config["mean"]), tuple(config["std"]), _timm_steps(own))


def _timm_steps(transform: Any) -> Steps | None:
    """What a transform of timm does, where that is a resize and a centre crop."""
    steps: list[Any] = list(getattr(transform, "transforms", ()))
    if [type(step).__name__ for step in steps[:2]] != ["Resize", "CenterCrop"]:
        return None
    resize, crop = steps[:2]
    whole = isinstance(resize.size, int)
    box: tuple[int, int] = (resize.size, resize.size) if whole else tuple(resize.size)
    return Steps(tuple(crop.size), box, "cover" if whole else "squash", resize.interpolation.value)


def imagenet_names(model: nn.Module) -> list[str] | None:
    """Class names of a timm model that was trained on ImageNet or a subset of it; None for other models."""
    data = import_library("timm").data
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return None
    info = data.ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]


def read_names(path: Path) -> list[str]:
    """Class names from a text file, one a line. Raises SourceError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the class names in '{path}' cannot be read: {error}") from error


# Messages ---------------------------------------------------------------------------------------------------------


def _similar(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _line_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"\n  at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
