// What is drawn of a map: outliers cut and finely smoothed as omenn-fx draws it, and its colours. No number shown comes
// from here.

const CUT = 0.99; // the quantile of |values| at which outliers are cut
const FINE = 1 / 56; // the Gaussian, as a part of the shorter side
const ENDS = 0.995; // the quantile of |values| at which the colours end
const [LIGHTEST, DARKEST] = [250, 130]; // greys of a photograph under a map
const STRONGEST = 0.95; // opacity of a map over a photograph at the ends of its scale
const RED = [178, 40, 50];
const BLUE = [43, 115, 179];
// matplotlib's RdBu_r, from below to above
const RAMP = [
  [5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247],
  [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43], [103, 0, 31],
]; // prettier-ignore

/** The Gaussian's standard deviation in pixels where nothing else is asked for. */
export const usual = (width, height) => FINE * Math.min(width, height);

/** A map [height * width] as it is drawn, with the same sum; with sigma 0 as it is. */
export function displayed(values, width, height, sigma) {
  return sigma > 0 ? smoothed(withoutOutliers(values), width, height, sigma) : values;
}

/** Where the colours of some values end, on both sides of 0. */
export function scaleOf(values) {
  const magnitudes = Float64Array.from(values, Math.abs).sort();
  return quantile(magnitudes, ENDS) || magnitudes.at(-1) || 1;
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

function withoutOutliers(values) {
  const limit = quantile(Float64Array.from(values, Math.abs).sort(), CUT);
  if (limit === 0) return Float64Array.from(values);
  const cut = Float64Array.from(values, (v) => Math.max(-limit, Math.min(limit, v)));
  for (const sign of [1, -1]) {
    const [whole, rest] = [values, cut].map((map) => map.reduce((all, v) => (v * sign > 0 ? all + v : all), 0));
    if (rest !== 0) for (let i = 0; i < cut.length; i++) if (values[i] * sign > 0) cut[i] *= whole / rest;
  }
  return cut;
}

/** A Gaussian whose part beyond the border is reflected. */
function smoothed(values, width, height, sigma) {
  const radius = Math.floor(4 * sigma + 0.5);
  const kernel = Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2));
  const total = kernel.reduce((a, b) => a + b, 0);
  const pass = (from, length, count, step, stride) => {
    const to = new Float64Array(from.length);
    const places = Array.from({ length: length + 2 * radius }, (_, i) => reflected(i - radius, length) * step);
    for (let line = 0; line < count; line++) {
      for (let i = 0; i < length; i++) {
        let sum = 0;
        for (let k = 0; k < kernel.length; k++) sum += kernel[k] * from[line * stride + places[i + k]];
        to[line * stride + i * step] = sum / total;
      }
    }
    return to;
  };
  return pass(pass(values, height, width, width, 1), width, height, 1, width);
}

function reflected(i, length) {
  const at = ((i % (2 * length)) + 2 * length) % (2 * length);
  return at < length ? at : 2 * length - 1 - at;
}

/** A map as opaque pixels: white at 0. */
export function mapPixels(values, width, height, scale) {
  const image = new ImageData(width, height);
  values.forEach((value, i) => {
    const at = ((Math.max(-1, Math.min(1, value / scale)) + 1) / 2) * (RAMP.length - 1);
    const low = Math.min(Math.floor(at), RAMP.length - 2);
    const colour = RAMP[low].map((c, k) => c + (at - low) * (RAMP[low + 1][k] - c));
    image.data.set([...colour, 255], 4 * i);
  });
  return image;
}

/** A map as pixels to lay over a picture: the stronger, the more they cover. */
export function overlayPixels(values, width, height, scale) {
  const image = new ImageData(width, height);
  values.forEach((value, i) => {
    const share = Math.max(-1, Math.min(1, value / scale));
    image.data.set([...(share > 0 ? RED : BLUE), 255 * STRONGEST * Math.abs(share)], 4 * i);
  });
  return image;
}

/** Make a picture light grey, so that it does not compete with the colours. In place. */
export function greyed(image) {
  const { data } = image;
  for (let i = 0; i < data.length; i += 4) {
    const luminance = (0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]) / 255;
    data.fill(DARKEST + (LIGHTEST - DARKEST) * luminance, i, i + 3);
  }
  return image;
}
