"""Ways out of the process: an explainer as a program or a file that needs neither the model's code nor autograd."""

from omenn_fx.export.program import to_program
from omenn_fx.export.runtime import OnnxExplainer, load

__all__ = ["OnnxExplainer", "load", "to_program"]
