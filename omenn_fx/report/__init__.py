"""Reports: what was explained, and how well, as one HTML page without anything beside it."""

from omenn_fx.report.content import class_name
from omenn_fx.report.page import Report, write

__all__ = ["Report", "class_name", "write"]
