"""Small networks of the kinds that people write themselves: what no library's model covers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence


class LastStep(nn.Module):
    """A recurrent network and a linear layer on its last step."""

    def __init__(self, rnn: nn.RNNBase):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class First(nn.Module):
    """The first of a module's results."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class Cell(nn.Module):
    """A recurrent cell in a Python loop over time."""

    def __init__(self, cell: nn.RNNCellBase):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Packed(nn.Module):
    """An LSTM over sequences of unequal length; torch.export cannot capture it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
        return self.rnn(packed)[1][0][-1]


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence to itself."""

    def __init__(self, need_weights: bool):
        super().__init__()
        self.attention, self.need_weights = nn.MultiheadAttention(16, 4, batch_first=True), need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class Seq2Seq(nn.Module):
    """nn.Transformer, its decoder reading the first steps; `mask` is none, causal, or causal and said to be so."""

    def __init__(self, mask: str):
        super().__init__()
        self.transformer, self.mask = nn.Transformer(16, 4, 2, 2, 32, batch_first=True), mask

    def forward(self, x: Tensor) -> Tensor:
        if self.mask == "none":
            return self.transformer(x, x[:, :3])
        causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype)
        said = True if self.mask == "flag" else None
        return self.transformer(x, x[:, :3], tgt_mask=causal, tgt_is_causal=said)


class UNet(nn.Module):
    """Two levels with skip connections; `up` is a transposed convolution or bilinear."""

    def __init__(self, up: str, width: int = 8):
        super().__init__()
        c = width
        self.down1, self.down2, self.middle = self.block(3, c), self.block(c, 2 * c), self.block(2 * c, 4 * c)
        self.up2, self.join2 = self.upsample(up, 4 * c, 2 * c), self.block(4 * c, 2 * c)
        self.up1, self.join1 = self.upsample(up, 2 * c, c), self.block(2 * c, c)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(c, 2, 1)

    @staticmethod
    def block(i: int, o: int) -> nn.Sequential:
        convs = ((i, o), (o, o))
        return nn.Sequential(
            *(m for a, b in convs for m in (nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)))
        )

    @staticmethod
    def upsample(kind: str, i: int, o: int) -> nn.Module:
        if kind == "transpose":
            return nn.ConvTranspose2d(i, o, 2, 2)
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(i, o, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        y = self.up2(self.middle(self.pool(b)))
        y = self.up1(self.join2(torch.cat([y, b], 1)))
        return self.head(self.join1(torch.cat([y, a], 1)))


class SpatialTransformer(nn.Module):
    """Samples its image at positions that depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.conv = nn.Linear(3 * 16 * 16, 6), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(x.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        return self.conv(F.grid_sample(x, grid, align_corners=False)).mean((2, 3))


class VAE(nn.Module):
    """Draws its latent in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.log_var = nn.Linear(20, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.decode = nn.Linear(4, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encode(x))
        mean = self.mean(h)
        z = mean + torch.exp(0.5 * self.log_var(h)) * torch.randn_like(mean)
        return torch.sigmoid(self.decode(z))


class TCN(nn.Module):
    """Causal dilated convolutions with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = weight_norm(nn.Conv1d(4, 8, 3)), weight_norm(nn.Conv1d(8, 8, 3, dilation=2))
        self.skip, self.head = nn.Conv1d(4, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(F.pad(x, (2, 0))))
        y = F.relu(self.second(F.pad(y, (4, 0))))
        return self.head((y + self.skip(x))[:, :, -1])


class ConvLSTM(nn.Module):
    """An LSTM of feature maps, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(3 + 4, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 4, *x.shape[-2:])
        for frame in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([frame, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h.amax((2, 3))


class MetricNet(nn.Module):
    """Cosine similarity and distance to prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 16), nn.PReLU(), nn.Linear(16, 4))
        self.register_buffer("prototypes", torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        z = F.normalize(self.embed(x), dim=-1)
        similarity = F.cosine_similarity(z.unsqueeze(1), self.prototypes.unsqueeze(0), dim=-1)
        return similarity - torch.cdist(z, self.prototypes)


class PointNet(nn.Module):
    """A set of points: shared layers, the maximum over the set."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.max(self.shared(x), 2, keepdim=True)[0].view(-1, 32)
        return F.log_softmax(self.head(pooled), -1)


class DeepSets(nn.Module):
    """A set: shared layer, sum."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.elu(self.shared(x)).sum(1))


class DeepFM(nn.Module):
    """A factorisation machine (a sum of all products of two features) beside a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.factors, self.linear = nn.Parameter(torch.randn(10, 4)), nn.Linear(10, 1)
        self.deep = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        v = x.unsqueeze(-1) * self.factors
        pairs = 0.5 * (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.linear(x) + pairs + self.deep(v.flatten(1)))
