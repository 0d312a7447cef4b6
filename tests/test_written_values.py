"""What a model writes into a tensor, in an ONNX file: broadcast, by a mask, by fewer indices than there are values."""

import pytest
import torch
from torch import nn

import omenn_fx

X = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(0))
ROW, CHOSEN, MASK = torch.arange(6) / 4, torch.tensor([0, 2]), torch.arange(8) < 3


class Writing(nn.Module):
    """What every write leaves, summed: none of them hides another."""

    def __init__(self, writes):
        super().__init__()
        self.writes, self.head = writes, nn.Linear(6, 3)

    def forward(self, x):
        every = [write(torch.relu(x) * (i + 1.5)) for i, write in enumerate(self.writes)]
        return self.head(sum(every).mean((1, 2)))


def put(*where):
    """y[where] = value(y)"""

    def with_value(value):
        def write(y):
            y[where] = value(y) if callable(value) else value
            return y

        return write

    return with_value


ALL = slice(None)
WRITES = {
    "into slices": [
        put(ALL, 0)(0.25),
        put(ALL, slice(0, 2))(ROW),
        put(ALL, 0)(torch.arange(6)),
        put(ALL, slice(1, 3))(lambda y: y[:, :1].clone()),
    ],
    "by indices and masks": [
        put(ALL, CHOSEN)(ROW),
        put(ALL, ALL, MASK)(0.5),
        put(ALL, ALL, MASK[:, None] & (ROW < 1))(0.5),
        put(ALL, MASK[:4])(0.5),
    ],
    "by fewer indices than values": [
        lambda y: y.scatter(2, torch.ones(3, 2, 1, 3, dtype=torch.long), y[:, :2, :1, :3]),
        lambda y: y.scatter_add(2, torch.ones(3, 2, 1, 3, dtype=torch.long), y),
    ],
}


@pytest.mark.parametrize("name", WRITES)
def test_a_file_writes_as_torch_does(name, tmp_path):
    torch.manual_seed(0)
    explainer = omenn_fx.transform(Writing(WRITES[name]).eval(), X)
    proof = explainer.to_onnx(tmp_path / "w.onnx", X).proof
    assert proof.parity < 1e-5
    assert proof.completeness < 1e-5
