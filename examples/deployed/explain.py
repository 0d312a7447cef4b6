"""Explain with numpy and onnxruntime alone: python explain.py model.onnx [image.npy]"""

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
shape = [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
if len(sys.argv) > 2:
    image = np.load(sys.argv[2]).astype(np.float32)
else:
    image = np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)

feeds = {session.get_inputs()[0].name: image}
if len(session.get_inputs()) > 1:
    feeds["target"] = np.full(len(image), -1)  # the class to explain: each row's largest
logits, C, error = session.run(["logits", "C", "completeness"], feeds)
if not (error <= 1e-5).all():
    raise SystemExit(f"this runtime computes another map: C misses the logit by {error.max():.1e} of S")
for row, contributions in zip(logits, C, strict=True):
    print(f"class {row.argmax()}: logit {row.max():.6f}, sum of C {contributions.sum(dtype=np.float64):.6f}")
