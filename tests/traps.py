"""Hand-made traps: small models that break, or should not break, what is said of them without data.

Each is a forward and what `check` must say of it: supported or not, and a text of the verdict. `test_traps` asserts
that `transform` and `validate` agree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("omenn_traps::unknown", mutates_args=())
def unknown(x: Tensor) -> Tensor:
    return torch.special.i0(x)


@unknown.register_fake
def _(x):
    return torch.empty_like(x)


class Cube(torch.autograd.Function):
    """Traced through its forward: the backward is never seen."""

    @staticmethod
    def forward(ctx, x):
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        raise AssertionError("no explanation calls a backward")


class Net(nn.Module):
    """Some layers of 4 -> 4 and 4 -> 3 for the traps, and their forward."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.conv, self.norm, self.batch = nn.Conv1d(4, 4, 3, padding=1), nn.LayerNorm(4), nn.BatchNorm1d(4)
        self.embed, self.act, self.drop = nn.Embedding(9, 4), nn.ReLU(), nn.Dropout(0.5)
        self.inplace = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.register_buffer("count", torch.zeros(4))
        self.list = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.dict = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Tanh()})

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


X = (3, 4)


@dataclass
class Trap:
    """A model, its inputs, and what is to be said of it."""

    name: str
    forward: Callable[..., Any] | nn.Module
    says: str = ""  # part of a problem or warning; "": nothing to say
    supported: bool = True
    code: str = ""
    inputs: Callable[[], tuple[Any, ...]] = lambda: (torch.randn(X),)
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    verdict: tuple[str, str] = ("", "")  # (a part of an operator's name, its verdict)

    def build(self) -> nn.Module:
        """The model, in eval mode unless the trap is about that; the same weights every time."""
        torch.manual_seed(0)
        model = deepcopy(self.forward) if isinstance(self.forward, nn.Module) else Net(self.forward)
        return self.prepare(model.double().eval())

    def make(self) -> tuple[Any, ...]:
        """The inputs, in float64."""
        torch.manual_seed(1)
        return torch.utils._pytree.tree_map(
            lambda v: v.double() if isinstance(v, Tensor) and v.dtype == torch.float32 else v, self.inputs()
        )


def no(code: str, says: str, **traits: Any) -> dict[str, Any]:
    return {"supported": False, "code": code, "says": says, **traits}


def warns(code: str, says: str, **traits: Any) -> dict[str, Any]:
    return {"code": code, "says": says, **traits}


def branch(m, x):
    if x.sum() > 0:
        return m.head(x)
    return -m.head(x)


def item(m, x):
    return m.head(x) * x.abs().max().item()


def numpy_detour(m, x):
    return m.head(torch.from_numpy(x.detach().numpy() * 2))


def loop_on_data(m, x):
    while x.norm() > 1:
        x = x / 2
    return m.head(x)


def write_through_view(m, x):
    y = m.one(x)
    y[:, :2].mul_(3)
    return m.head(y)


def write_masked(m, x):
    y = m.one(x).clone()
    y[y < 0] = 0.25
    return m.head(y)


def write_row(m, x):
    y = torch.zeros_like(x)
    y[:, 1:3] = x[:, 1:3] * 2
    y[:, 0] = 1
    return m.head(y)


def writes_its_input(m, x):
    x = x.clone()
    x += 1
    x.clamp_(min=0)
    return m.head(x)


def write_seen_by_an_earlier_view(m, x):
    y = m.one(x)
    first = y[:, 0]
    y.add_(1)
    return m.head(y) + first[:, None]


def mutates_parameter(m, x):
    m.scale.data.div_(2)
    return m.head(x * m.scale)


def writes_parameter(m, x):
    with torch.no_grad():
        m.scale.div_(2)
    return m.head(x * m.scale)


def updates_buffer(m, x):
    m.count.add_(1)
    return m.head(x + m.count)


def detaches(m, x):
    return m.head(m.one(x).detach())


def no_grad_inside(m, x):
    with torch.no_grad():
        y = m.one(x)
    return m.head(y)


def dropout_left_on(m, x):
    return m.head(F.dropout(m.one(x)))


def noise(m, x):
    return m.head(m.one(x) + torch.randn_like(x))


def bernoulli(m, x):
    return m.head(x * torch.bernoulli(torch.sigmoid(m.one(x))))


def top_two_routing(m, x):
    weights, chosen = torch.softmax(m.one(x), -1).topk(2, -1)
    experts = torch.stack([layer(x) for layer in m.list], 1)
    picked = experts.gather(1, (chosen % 3)[..., None].expand(-1, -1, 4))
    return m.head((picked * weights[..., None]).sum(1))


def sorted_values(m, x):
    return m.head(m.one(x).sort(-1).values)


def nan_masks(m, x):
    scores = m.one(x).masked_fill(x[:, :1] > 0, -torch.inf)
    return m.head(torch.nan_to_num(torch.softmax(scores, -1)) * x)


def everything_hidden(m, x):
    q = m.one(x)[:, None, None]
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=x.device)
    return m.head(F.scaled_dot_product_attention(q, q, q, mask)[:, 0, 0] + x)


def dict_output(m, x):
    return OrderedDict(aux=m.one(x), logits=m.head(x))


def integer_or_float(m, x):
    return {"classes": m.head(x).argmax(-1), "scores": m.head(x)}


def reused(m, x):
    return m.head(m.act(m.one(m.act(m.one(x)))))


def tied(m, x):
    return m.head(x @ m.one.weight @ m.one.weight.T)


def two_inputs_multiplied(m, x, y):
    return m.head(m.one(x) * m.two(y))


def attention_by_hand(m, x):
    y = x[:, :, None].expand(-1, -1, 4)
    q, k, v = m.one(y), m.two(y), m.list[0](y)
    return m.head((torch.softmax(q @ k.mT, -1) @ v).mean(1))


def list_of_inputs(m, xs):
    return m.head(xs[0] + 2 * xs[1])


def dict_of_inputs(m, xs):
    return m.head(xs["a"] * torch.tanh(xs["b"]))


seen: list[int] = []


def side_effect(m, x):
    seen.append(1)
    print(end="")
    return m.head(x)


def complex_inside(m, x):
    return m.head(torch.fft.fft(m.one(x), norm="ortho").real)


def checkpointed(m, x):
    from torch.utils.checkpoint import checkpoint

    return m.head(checkpoint(m.one, x, use_reentrant=False))


def conditional_op(m, x):
    return m.head(torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v * 3, (x,)))


def normalised(m, x):
    return m.head((x - 0.5) / m.scale)


class Nested(nn.Module):
    """A traced GraphModule inside of a module."""

    def __init__(self):
        super().__init__()
        self.inner = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.inner(x))


class Quantised(nn.Module):
    """int8 weights with a scale for each row, made floating in forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (3, 4), dtype=torch.int8))
        self.scale = nn.Parameter(torch.rand(3, 1) / 127)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale)


class HalfWeights(nn.Module):
    """Weights kept in float16 and widened in forward, in float32 or float64 as the input is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(3, 4).half()

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


def images(*shape):
    return lambda: (torch.randn(*shape),)


TRAPS = [
    # Operators
    Trap("custom op without a rule", lambda m, x: m.head(torch.ops.omenn_traps.unknown(x)),
         **no("OMENN006", '@omenn_fx.rule("omenn_traps.unknown.default"')),
    Trap("custom autograd function", lambda m, x: m.head(Cube.apply(x)), verdict=("mul", "policy")),
    Trap("operator without a form", lambda m, x: m.head(torch.linalg.svdvals(x[:, :, None] * x[:, None])),
         **no("OMENN006", "or hold it fixed: roles=")),
    Trap("two operators without a rule", lambda m, x: m.head(torch.special.i0(x) + torch.lgamma(x.abs() + 1)),
         **no("OMENN006", "lgamma")),
    Trap("unsupported operator on a constant", lambda m, x: m.head(x) * torch.special.i0(m.scale).sum()),
    Trap("unsupported operator on a coefficient",
         lambda m, x: m.head(x * torch.sigmoid(torch.special.i0(x).sum(1, True))),
         verdict=("i0", "coefficient")),
    Trap("held fixed by the user", lambda m, x: m.head(m.two(x) * torch.special.i0(x)),
         options={"roles": {"*i0*": "coefficient"}}, verdict=("i0", "coefficient")),
    Trap("an override that matches nothing", lambda m, x: m.head(x), options={"roles": {"nothing*": "content"}},
         **no("OMENN003", "no node or module path matches 'nothing*'")),
    # Control flow and shapes that depend on data
    Trap("data-dependent branch", branch, **no("OMENN001", "torch.where, a mask, or torch.cond")),
    Trap("data-dependent loop", loop_on_data, **no("OMENN001", "the path through forward depends on values")),
    Trap("item", item, verdict=("item", "coefficient"), **warns("OMENN108", "aten.max.default")),
    Trap("item added", lambda m, x: m.head(x) + x.max().item(), verdict=("add", "opaque"),
         **warns("OMENN108", "aten.max.default")),
    Trap("numpy in forward", numpy_detour, **no("OMENN001", "torch.export cannot capture the model")),
    Trap("boolean indexing", lambda m, x: m.head(x[x[:, 0] > 0]),
         **no("OMENN004", "depends on data, not on the batch")),
    Trap("unique values", lambda m, x: m.head(x.unique()[:4]), **no("OMENN006", "aten._unique2.default")),
    Trap("a branch by shape", lambda m, x: m.head(x) if x.shape[1] == 4 else x),
    Trap("a condition in the graph", conditional_op, **no("OMENN006", "choose with torch.where")),
    # Writing in place
    Trap("write through a view", write_through_view),
    Trap("write by a mask", write_masked),
    Trap("write into rows", write_row),
    Trap("write to a copy of the input", writes_its_input),
    Trap("write seen by an earlier view", write_seen_by_an_earlier_view),
    Trap("functional in place", lambda m, x: m.head(F.relu_(m.one(x)))),
    Trap("module in place", lambda m, x: m.head(m.inplace(m.one(x)))),
    Trap("parameter changed through .data", mutates_parameter, **no("OMENN001", "goes around it (.data")),
    Trap("parameter changed by forward", writes_parameter, **warns("OMENN103", "forward writes to 'scale'")),
    Trap("buffer updated in eval", updates_buffer, **warns("OMENN103", "forward writes to 'count'")),
    # What gradients would miss
    Trap("detach", detaches, **warns("OMENN104", "what flows through it is explained as well")),
    Trap("no_grad inside", no_grad_inside),
    Trap("checkpoint", checkpointed),
    Trap("argmax as the output", lambda m, x: m.head(x).argmax(-1),
         **no("OMENN004", "explain the logits it comes from")),
    Trap("argmax turned into a float", lambda m, x: m.head(x).argmax(-1, keepdim=True).double(),
         **no("OMENN005", "content ends at aten.argmax.default")),
    Trap("sign as the output", lambda m, x: torch.sign(m.head(x)),
         **no("OMENN005", "content ends at aten.sign.default")),
    Trap("output of a constant", lambda m, x: m.head(m.scale).expand(x.shape[0], 3) + 0,
         **no("OMENN005", "does not depend on args_0 at all")),
    Trap("part of the output by rounding", lambda m, x: m.head(x) + torch.round(m.head(m.one(x))),
         verdict=("add", "opaque")),
    Trap("integer output beside a float one", integer_or_float),
    Trap("complex output", lambda m, x: torch.fft.fft(m.head(x)), **no("OMENN004", "torch.complex128")),
    Trap("complex inside", complex_inside, verdict=("_fft_r2c", "affine")),
    Trap("complex rule that is missing", lambda m, x: m.head(torch.tanh(torch.fft.fft(x)).real),
         **no("OMENN006", "complex")),
    # Randomness
    Trap("dropout left on", dropout_left_on, **no("OMENN006", "F.dropout(x, p, self.training)")),
    Trap("dropout in eval", lambda m, x: m.head(m.drop(m.one(x)))),
    Trap("train mode", lambda m, x: m.head(m.drop(x)), prepare=lambda m: m.train(), **no("OMENN002", "train mode")),
    Trap("one layer in train mode", lambda m, x: m.head(m.batch(x)), prepare=lambda m: (m.batch.train(), m)[1],
         **no("OMENN002", "batch")),
    Trap("noise added", noise, **warns("OMENN102", "aten.randn_like.default draws new numbers at every call")),
    Trap("a random gate", bernoulli, **warns("OMENN102", "draws new numbers")),
    # Routing, products, gates
    Trap("top-2 routing", top_two_routing, verdict=("mul", "policy")),
    Trap("sorted values", sorted_values, verdict=("sort", "dynamic")),
    Trap("two inputs multiplied", two_inputs_multiplied, inputs=lambda: (torch.randn(X), torch.randn(X)),
         verdict=("mul", "policy")),
    Trap("division by content", lambda m, x: m.head(m.one(x) / (m.two(x).abs() + 1)), verdict=("div", "dynamic")),
    Trap("squared input", lambda m, x: m.head(x * x), verdict=("mul", "dynamic")),
    Trap("softmax as the output", lambda m, x: torch.softmax(m.head(x), -1), **warns("OMENN101", "output='linear'")),
    Trap("sigmoid as the output", lambda m, x: torch.sigmoid(m.head(x)), **warns("OMENN101", "explain the logits")),
    Trap("log softmax in a view", lambda m, x: torch.log_softmax(m.head(x), -1)[:, :2],
         **warns("OMENN101", "output='linear'")),
    Trap("the logits below a softmax", lambda m, x: torch.softmax(m.head(x), -1), options={"output": "linear"}),
    Trap("softmax as content", lambda m, x: m.head(torch.softmax(m.one(x), -1)), verdict=("softmax", "dynamic")),
    Trap("attention by hand", attention_by_hand, verdict=("matmul", "policy")),
    Trap("attention with everything hidden", everything_hidden),
    Trap("a mask that makes NaN", nan_masks, verdict=("mul", "policy")),
    Trap("samples meet", lambda m, x: m.head(x - x.mean(0)), **no("OMENN007", "batched=False")),
    Trap("samples meet, as one sample", lambda m, x: m.head(x - x.mean(0)), options={"batched": False}),
    # Structure
    Trap("dict output", dict_output),
    Trap("tuple output", lambda m, x: (m.head(x), m.one(x)), options={"output": 1}),
    Trap("no such output", lambda m, x: (m.head(x), m.one(x)), options={"output": "logits"},
         **no("OMENN004", "output='logits' is not part of what the model returns")),
    Trap("output without a batch", lambda m, x: m.head(x).sum(), **no("OMENN004", "has no batch dimension")),
    Trap("None beside a tensor", lambda m, x: (m.head(x), None)),
    Trap("reused module", reused),
    Trap("tied weights", tied),
    Trap("module list and dict", lambda m, x: m.head(m.dict["b"](m.dict["a"](m.list[2](m.list[0](x)))))),
    Trap("functional activation", lambda m, x: m.head(torch.tanh(F.gelu(m.one(x))))),
    Trap("list of inputs", list_of_inputs, inputs=lambda: ([torch.randn(X), torch.randn(X)],)),
    Trap("dict of inputs", dict_of_inputs, inputs=lambda: ({"a": torch.randn(X), "b": torch.randn(X)},)),
    Trap("optional input left out", lambda m, x, y=None: m.head(x if y is None else x + y)),
    Trap("an input that only gates", lambda m, x, y: m.head(m.one(x) * torch.sigmoid(m.two(y))),
         inputs=lambda: (torch.randn(X), torch.randn(X)), **warns("OMENN107", "C of 'args_1' is 0 everywhere")),
    Trap("a gate of the batch", lambda m, x: m.head(m.one(x) * torch.sigmoid(m.two(x)).mean(0)),
         **warns("OMENN108", "of the row among these others")),
    Trap("an unused input", lambda m, x, y: m.head(x), inputs=lambda: (torch.randn(X), torch.randn(X))),
    Trap("integer ids", lambda m, ids: m.head(m.embed(ids).mean(1)), inputs=lambda: (torch.randint(0, 9, (3, 5)),)),
    Trap("one-hot codes of ids", lambda m, ids: m.head(F.one_hot(ids, 4).double()),
         inputs=lambda: (torch.randint(0, 4, (3,)),)),
    Trap("a bag of embeddings", lambda m, ids: m.head(F.embedding_bag(ids, m.embed.weight)),
         inputs=lambda: (torch.randint(0, 9, (3, 5)),)),
    Trap("integers without an embedding", lambda m, ids: m.head((ids[:, None].expand(-1, 4) == 2).double()),
         inputs=lambda: (torch.randint(0, 4, (3,)),), **no("OMENN005", "no floating-point input and no embedding")),
    Trap("nested graph module", Nested()),
    Trap("a Python side effect", side_effect),
    Trap("an argument too many", lambda m, x: m.head(x), inputs=lambda: (torch.randn(X), torch.randn(X)),
         **no("OMENN00", "What to change")),
    Trap("wrong dtype", lambda m, x: m.head(x), inputs=lambda: (torch.randn(X).half(),),
         **no("OMENN003", "convert the input")),
    Trap("wrong size", lambda m, x: m.head(x), inputs=lambda: (torch.randn(3, 5),), **no("OMENN001", "shapes")),
    # Edges
    Trap("empty batch", lambda m, x: m.head(m.act(x)), inputs=images(0, 4)),
    Trap("batch of one", lambda m, x: m.head(m.act(x)), inputs=images(1, 4)),
    Trap("a dimension of size zero", lambda m, x: m.head(torch.cat([x, x.new_zeros(x.shape[0], 0)], 1))),
    Trap("unbatched vector", lambda m, x: m.head(x), inputs=images(4), options={"batched": False}),
    Trap("float16 weights", HalfWeights()),
    Trap("quantised weights", Quantised()),
    Trap("normalisation inside", normalised, **warns("OMENN105", "C is that of the raw 'args_0'")),
    Trap("batch norm on the input", lambda m, x: m.head(m.batch(x)), **warns("OMENN105", "aten.batch_norm.default")),
    Trap(
        "a composite and a layer norm",
        nn.Sequential(nn.LayerNorm(X[1:]), nn.Flatten(), nn.Linear(torch.Size(X[1:]).numel(), 3)),
        options={"rules": "epsilon_plus"},
        **warns("OMENN106", "'epsilon_plus' has no rule for aten.layer_norm.default"),
    ),
    Trap("a buffer divides the input", lambda m, x: m.head(x / (m.count + 1))),
    Trap("identity", nn.Identity(), inputs=images(3, 4)),
    Trap("conv over an image", nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)),
         inputs=images(2, 2, 5, 5)),
]  # fmt: skip
