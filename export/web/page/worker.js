// Loads the model and explains, away from the page's own thread.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { load, TOLERANCE } from "./explain/index.js";

const MOST_THREADS = 4;
ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
let explainer;

self.onmessage = async ({ data: { id, task, ...given } }) => {
  try {
    const [answer, moved] = await { begin, explain }[task](given);
    self.postMessage({ id, answer }, moved);
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};

async function begin({ file }) {
  const bytes = await fetched(file, (share) => self.postMessage({ progress: share }));
  explainer = await load(bytes, { ort });
  const { classes, preprocessing, targets } = explainer;
  if (!preprocessing) throw new Error("the model's file does not say how a picture becomes its input");
  return [{ classes, targets, threads: ort.env.wasm.numThreads }, []];
}

/** The bytes of a file, and how far it is. */
async function fetched(file, said) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file}: ${answer.status} ${answer.statusText}`);
  const whole = Number(answer.headers.get("Content-Length"));
  const parts = [];
  let have = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    have += value.length;
    if (whole) said(Math.min(1, have / whole));
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function explain({ image, target }) {
  const start = performance.now();
  const prepared = explainer.prepare(image);
  const found = await explainer.explain(prepared, target);
  const [, channels, height, width] = prepared.dims;
  const area = width * height;
  const flat = (values) => {
    const map = new Float64Array(area); // summed over the channels
    for (let c = 0; c < channels; c++) for (let i = 0; i < area; i++) map[i] += values[c * area + i];
    return map;
  };
  let maps = { C: flat(found.C) };
  if (found.Cw) maps.Cw = flat(found.Cw.map((w, i) => w * found.input[i]));
  if (found.Cb) maps.Cb = flat(found.Cb);
  if (!maps.Cw?.some((value) => value !== 0)) maps = { C: maps.C }; // a rule set without weights: C is all there is
  const sums = Object.fromEntries(Object.entries(maps).map(([name, map]) => [name, map.reduce((a, b) => a + b, 0)]));
  const { logits, logit, sum, completenessError } = found;
  const holds = completenessError <= TOLERANCE;
  const answer = {
    width, height, maps, sums, logits, logit, sum, completenessError, holds, target: found.target, box: prepared.box,
    count: found.C.length,
    for: found.C.reduce((all, v) => (v > 0 ? all + v : all), 0),
    against: found.C.reduce((all, v) => (v < 0 ? all + v : all), 0),
    seconds: (performance.now() - start) / 1000,
  }; // prettier-ignore
  return [answer, Object.values(maps).map((map) => map.buffer)];
}
