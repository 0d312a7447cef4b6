// Explain in Node.js with onnxruntime alone: node explain.mjs model.onnx
import ort from "onnxruntime-node";

const session = await ort.InferenceSession.create(process.argv[2]);
const { name, shape } = session.inputMetadata[0];
const dims = shape.map((size) => (typeof size === "number" ? size : 1));
const count = dims.reduce((a, b) => a * b, 1);
const image = new ort.Tensor("float32", Float32Array.from({ length: count }, (_, i) => Math.sin(i)), dims);

const feeds = { [name]: image };
if (session.inputNames.includes("target")) {
  feeds.target = new ort.Tensor("int64", new BigInt64Array(dims[0]).fill(-1n), [dims[0]]); // each row's largest
}
const { logits, C, completeness } = await session.run(feeds, ["logits", "C", "completeness"]);
const worst = Math.max(...completeness.data);
if (!(worst <= 1e-5)) throw new Error(`this runtime computes another map: C misses the logit by ${worst} of S`);
const top = logits.data.indexOf(Math.max(...logits.data));
const sum = C.data.reduce((a, b) => a + b, 0);
console.log(`class ${top}: logit ${logits.data[top].toFixed(6)}, sum of C ${sum.toFixed(6)}`);
