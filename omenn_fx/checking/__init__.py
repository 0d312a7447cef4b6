"""Checking: can a model be explained, and was it explained exactly?

In: a model (`check`), or a program with inputs (`validate`). Out: reports, as tables, JSON, SARIF and pictures.
Imports `program` and the rooms before it; may be imported by `explainer` and the rooms behind it.
"""
