"""Ways out of the process: an explainer as a program that needs neither the model's code nor autograd."""

from omenn_fx.export.program import to_program

__all__ = ["to_program"]
