"""The command line: `omenn-fx explain | check | validate | export`.

In: what a person types. Out: pictures, reports, files, and an exit status for CI.
Imports every other room; imported by none.
"""

from omenn_fx.cli.explain import app, explain_images

__all__ = ["app", "explain_images"]
