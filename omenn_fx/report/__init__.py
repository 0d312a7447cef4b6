"""Reports: what was explained, and how well, as one HTML page without anything beside it.

In: a loaded model and images, or an explainer with inputs. Out: a page, and its data.
Imports `explainer`, `checking`, `visualize` and `loading`; imported by `cli` alone.
"""

from omenn_fx.report.content import class_name
from omenn_fx.report.page import Report, write

__all__ = ["Report", "class_name", "write"]
