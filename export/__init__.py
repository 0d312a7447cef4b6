"""Deployment formats of an explainer."""
