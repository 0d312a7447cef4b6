"""Passes over an explainer graph on its way out: what makes a file fast. Each keeps what the graph computes.

In: the exported graph of model and explanation. Out: the same function in fewer or faster operators.
Imports `capture` (its editor) and `graph` (its schedule); may be imported by `export` alone.
"""
