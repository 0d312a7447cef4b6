// From the pixels of an image to a model's input, as the command line of omenn-fx does it with PIL: to the last bit,
// so that a page shows the numbers that Python shows.

const BITS = 22; // PIL computes with integer weights of so many bits after the point

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

/** PIL's filters: [half width, function of the distance]. */
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function cubic(distance) {
  const x = Math.abs(distance);
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/**
 * Resize, crop and normalise.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGBA, opaque
 * @param {import("./index.js").Preprocessing} recipe
 * @returns {import("./index.js").Prepared}
 */
export function preprocess(image, recipe) {
  const [height, width] = recipe.size;
  const [wide, high] = resized(image.width, image.height, recipe);
  const [left, top] = [halfToEven((wide.to - width) / 2), halfToEven((high.to - height) / 2)];
  const channels = recipe.mean.length;
  const pixels = channels === 1 ? grey(image) : image.data;
  const stride = channels === 1 ? 1 : 4;
  const columns = weights(wide, left, width, recipe.interpolation);
  const rows = weights(high, top, height, recipe.interpolation);
  const seen = resample({ pixels, stride, channels, width: image.width }, columns, rows);
  return {
    data: normalised(seen, channels, recipe),
    dims: [1, channels, height, width],
    seen,
    box: {
      left: wide.from + (left * wide.size) / wide.to,
      top: high.from + (top * high.size) / high.to,
      width: (width * wide.size) / wide.to,
      height: (height * high.size) / high.to,
    },
  };
}

/** For each axis: where the image is cut before it is resized, how long that is, and how long it becomes. */
function resized(imageWidth, imageHeight, { resize: [height, width], fit }) {
  const [w, h] = trimmed(imageWidth, imageHeight);
  const wide = { from: halfToEven((imageWidth - w) / 2), size: w, to: width };
  const high = { from: halfToEven((imageHeight - h) / 2), size: h, to: height };
  if (fit === "cover") {
    if (height * w >= width * h) wide.to = Math.floor((height * w) / h);
    else high.to = Math.floor((width * h) / w);
  }
  return [wide, high];
}

/** The middle of a very long image: its centre is cropped anyway. */
function trimmed(width, height, longest = 16) {
  const most = longest * Math.min(width, height);
  return [Math.min(width, most), Math.min(height, most)];
}

/** Python's round: halves go to the even neighbour. */
function halfToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** PIL's mode L. */
function grey({ data, width, height }) {
  const found = new Uint8ClampedArray(width * height);
  for (let i = 0; i < found.length; i++) {
    found[i] = (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 0x8000) >> 16;
  }
  return found;
}

/** For each of `count` pixels from `start` on of a resized axis: the first pixel that it reads, and its weights. */
function weights({ from, size, to }, start, count, interpolation) {
  const pixels = Array.from({ length: count }, (_, i) => i + start);
  if (interpolation === "nearest" || size === to) {
    const exact = pixels.map((i) => (i < 0 || i >= to ? null : Math.floor(((i + 0.5) * size) / to)));
    return exact.map((at) => (at === null ? { first: 0, shares: [] } : { first: from + at, shares: [2 ** BITS] }));
  }
  const [half, filter] = FILTERS[interpolation] ?? FILTERS.bilinear;
  const step = size / to;
  const stretch = Math.max(step, 1);
  return pixels.map((i) => {
    if (i < 0 || i >= to) return { first: 0, shares: [] }; // a crop beyond the image: black
    const centre = (i + 0.5) * step;
    const first = Math.max(0, Math.trunc(centre - half * stretch + 0.5));
    const end = Math.min(size, Math.trunc(centre + half * stretch + 0.5));
    const shares = Array.from({ length: end - first }, (_, k) => filter((k + first - centre + 0.5) / stretch));
    const total = shares.reduce((a, b) => a + b, 0);
    const whole = shares.map((share) => (share / total) * 2 ** BITS);
    return { first: from + first, shares: whole.map((v) => Math.trunc(v + (v < 0 ? -0.5 : 0.5))) };
  });
}

/** Columns first, then rows, each rounded to 8 bits, as PIL does: uint8 [height, width, channels]. */
function resample({ pixels, stride, channels, width }, columns, rows) {
  const [count, across] = [columns.length, columns.length * channels];
  const lowest = Math.min(...rows.map((row) => row.first));
  const highest = Math.max(...rows.map((row) => row.first + row.shares.length));
  const between = new Uint8ClampedArray((highest - lowest) * across);
  for (let y = lowest; y < highest; y++) {
    for (let x = 0; x < count; x++) {
      const { first, shares } = columns[x];
      for (let c = 0; c < channels; c++) {
        let total = 0;
        let at = (y * width + first) * stride + c;
        for (let k = 0; k < shares.length; k++, at += stride) total += pixels[at] * shares[k];
        between[(y - lowest) * across + x * channels + c] = eightBits(total);
      }
    }
  }
  const found = new Uint8ClampedArray(rows.length * across);
  rows.forEach(({ first, shares }, y) => {
    for (let x = 0; x < across; x++) {
      let total = 0;
      for (let k = 0; k < shares.length; k++) total += between[(first - lowest + k) * across + x] * shares[k];
      found[y * across + x] = eightBits(total);
    }
  });
  return found;
}

const eightBits = (total) => Math.floor((total + 2 ** (BITS - 1)) / 2 ** BITS); // clamped where it is stored

/** (pixel / 255 - mean) / std in float32, [channels, height, width]. */
function normalised(seen, channels, { mean, std }) {
  const area = seen.length / channels;
  const found = new Float32Array(seen.length);
  for (let c = 0; c < channels; c++) {
    const [m, s] = [Math.fround(mean[c]), Math.fround(std[c])];
    const table = Float32Array.from({ length: 256 }, (_, v) => Math.fround(Math.fround(Math.fround(v / 255) - m) / s));
    for (let i = 0; i < area; i++) found[c * area + i] = table[seen[i * channels + c]];
  }
  return found;
}
