"""Plain torch: recurrent networks, transformers, convolutions in 1-d to 3-d, generators, sets, video."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from . import Example, census, nets
from .common import torchvision

VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t")


def build(name: str) -> Example:
    """A network at its input size in names.json; names ending in fast or nofast set the encoder's fast path."""
    torch.backends.mha.set_fastpath_enabled(not name.endswith("_nofast"))
    (shape,) = census()[f"plain/{name}"].inputs
    if name in VIDEO:
        model = torchvision().models.get_model(name, weights=None)
    else:
        model = NETWORKS[name.removesuffix("_nofast").removesuffix("_fast")]()
    return model, (torch.randn(shape),), {}


def encoder(activation: str = "relu", norm_first: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation=activation, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def rnn(kind: type[nn.RNNBase], layers: int = 1, **options: object) -> nn.Module:
    return nets.LastStep(kind(8, 16, layers, batch_first=True, **options))


def conv1d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(4, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(8, 8, 3), nn.ReLU(), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


def raw_audio() -> nn.Module:
    """M5: a wide first window on the waveform."""
    return nn.Sequential(
        *(nn.Conv1d(1, 8, 80, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(4)),
        *(nn.Conv1d(8, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4)),
        *(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 5), nn.LogSoftmax(1)),
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2)),
        *(nn.Conv3d(8, 8, 3, padding=1), nn.LeakyReLU(), nn.AvgPool3d(2)),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


def c3d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(True), nn.MaxPool3d((1, 2, 2))),
        *(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(True), nn.AdaptiveMaxPool3d(2), nn.Flatten(), nn.Linear(64, 3)),
    )


def dcgan_generator() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (16, 1, 1)), nn.ConvTranspose2d(16, 8, 4, 1, 0), nn.BatchNorm2d(8), nn.ReLU(True)),
        *(nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()),
    )


def dcgan_discriminator() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Conv2d(8, 16, 4, 2, 1)),
        *(nn.InstanceNorm2d(16, affine=True), nn.LeakyReLU(0.2, True), nn.Conv2d(16, 1, 4), nn.Sigmoid()),
    )


def conv_autoencoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()),
        *(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(8, 4, 3, 1, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 1, 3, 2, 1, 1), nn.Sigmoid()),
    )


def padding_modes() -> nn.Module:
    return nn.Sequential(
        *(nn.ReplicationPad2d(1), nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular")),
        *(nn.ZeroPad2d(1), nn.Hardswish(), nn.Conv2d(4, 4, 3, padding="same"), nn.LPPool2d(2, 2)),
        *(nn.Flatten(), nn.Linear(4 * 6 * 6, 3)),
    )


def autoencoder() -> nn.Module:
    widths = (20, 8, 3, 8, 20)
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def mlp_selu_bn() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(16, 16), nn.Softplus()),
        *(nn.Linear(16, 3), nn.Softmax(-1)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: rnn(nn.LSTM),
    "LSTM_bi2": lambda: rnn(nn.LSTM, 2, bidirectional=True),
    "LSTM_proj": lambda: nets.First(nn.LSTM(8, 16, proj_size=4, batch_first=True)),
    "LSTM_packed": nets.Packed,
    "GRU": lambda: rnn(nn.GRU),
    "GRU_bi2": lambda: rnn(nn.GRU, 2, bidirectional=True),
    "RNN_tanh": lambda: rnn(nn.RNN),
    "RNN_relu": lambda: rnn(nn.RNN, nonlinearity="relu"),
    "LSTMCell": lambda: nets.Cell(nn.LSTMCell(8, 16)),
    "GRUCell": lambda: nets.Cell(nn.GRUCell(8, 16)),
    "RNNCell": lambda: nets.Cell(nn.RNNCell(8, 16)),
    "MHA_weights": lambda: nets.SelfAttention(True),
    "MHA_noweights": lambda: nets.SelfAttention(False),
    "TransformerEncoder": encoder,
    "TransformerEncoder_gelu_prenorm": lambda: encoder("gelu", norm_first=True),
    "Transformer": lambda: nets.Seq2Seq("causal"),
    "Transformer_nomask": lambda: nets.Seq2Seq("none"),
    "Transformer_flag": lambda: nets.Seq2Seq("flag"),
    "MLP": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)),
    "MLP_selu_bn": mlp_selu_bn,
    "Conv1dNet": conv1d,
    "M5_raw_audio": raw_audio,
    "Conv3dNet": conv3d,
    "C3D": c3d,
    "UNet_transpose": lambda: nets.UNet("transpose"),
    "UNet_bilinear": lambda: nets.UNet("bilinear"),
    "DCGAN_gen": dcgan_generator,
    "DCGAN_disc": dcgan_discriminator,
    "deconv1d3d": lambda: nn.Sequential(
        nn.ConvTranspose1d(4, 4, 4, 2, 1), nn.GELU(), nn.Unflatten(2, (4, 4, 4)), nn.ConvTranspose3d(4, 2, 4, 2, 1)
    ),
    "autoencoder": autoencoder,
    "conv_autoencoder": conv_autoencoder,
    "SRnet_pixelshuffle": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.PReLU(16), nn.ReflectionPad2d(1), nn.Conv2d(16, 12, 3), nn.PixelShuffle(2)
    ),
    "padmodes": padding_modes,
    "STN": nets.SpatialTransformer,
    "VAE": nets.VAE,
    "TCN_weightnorm": nets.TCN,
    "ConvLSTM": nets.ConvLSTM,
    "metric_net": nets.MetricNet,
    "PointNet": nets.PointNet,
    "DeepSets": nets.DeepSets,
    "DeepFM": nets.DeepFM,
    "spectral_norm_net": lambda: nn.Sequential(spectral_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 1)),
}
