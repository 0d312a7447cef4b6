// What the page shows of an explanation.

import { displayed, greyed, mapPixels, overlayPixels, scaleOf, usual } from "./maps.js";

const SIDE = 672; // pixels of the stage
const SMALL = 160; // of a small map
const SMALLEST = 100; // of an input whose map is smoothed between its pixels when it is enlarged
export const SHOWN = 5; // classes
const SYMBOLS = { Cw: ["C<sub>w</sub> X", "pixels × weights"], Cb: ["C<sub>b</sub>", "biases"], C: ["C", "their sum"] };
const SPOKEN = { C: "C", Cw: "C w times X", Cb: "C b" };
const SIGNS = { Cw: "", Cb: "+", C: "=" };

export const $ = (id) => document.getElementById(id);
const made = (tag, properties = {}, ...inside) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...inside);
  return element;
};

/** A number with its sign, as the reports of omenn-fx write it. */
export function signed(value) {
  const text = Math.abs(value).toFixed(Math.abs(value) >= 1000 ? 1 : 4);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}
const tiny = (value) => (value === 0 ? "0" : value.toExponential(1).replace("-", "\u2212"));
export const nameOf = (classes, index) => classes?.[index] ?? `class ${index}`;

/** Radio buttons for the largest classes, and for the explained one where it is none of them. */
export function showClasses(found, { classes, targets }, chosen) {
  const most = Math.max(...found.logits);
  const weights = found.logits.map((logit) => Math.exp(logit - most));
  const whole = weights.reduce((a, b) => a + b, 0);
  const order = Array.from(found.logits.keys()).sort((a, b) => found.logits[b] - found.logits[a]);
  const top = order.slice(0, SHOWN);
  const shown = top.includes(found.target) ? top : [...top, found.target];
  const possible = (index) => targets === "input" || index === found.target || [targets].flat().includes(index);
  const focused = $("classes").contains(document.activeElement);
  $("classes").replaceChildren(
    ...shown.map((index) => {
      const percent = (100 * weights[index]) / whole;
      const [checked, disabled] = [index === found.target, !possible(index)];
      const input = made("input", { type: "radio", name: "class", value: index, checked, disabled });
      input.addEventListener("change", () => chosen(index));
      const part = made("span", { className: "part" });
      part.style.width = `${percent}%`;
      const name = made("span", { textContent: nameOf(classes, index) });
      const logit = made("small", { className: "number", title: "logit", textContent: signed(found.logits[index]) });
      const share = made("span", { className: "number", title: "softmax", textContent: `${percent.toFixed(1)} %` });
      return made("label", { className: "class" }, part, input, name, logit, share);
    }),
  );
  if (focused) $("classes").querySelector(":checked").focus();
  return shown;
}

/** The maps as one equation of small pictures, to choose among; made again where there are others. */
export function makeMaps(names, chosen) {
  if ($("maps").dataset.names === names.join()) return;
  $("maps").dataset.names = names.join();
  $("maps").replaceChildren($("maps").firstElementChild);
  $("maps").hidden = names.length === 1;
  for (const name of ["Cw", "Cb", "C"].filter((each) => names.includes(each))) {
    const [symbol, meaning] = SYMBOLS[name];
    if (SIGNS[name] && names.length > 1) {
      $("maps").append(made("span", { className: "sign", textContent: SIGNS[name], ariaHidden: "true" }));
    }
    const spoken = `${SPOKEN[name]}, ${meaning}`;
    const input = made("input", { type: "radio", name: "map", value: name, checked: name === "C", ariaLabel: spoken });
    input.addEventListener("change", () => chosen(name));
    const canvas = made("canvas", { id: `small-${name}`, width: SMALL, height: SMALL, ariaHidden: "true" });
    const sum = made("span", { id: `sum-${name}` });
    const said = made("small", { textContent: meaning });
    $("maps").append(made("label", { className: "map" }, input, canvas, made("b", { innerHTML: symbol }), sum, said));
  }
}

/** The numbers: they come from the explanation as it is, not from what is drawn. */
export function showSums(found) {
  for (const name of Object.keys(found.maps)) $(`sum-${name}`).textContent = signed(found.sums[name]);
  $("for").textContent = `+${signed(found.for)}`;
  $("against").textContent = signed(found.against);
  $("count").textContent = found.count.toLocaleString("en");
  $("sum").textContent = signed(found.sum);
  $("logit").textContent = signed(found.logit);
  $("error").textContent = tiny(found.completenessError);
  $("verdict").textContent = found.holds ? "adds up" : "does not add up: this browser computes another map";
  $("verdict").className = found.holds ? "holds" : "fails";
}

/** The maps of an explanation as they are drawn: smoothed by so many pixels, null: as usual. */
export function drawable(found, pixels) {
  const { width, height } = found;
  const sigma = pixels ?? usual(width, height);
  $("smooth").value = sigma;
  $("smooth-said").textContent = sigma > 0 ? `${Number(sigma.toFixed(1))} px, same sums` : "as it is";
  const drawn = Object.entries(found.maps).map(([name, values]) => [name, displayed(values, width, height, sigma)]);
  return new Map(drawn.map(([name, values]) => [name, { values, scale: scaleOf(values) }]));
}

const canvasOf = (pixels) => {
  const canvas = made("canvas", { width: pixels.width, height: pixels.height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
};

/** One map on a canvas, in one of the views. */
function paint(canvas, picture, found, { values, scale }, view, side) {
  const { width, height, box } = found;
  const shrink = side / Math.max(width, height);
  [canvas.width, canvas.height] = [Math.round(width * shrink), Math.round(height * shrink)];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.imageSmoothingEnabled = true;
  if (view !== "map") {
    context.drawImage(picture.canvas, box.left, box.top, box.width, box.height, 0, 0, canvas.width, canvas.height);
    if (view === "over") context.putImageData(greyed(context.getImageData(0, 0, canvas.width, canvas.height)), 0, 0);
  }
  if (view === "picture") return;
  context.imageSmoothingEnabled = Math.min(width, height) >= SMALLEST;
  const pixels = (view === "over" ? overlayPixels : mapPixels)(values, width, height, scale);
  context.drawImage(canvasOf(pixels), 0, 0, canvas.width, canvas.height);
}

/** The chosen map large, and all of them small. */
export function showMaps(picture, found, drawn, { map, view }, classes) {
  paint($("stage"), picture, found, drawn.get(map), view, SIDE);
  for (const [name, each] of drawn) paint($(`small-${name}`), picture, found, each, "over", SMALL);
  const name = nameOf(classes, found.target);
  const shown = { over: `${SPOKEN[map]} over the picture`, map: `${SPOKEN[map]} alone`, picture: "the picture" };
  $("stage").setAttribute("aria-label", `${shown[view]}, explaining ${name}`);
  const { scale } = drawn.get(map);
  $("least").textContent = `against \u2212${scale.toPrecision(2)}`;
  $("most").textContent = `for +${scale.toPrecision(2)}`;
}

/** The colours from the least to the most, over a middle grey. */
export function showRamp() {
  const values = Float64Array.from({ length: 256 }, (_, i) => i / 127.5 - 1);
  $("ramp").getContext("2d").putImageData(mapPixels(values, 256, 1, 1), 0, 0);
}

/** The value under the pointer, of the map itself. */
export function readOut(event, found, map) {
  const frame = $("stage").getBoundingClientRect();
  const [x, y] = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  const [column, row] = [Math.floor(x * found.width), Math.floor(y * found.height)];
  const inside = column >= 0 && row >= 0 && column < found.width && row < found.height;
  $("readout").hidden = !inside;
  if (!inside) return;
  const value = found.maps[map][row * found.width + column];
  $("readout").textContent = `pixel ${column}, ${row}: ${value > 0 ? "+" : ""}${signed(value)}`;
}
