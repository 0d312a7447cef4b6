"""The attribution methods that the benchmarks put side by side: ours, Captum's, Zennit's, and a random map.

    attribute = METHODS["captum IntegratedGradients"].make(model)
    maps = attribute(x, target)  # [N, C or 1, H, W]

A method that hooks modules gets a copy of the model with the same outputs in which it finds them (`rewrite.hookable`:
functional, reused and in-place activations as modules of their own). One that would still fall back to the plain
gradient somewhere is `NotApplicable`: it is listed with the reason, and nothing stands in for it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import omenn_fx
from omenn_fx.visualize import FINE, OUTLIERS, Display

from . import rewrite
from .rewrite import NotApplicable

Attribute = Callable[[Tensor, Tensor], Tensor]
# Layers without activation, which Captum passes rightly.
_PLAIN = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
SAMPLES = 16  # of the methods that average over noise
SEED = 0  # of every method that draws random numbers: the same ones at each call

__all__ = ["METHODS", "Attribute", "Method", "NotApplicable"]


@dataclass(frozen=True)
class Method:
    """One attribution method.

    Attributes:
        make: an eval-mode module (images -> logits [N, K]) -> `attribute(x [N, 3, H, W], target int64 [N])`, which
            returns float maps [N, 3, H, W] or [N, 1, H, W], detached. Either call raises NotApplicable(reason).
        source: who made it, and whose implementation this is.
        settings: what was chosen where it has a choice.
        copy: it runs on a rewritten copy of the model (the same outputs).
    """

    make: Callable[[nn.Module], Attribute]
    source: str
    settings: str = ""
    copy: bool = False


# omenn --------------------------------------------------------------------------------------------------------------


def omenn(model: nn.Module, bias: str = "carrier", smooth: float | None = None, rules: str = "omenn") -> Attribute:
    """C = C_w * X + C_b, or C_w * X alone where biases are not carried.

    With `smooth` as a picture shows it: channels summed, outliers cut at the 99th percentile, and smoothed with a
    standard deviation of that part of the image's side; the sum stays.
    """
    explainer = omenn_fx.transform(model, bias=bias, rules=rules)

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        C = explainer(x, target=target).C
        return C if smooth is None else shown(C, Display(percentile=OUTLIERS, smooth=smooth * x.shape[-1]))

    return attribute


def shown(maps: Tensor, display: Display) -> Tensor:
    """Maps [N, 3, H, W] after the post-processing of pictures: [N, 1, H, W]."""
    return torch.from_numpy(np.stack([display(m) for m in maps.sum(1).double().cpu().numpy()])[:, None]).to(maps)


def random_map(model: nn.Module) -> Attribute:
    """Normal noise that knows nothing of the model."""

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        return torch.randn(x[:, :1].shape, generator=torch.Generator().manual_seed(SEED)).to(x)

    return attribute


# Captum -------------------------------------------------------------------------------------------------------------


def captum(model: nn.Module, kind: str, **options: Any) -> Attribute:
    """A method of Captum's that needs the model's gradient or outputs alone."""
    from captum import attr

    return _called(getattr(attr, kind)(model), options)


def smooth_grad(model: nn.Module) -> Attribute:
    """Saliency averaged over noisy copies, the noise 0.15 of the input's range."""
    from captum.attr import NoiseTunnel, Saliency

    tunnel = NoiseTunnel(Saliency(model))

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        deviation = 0.15 * float(x.max() - x.min())
        options = {"nt_samples": SAMPLES, "nt_samples_batch_size": 1, "stdevs": deviation}
        return _called(tunnel, options)(x, target)

    return attribute


def gradient_shap(model: nn.Module) -> Attribute:
    """Expected gradients between zeros (the data set's mean colour) and noisy copies of the image."""
    from captum.attr import GradientShap

    method = GradientShap(model)

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        return _called(method, {"baselines": torch.zeros_like(x[:1]), "n_samples": SAMPLES, "stdevs": 0.09})(x, target)

    return attribute


def occlusion(model: nn.Module) -> Attribute:
    """Windows of a quarter of the side, moved by an eighth, replaced by zeros."""
    from captum.attr import Occlusion

    method = Occlusion(model)

    @torch.no_grad()
    def attribute(x: Tensor, target: Tensor) -> Tensor:
        side, step = x.shape[-1] // 4, x.shape[-1] // 8
        options = {"sliding_window_shapes": (x.shape[1], side, side), "strides": (x.shape[1], step, step)}
        return _called(method, options)(x, target)

    return attribute


def hooked(model: nn.Module, kind: str, rules: tuple[type, ...]) -> Attribute:
    """A method of Captum's that hooks modules; `rules` are the layers that it treats rightly."""
    from captum import attr

    copy = rewrite.hookable(model)
    rewrite.require(copy, kind, rules)
    if kind == "GuidedBackprop" and not any(isinstance(m, nn.ReLU) for m in copy.modules()):
        raise NotApplicable("the model has no ReLU to guide")
    return _same_outputs(model, copy, _called(getattr(attr, kind)(copy)))


def captum_lrp(model: nn.Module) -> Attribute:
    """LRP by Captum's default rules: epsilon in every layer."""
    from captum.attr import LRP
    from captum.attr._utils.custom_modules import Addition_Module

    copy = rewrite.canonical(model, "captum")
    rewrite.require(copy, "Captum's LRP", (*_PLAIN, nn.ReLU, nn.MaxPool2d, nn.Tanh, Addition_Module))
    for node in copy.graph.nodes:
        if len({user.op == "call_module" for user in node.users}) == 2:
            # One of them sends back relevance, the other relevance by activation, and Captum adds the two up.
            raise NotApplicable(f"Captum's LRP cannot pass '{node.name}', which both a layer and a function read")
    return _same_outputs(model, copy, _called(LRP(copy)))


def grad_cam(model: nn.Module) -> Attribute:
    """At the last activation that is a feature map, interpolated bilinearly; Captum's default keeps its sign."""
    from captum.attr import LayerAttribution, LayerGradCam

    copy = rewrite.hookable(model)
    kinds = tuple(set(rewrite.ACTIVATIONS.values()))

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        maps = [m for m, shape in _shapes(copy, x[:1], kinds) if len(shape) == 4 and shape[-1] > 1]
        if not maps:
            raise NotApplicable("no activation is a feature map")
        values = _called(LayerGradCam(copy, maps[-1]))(x, target)
        return LayerAttribution.interpolate(values, tuple(x.shape[2:]), "bilinear")

    return _same_outputs(model, copy, attribute)


def _called(method: Any, options: dict[str, Any] | None = None) -> Attribute:
    def attribute(x: Tensor, target: Tensor) -> Tensor:
        with warnings.catch_warnings(), _seeded():
            warnings.simplefilter("ignore")  # that hooks are set, and removed again
            return method.attribute(x.clone(), target=target, **(options or {})).detach()

    return attribute


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers, torch's and numpy's (GradientShap draws from both), and none taken from the caller's."""
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        try:
            yield
        finally:
            np.random.set_state(state)


def _shapes(model: nn.Module, x: Tensor, kinds: tuple[type, ...]) -> list[tuple[nn.Module, torch.Size]]:
    """The modules of some kinds in the order in which they run, with the shapes of their outputs."""
    found: list[tuple[nn.Module, torch.Size]] = []
    hooks = [
        m.register_forward_hook(lambda m, _, out: found.append((m, out.shape)))
        for m in model.modules()
        if isinstance(m, kinds)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


# Zennit -------------------------------------------------------------------------------------------------------------


def zennit(model: nn.Module, composite: str) -> Attribute:
    """LRP by a composite of Zennit's, relevance 1 at the target.

    EpsilonPlus: z+ in convolutions, epsilon in dense layers; EpsilonPlusFlat: flat in the first layer besides.
    """
    from zennit import composites, types
    from zennit.attribution import Gradient
    from zennit.layer import Sum

    copy = rewrite.canonical(model, "zennit")
    rules = (types.Activation, types.AvgPool, types.Linear, types.MaxPool, Sum)
    rewrite.require(copy, "Zennit", rules)

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad(), Gradient(model=copy, composite=getattr(composites, composite)()) as attributor:
            one_hot = partial(_one_hot, target)
            return attributor(x.clone(), one_hot)[1].detach()

    return _same_outputs(model, copy, attribute)


def _one_hot(target: Tensor, outputs: Tensor) -> Tensor:
    return nn.functional.one_hot(target, outputs.shape[1]).to(outputs)


def _same_outputs(model: nn.Module, copy: nn.Module, attribute: Attribute) -> Attribute:
    """The method, once the rewritten copy has shown that it computes what the model does."""
    shown = False

    def checked(x: Tensor, target: Tensor) -> Tensor:
        nonlocal shown
        if not shown:
            with torch.no_grad():
                torch.testing.assert_close(copy(x[:2]), model(x[:2]), rtol=1e-3, atol=1e-3)
            shown = True
        return attribute(x, target)

    return checked


# The table ----------------------------------------------------------------------------------------------------------

_OMENN = "Wróbel et al. 2024, arXiv 2412.02399; omenn-fx"
_DISPLAY = "cut at percentile 99 and smoothed, the sum kept"
WIDE = 4 * FINE  # of the side: 16 pixels at 224

METHODS: dict[str, Method] = {
    "omenn": Method(omenn, _OMENN, "biases carried by position"),
    "omenn contribution": Method(partial(omenn, bias="contribution"), _OMENN, "biases carried by contribution"),
    "omenn none": Method(partial(omenn, bias="none"), _OMENN, "C_w * X, biases not carried"),
    "omenn display": Method(partial(omenn, smooth=FINE), _OMENN, f"biases carried by position; {_DISPLAY}"),
    "omenn contribution display": Method(
        partial(omenn, bias="contribution", smooth=FINE), _OMENN, f"biases carried by contribution; {_DISPLAY}"
    ),
    "omenn none display": Method(partial(omenn, bias="none", smooth=FINE), _OMENN, f"C_w * X; {_DISPLAY}"),
    "omenn display wide": Method(
        partial(omenn, smooth=WIDE), _OMENN, f"biases carried by position; {_DISPLAY}, four times as wide"
    ),
    "omenn gamma": Method(
        partial(omenn, rules="omenn_gamma"),
        'omenn-fx, rules="omenn_gamma"',
        "flat first, gamma infinite up to 0.3 of the depth, 0.1 in later convolutions, all else exact",
    ),
    "captum Saliency": Method(partial(captum, kind="Saliency"), "Simonyan et al. 2014; Captum", "absolute value"),
    "captum InputXGradient": Method(partial(captum, kind="InputXGradient"), "Shrikumar et al. 2016; Captum"),
    "captum IntegratedGradients": Method(
        partial(captum, kind="IntegratedGradients", n_steps=50, internal_batch_size=32),
        "Sundararajan et al. 2017; Captum",
        "50 steps from zeros",
    ),
    "captum SmoothGrad": Method(
        smooth_grad,
        "Smilkov et al. 2017; Captum's NoiseTunnel over Saliency",
        f"{SAMPLES} samples, noise 0.15 of the range",
    ),
    "captum DeepLift": Method(
        partial(hooked, kind="DeepLift", rules=(*_PLAIN, nn.ReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.MaxPool2d)),
        "Shrikumar et al. 2017; Captum",
        "baseline zeros",
        copy=True,
    ),
    "captum GradientShap": Method(
        gradient_shap, "Lundberg and Lee 2017; Captum", f"{SAMPLES} samples, baseline zeros, noise 0.09"
    ),
    "captum Occlusion": Method(
        occlusion, "Zeiler and Fergus 2014; Captum", "window a quarter of the side, step an eighth, zeros"
    ),
    "captum GuidedBackprop": Method(
        partial(hooked, kind="GuidedBackprop", rules=(*_PLAIN, nn.ReLU, nn.MaxPool2d)),
        "Springenberg et al. 2015; Captum",
        copy=True,
    ),
    "captum LayerGradCam": Method(
        grad_cam, "Selvaraju et al. 2017; Captum", "last activation that is a feature map; signed", copy=True
    ),
    "captum LRP": Method(
        captum_lrp,
        "Bach et al. 2015; Captum",
        "epsilon rule, batch norm folded, additions by its Addition_Module",
        copy=True,
    ),
    "zennit EpsilonPlusFlat": Method(
        partial(zennit, composite="EpsilonPlusFlat"),
        "Kohlbrenner et al. 2020; Zennit",
        "batch norm folded, additions by its Norm rule",
        copy=True,
    ),
    "random": Method(random_map, "noise, the benchmark's own sanity check"),
}
