// Explain in a browser or in Node, from one file that omenn-fx wrote: load(file), then explain(image, target).

import { readMetadata } from "./metadata.js";
import { preprocess } from "./preprocess.js";

export { preprocess, readMetadata };

/** The largest completeness error, relative to S, of a map that adds up in float32. */
export const TOLERANCE = 1e-5;

/** Load a file written by `omenn-fx export` or `Explainer.to_onnx`. See index.d.ts. */
export async function load(source, options = {}) {
  const ort = options.ort ?? (await import("onnxruntime-web/wasm"));
  const bytes = await bytesOf(source);
  const notes = readNotes(readMetadata(bytes));
  const session = await ort.InferenceSession.create(bytes, options.session ?? {});
  return new Explainer(ort, session, notes);
}

async function bytesOf(source) {
  if (source instanceof Uint8Array) return source;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  const answer = await fetch(source);
  if (!answer.ok) throw new Error(`${source}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** The file's metadata that a call needs. Throws where it is no file of ours, or of a kind that is not read here. */
function readNotes(metadata) {
  const entry = (key) => metadata.get(`omenn_fx.${key}`);
  if (entry("version") === undefined) throw new Error("this ONNX file was not written by omenn-fx");
  const parsed = (key, otherwise) => (entry(key) ? JSON.parse(entry(key)) : otherwise);
  const explained = parsed("explained", []);
  if (explained.length !== 1 || entry("batched") === "no") {
    throw new Error(`explained inputs: ${explained.join(", ")}; read here are files with one, and a batch`);
  }
  if (!parsed("inputs", explained).includes(explained[0])) {
    throw new Error(`the file explains ${explained[0]}, which is no input of the model: read here are maps of an input`);
  }
  const kind = entry("target");
  const classes = parsed("classes", []);
  return {
    metadata,
    input: parsed("inputs", explained)[0],
    target: kind === "input" || kind === "top1" ? kind : JSON.parse(kind),
    targetInput: entry("target_input") || null,
    top: entry("top_target") ? Number(entry("top_target")) : null, // as a target: the largest output; older files: none
    outputs: parsed("outputs", {}), // what an output is -> its name
    biased: parsed("biased", []),
    kept: parsed("kept", []),
    classes: classes.length ? classes : null,
    preprocessing: parsed("preprocess", null),
  };
}

export class Explainer {
  #ort;
  #session;
  #notes;
  #count; // of the model's outputs

  constructor(ort, session, notes) {
    this.#ort = ort;
    this.#session = session;
    this.#notes = notes;
    this.classes = notes.classes;
    this.preprocessing = notes.preprocessing;
    this.metadata = notes.metadata;
    this.targets = notes.target;
    const input = session.inputMetadata[session.inputNames.indexOf(notes.input)];
    if (input.type !== "float32") throw new Error(`the input is ${input.type}: export the model in float32`);
    this.shape = input.shape.map((size, i) => (i === 0 ? 1 : typeof size === "number" ? size : null));
    const outputs = session.outputMetadata[session.outputNames.indexOf(notes.outputs.logits)]?.shape.slice(1) ?? [];
    this.#count = outputs.every(Number.isInteger) ? outputs.reduce((a, b) => a * b, 1) : Infinity; // unknown before a run
  }

  /** An image as the model's input. */
  prepare(image) {
    if (!this.preprocessing) throw new Error("the file does not say how an image becomes its input: give a tensor");
    return preprocess(image, this.preprocessing);
  }

  /** Explain one value of the output for one image. */
  async explain(image, target) {
    const tensor = this.#tensor(image);
    const { targetInput } = this.#notes;
    if (!targetInput) return this.#assembled(tensor, await this.#run(tensor), this.#fixed(target));
    const { top } = this.#notes;
    if (target !== undefined && target !== null) {
      if (!Number.isInteger(target) || target < 0 || target >= this.#count) {
        throw new RangeError(`target ${target}: the model has ${this.#count} outputs`);
      }
      return this.#assembled(tensor, await this.#run(tensor, target), { target, row: 0, of: 1 });
    }
    let results = await this.#run(tensor, top ?? 0);
    const best = largest(results.get("logits").data);
    if (top === null && best !== 0) results = await this.#run(tensor, best);
    return this.#assembled(tensor, results, { target: best, row: 0, of: 1 });
  }

  /** Give the session's memory back. */
  async release() {
    await this.#session.release();
  }

  #tensor(image) {
    const { data, dims } = image.dims ? image : this.prepare(image);
    const fits = dims.length === this.shape.length && this.shape.every((size, i) => size === null || size === dims[i]);
    if (!fits) throw new Error(`the input has shape [${dims}], the file takes [${this.shape.map((s) => s ?? "any")}]`);
    return new this.#ort.Tensor("float32", data, [...dims]);
  }

  /** All outputs, by what they are. */
  async #run(tensor, target) {
    const { input, targetInput, outputs } = this.#notes;
    const feeds = { [input]: tensor };
    if (targetInput) feeds[targetInput] = new this.#ort.Tensor("int64", [BigInt(target)], [1]);
    const results = await this.#session.run(feeds);
    const named = new Map(Object.entries(outputs).map(([what, name]) => [what, results[name]]));
    if (!named.get("logits") || !(named.get("C") || named.get("C_w"))) {
      throw new Error(`the file returns ${[...named.keys()].join(", ")}: export it with logits and C`);
    }
    if (results.completeness) named.set("completeness", results.completeness);
    return named;
  }

  /** Which target a file with fixed targets explains, and where its maps stand among them. */
  #fixed(target) {
    const kind = this.#notes.target;
    const all = Array.isArray(kind) ? kind : [kind === "top1" ? undefined : kind];
    const row = target === undefined || target === null ? 0 : all.indexOf(target);
    if (row < 0) throw new RangeError(`target ${target}: this file explains ${JSON.stringify(kind)} alone`);
    return { target: all[row], row, of: all.length };
  }

  #assembled(tensor, results, { target, row, of }) {
    const logits = results.get("logits").data;
    const chosen = target ?? largest(logits);
    const part = (what) => share(results.get(what)?.data, row, of);
    const [Cw, Cb, bias] = [part("C_w"), part("C_b"), part("bias")];
    const C = part("C") ?? Cw.map((w, i) => w * tensor.data[i] + (Cb ? Cb[i] : 0));
    const { kept, biased } = this.#notes;
    const sum = total(C) + kept.reduce((all, node) => all + (bias ? bias[biased.indexOf(node)] : NaN), 0);
    const logit = logits[chosen];
    const size = Math.max(magnitude(C, Cw, Cb, bias, tensor.data), Math.abs(logit), 1e-37);
    const measured = part("completeness")?.[0];
    return {
      logits, target: chosen, logit, C, Cw, Cb, sum, dims: [...tensor.dims], input: tensor.data,
      completenessError: measured ?? Math.abs(sum - logit) / size,
    }; // prettier-ignore
  }
}

/** S, the sum of all magnitudes that were added; less of it where the file does not return all parts. */
function magnitude(C, Cw, Cb, bias, x) {
  if (!Cw) return total(C.map(Math.abs));
  let found = 0;
  for (let i = 0; i < x.length; i++) found += Math.abs(Cw[i] * x[i]);
  const biases = bias ?? Cb;
  return biases ? biases.reduce((all, b) => all + Math.abs(b), found) : found;
}

const total = (values) => values.reduce((all, value) => all + value, 0); // in double precision

const share = (data, row, of) => {
  if (!data) return null;
  const size = data.length / of;
  return data.subarray(row * size, (row + 1) * size);
};

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
