"""Who runs: the model's own forward and omenn-fx in each runtime, and the peers in torch.

A contestant is made for one model, batch and number of threads, and is then called again and again. One that cannot run
a model raises `NotApplicable(reason)`, and nothing stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from judge.methods import METHODS, Method, NotApplicable, zennit
from torch import Tensor

import omenn_fx
from omenn_fx.algebra.ruleset import rule_sets

from .models import Subject

TARGETS = 10  # at once: one forward, as many adjoints
Call = Callable[[], Any]


@dataclass
class Race:
    """One model, at one batch size, with so many threads. `target` [N] are the classes that the model predicts."""

    subject: Subject
    batch: int
    threads: int

    @cached_property
    def x(self) -> Tensor:
        rows = (self.batch - 1, *self.subject.x.shape[1:])
        return torch.cat([self.subject.x, torch.randn(rows).to(self.device)])

    @cached_property
    @torch.no_grad()
    def target(self) -> Tensor:
        return self.subject.model(self.x).argmax(1)

    @property
    def device(self) -> str:
        return self.subject.x.device.type


@dataclass
class Ready:
    """A contestant that can run, and what is known about it beside its times."""

    run: Call
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """How to make one.

    Attributes:
        make: prepares everything; what it compiles it has also called once.
        runtime: its times are compared with the forward of this one.
        slow: it takes many forwards, and a turn in some rounds only.
        single: at batch 1 only.
        rules: it explains by this rule set, in a race of rule sets; "" in all other races.
    """

    make: Callable[[Race], Ready]
    runtime: str = "torch"
    slow: bool = False
    single: bool = False
    rules: str = ""


# torch --------------------------------------------------------------------------------------------------------------


def forward(race: Race) -> Ready:
    return Ready(lambda: _without_gradients(race.subject.model, race.x))


def explainer(race: Race) -> Ready:
    explain, x, target = race.subject.explainer, race.x, race.target
    error = float(explain(x, target=target).completeness_error.max())
    return Ready(lambda: explain(x, target=target).C, {"completeness": error})


def several_targets(race: Race) -> Ready:
    targets = torch.arange(TARGETS, device=race.device).expand(race.batch, -1)
    return Ready(lambda: race.subject.explainer(race.x, target=targets).C)


def saved_explainer(race: Race) -> Ready:
    """The `.pt2` file, loaded again: optimised on its way out, and run by torch as it is."""
    saved = omenn_fx.load(_saved(race))
    return _called_once(lambda: saved(race.x, target=race.target).C)


def saved_several(race: Race) -> Ready:
    saved, targets = omenn_fx.load(_saved(race)), torch.arange(TARGETS).expand(race.batch, -1)
    return _called_once(lambda: saved(race.x, target=targets).C)


def _saved(race: Race) -> Path:
    path = race.subject.folder / "explainer.pt2"
    if not path.exists():
        race.subject.explainer.save(path, race.subject.x)
    return path


def compiled_forward(race: Race) -> Ready:
    model = _compiled(race, race.subject.model)
    return _called_once(lambda: _without_gradients(model, race.x))


def compiled_explainer(race: Race) -> Ready:
    fixed = omenn_fx.transform(race.subject.model, race.x, dynamic_batch=False)
    explain = _compiled(race, fixed)
    return _called_once(lambda: explain(race.x, target=race.target).C)


def ahead_of_time(race: Race) -> Ready:
    """The .pt2 file compiled by AOTInductor: no Python code of ours or of the model's is left."""
    package = race.subject.folder / "package.pt2"
    program = omenn_fx.load(_saved(race)).program
    torch._inductor.config.cpp.threads = race.threads
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    run = torch._inductor.aoti_load_package(str(package))
    classes = _without_gradients(race.subject.model, race.x).shape[1]
    cotangent = torch.nn.functional.one_hot(race.target, classes).to(race.x)
    return _called_once(lambda: run(race.x, cotangent))


def _without_gradients(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def _compiled(race: Race, model: torch.nn.Module) -> Any:
    torch._inductor.config.cpp.threads = race.threads
    return torch.compile(model, dynamic=False)


def _called_once(run: Call) -> Ready:
    run()
    return Ready(run)


# onnxruntime --------------------------------------------------------------------------------------------------------


def deployed_forward(race: Race) -> Ready:
    provider = _provider(race)
    return Ready(_session(race, race.subject.forward_file, provider, (race.x.cpu().numpy(),)))


def deployed_explainer(race: Race, dtype: str = "float32", rules: str = "omenn") -> Ready:
    provider = _provider(race)
    written = race.subject.explainer_file(dtype, rules)
    assert written.proof is not None
    facts = {"completeness": written.proof.completeness, "proof": str(written.proof), "bytes": written.size}
    x = race.x.to("cpu", getattr(torch, dtype)).numpy()
    return Ready(_session(race, written.path, provider, (x, race.target.cpu().numpy())), facts)


def _provider(race: Race) -> tuple[str, dict[str, str]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise NotApplicable("onnxruntime is not installed") from error
    cpu = race.device == "cpu"
    name, settings = ("CPUExecutionProvider", {}) if cpu else ("CUDAExecutionProvider", {"use_tf32": "0"})
    if name not in onnxruntime.get_available_providers():
        raise NotApplicable(f"this onnxruntime has no {name}")
    return name, settings


def _session(race: Race, path: Path, provider: tuple[str, dict[str, str]], values: tuple[Any, ...]) -> Call:
    """One run of a file, from arrays to arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = race.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads do not disturb whoever is next
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    feeds = {i.name: value for i, value in zip(session.get_inputs(), values, strict=True)}
    return lambda: session.run(None, feeds)


# Peers --------------------------------------------------------------------------------------------------------------


def peer(method: Method, race: Race) -> Ready:
    """A method of `judge/methods.py`. One that hooks modules may find out at its first call that it cannot."""
    attribute = method.make(race.subject.model)
    if method.copy:
        attribute(race.x[:1], race.target[:1])
    return Ready(lambda: attribute(race.x, race.target), {"source": method.source, "settings": method.settings})


EPSILON_PLUS = Method(
    partial(zennit, composite="EpsilonPlus"), "Montavon et al. 2019; Zennit", "batch norm folded", copy=True
)
COMPILED, DEPLOYED = "torch.compile", "onnxruntime"
PLAIN = "onnxruntime explainer"  # what an explainer by another rule set is compared with
CONTESTANTS: dict[str, Contestant] = {
    "torch forward": Contestant(forward),
    "torch explainer": Contestant(explainer),
    f"torch explainer, {TARGETS} targets": Contestant(several_targets, slow=True, single=True),
    "saved explainer": Contestant(saved_explainer),
    f"saved explainer, {TARGETS} targets": Contestant(saved_several, slow=True, single=True),
    "torch.compile forward": Contestant(compiled_forward, COMPILED),
    "torch.compile explainer": Contestant(compiled_explainer, COMPILED),
    "AOTInductor explainer": Contestant(ahead_of_time, COMPILED, single=True),
    "onnxruntime forward": Contestant(deployed_forward, DEPLOYED),
    PLAIN: Contestant(deployed_explainer, DEPLOYED),
    "onnxruntime explainer, float16": Contestant(partial(deployed_explainer, dtype="float16"), DEPLOYED, single=True),
    "zennit EpsilonPlus": Contestant(partial(peer, EPSILON_PLUS)),
    **{
        name: Contestant(partial(peer, METHODS[name]), slow=name == "captum IntegratedGradients")
        for name in (
            "zennit EpsilonPlusFlat", "captum LRP", "captum DeepLift", "captum InputXGradient",
            "captum IntegratedGradients",
        )
    },
    **{
        f"{PLAIN}, {rules}": Contestant(partial(deployed_explainer, rules=rules), DEPLOYED, rules=rules)
        for rules in rule_sets()
        if rules != "omenn"
    },
}  # fmt: skip
