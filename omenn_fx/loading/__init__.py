"""Loading: models and images by what a person types.

In: "torchvision:resnet18", a file, a hub name; image files. Out: a model with its preprocessing and class names.
Imports `errors`; may be imported by `report` and `cli`.
"""
