/** A tensor of onnxruntime, or anything with its numbers and its shape. */
export interface TensorLike {
  readonly data: Float32Array;
  readonly dims: readonly number[];
}

/** RGBA pixels, as `CanvasRenderingContext2D.getImageData` gives them. The alpha channel is not read. */
export interface ImageLike {
  readonly data: Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

/** How an image becomes the model's input: resized, cropped at its centre, (pixel / 255 - mean) / std. */
export interface Preprocessing {
  /** Height and width of the crop. */
  size: [number, number];
  /** Height and width that the image is resized to. */
  resize: [number, number];
  /** "cover": the proportions stay, and the box is filled; "squash": exactly the box. */
  fit: "cover" | "squash";
  interpolation: "nearest" | "box" | "bilinear" | "hamming" | "bicubic" | "lanczos";
  /** One value for each channel, 3 or 1. */
  mean: number[];
  std: number[];
}

/** An image as a model's input. */
export interface Prepared extends TensorLike {
  readonly dims: [number, number, number, number];
  /** The 8-bit pixels that the model sees, [height, width, channels]. */
  seen: Uint8ClampedArray;
  /** The part of the image that they show, in its own pixels. */
  box: { left: number; top: number; width: number; height: number };
}

/** Why the model gave one of its outputs the value that it has. */
export interface Explanation {
  /** All outputs of the model. */
  logits: Float32Array;
  /** The explained output. */
  target: number;
  /** Its value, `logits[target]`. */
  logit: number;
  /** The contribution of each input value, in the input's shape `dims`: `Cw * input + Cb`. */
  C: Float32Array;
  /** The weight of each input value; null where the file does not return it (`--outputs logits,C,C_w,C_b` does). */
  Cw: Float32Array | null;
  /** The biases' part of the logit at each input value; null where the file does not return it. */
  Cb: Float32Array | null;
  dims: number[];
  /** The explained input. */
  input: Float32Array;
  /** The sum of C; equals `logit`. NaN where biases stay outside of C (`bias="none"`) and the file does not return them. */
  sum: number;
  /**
   * |sum - logit| / S, with S the sum of all magnitudes that were added. Above `TOLERANCE` the runtime computed a wrong
   * map: do not show it.
   */
  completenessError: number;
}

export interface LoadOptions {
  /** The runtime. Default: `onnxruntime-web/wasm`. */
  ort?: unknown;
  /** Options of its session. */
  session?: Record<string, unknown>;
}

export declare class Explainer {
  private constructor();
  /** The names of the outputs; null where the file has none. */
  readonly classes: string[] | null;
  /** null: the file does not say how an image becomes its input, and `explain` takes tensors alone. */
  readonly preprocessing: Preprocessing | null;
  /** Which outputs can be explained: any ("input"), the largest alone ("top1"), one, or some. */
  readonly targets: "input" | "top1" | number | number[];
  /** The input's shape; null: any size. */
  readonly shape: (number | null)[];
  /** All that the file says of itself. */
  readonly metadata: ReadonlyMap<string, string>;

  /** An image as the model's input. Throws where `preprocessing` is null. */
  prepare(image: ImageLike): Prepared;

  /**
   * Explain one output for one image.
   * @param image a tensor [1, ...] in the model's own scale, or pixels, which `prepare` makes one.
   * @param target which output; without one the largest.
   * @throws RangeError where there is no such output, or the file explains others alone.
   */
  explain(image: TensorLike | ImageLike, target?: number | null): Promise<Explanation>;

  /** Give the session's memory back. */
  release(): Promise<void>;
}

/**
 * Load a file written by `omenn-fx export` or `Explainer.to_onnx`, with one explained input.
 * @param source its address, or its bytes.
 * @throws where it cannot be had, or is not such a file.
 */
export declare function load(source: string | URL | ArrayBuffer | Uint8Array, options?: LoadOptions): Promise<Explainer>;

/** Resize, crop and normalise, bit for bit as omenn-fx does it in Python with PIL. */
export declare function preprocess(image: ImageLike, recipe: Preprocessing): Prepared;

/** The metadata of any ONNX file. */
export declare function readMetadata(bytes: Uint8Array): Map<string, string>;

/** The largest completeness error, relative to S, of a map that adds up in float32. */
export declare const TOLERANCE: number;
