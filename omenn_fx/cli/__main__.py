"""`python -m omenn_fx.cli`."""

from omenn_fx.cli import app

app()
