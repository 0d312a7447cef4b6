"""omenn-fx in the interfaces of other libraries: `captum`, `quantus` and `huggingface`, each imported by its own name.

In: a model as the other library holds it. Out: what that library expects of an attribution method.
Imports `explainer` and `explanation`; imported by no other room, so that none of these libraries is needed elsewhere.
"""
