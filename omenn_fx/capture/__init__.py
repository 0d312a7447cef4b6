"""Capture: any PyTorch model becomes one flat, functional ATen graph.

In: a model and example inputs. Out: `Captured`, a graph whose parameters are attributes and whose sizes may be free.
Imports `algebra`; may be imported by every room behind it, from `analysis` on.
"""
