"""Ways out of the process: an explainer as a program or a file that needs neither the model's code nor autograd.

In: a live explainer (`program.Live`) with inputs. Out: an ExportedProgram, a `.pt2` or an ONNX file, and their readers.
Imports `program` and the rooms before it; `explainer` opens the door to it, the rooms behind may import it.
"""

from omenn_fx.export.program import to_program
from omenn_fx.export.runtime import OnnxExplainer, load

__all__ = ["OnnxExplainer", "load", "to_program"]
