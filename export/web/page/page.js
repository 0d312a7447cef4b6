// The page: a picture comes in, the worker explains it, the view shows it.

import { Camera, fromBlob, whenGiven } from "./pictures.js";
import { $, drawable, makeMaps, nameOf, readOut, showClasses, showMaps, showRamp, showSums, signed } from "./view.js";

const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let asked = 0;

/** A task of the worker. */
function ask(task, given = {}) {
  const id = ++asked;
  worker.postMessage({ id, task, ...given });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}
worker.onmessage = ({ data: { id, answer, error, progress } }) => {
  if (progress !== undefined) $("progress").value = progress;
  if (!waiting.has(id)) return;
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(answer);
  else reject(new Error(error));
};
worker.onerror = (event) => say(`The worker stopped: ${event.message ?? "its files cannot be loaded"}`, true);

const camera = new Camera();
const state = {
  model: null, picture: null, // what there is
  found: null, of: null, drawn: null, // the explanation that is shown, of which picture, and its maps as drawn
  target: null, map: "C", view: "over", smooth: null, // what is asked for; null: the top class, the usual smoothing
  known: new Map(), // target -> explanation of this picture
  shown: [], // the classes in their order
}; // prettier-ignore

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "fails" : "";
}

/** Explain the picture; what was asked for before is no longer shown when it comes. */
let latest = 0;
async function explain({ quiet = false } = {}) {
  const { picture, target } = state;
  if (!picture || !state.model) return;
  const mine = ++latest;
  let found = state.known.get(target);
  if (!found) {
    document.querySelector(".stage").classList.toggle("busy", !quiet);
    if (!quiet) say("Explaining …");
    found = await ask("explain", { image: picture.image, target });
    if (mine !== latest) return;
    if (picture === state.picture) state.known.set(target, found).set(found.target, found);
  }
  document.querySelector(".stage").classList.remove("busy");
  Object.assign(state, { found, of: picture });
  state.drawn = drawable(found, state.smooth);
  makeMaps(Object.keys(found.maps), chooseMap);
  state.shown = showClasses(found, state.model, chooseTarget);
  showSums(found);
  redraw();
  if (!quiet) say(`${told(found)} Explained in ${found.seconds.toFixed(1)} s.`, !found.holds);
}

const told = (found) => {
  const name = nameOf(state.model.classes, found.target);
  return `${name}: logit ${signed(found.logit)}, the map sums to ${signed(found.sum)}.`;
};

function redraw() {
  const { of, found, drawn, view, model } = state;
  const map = drawn?.has(state.map) ? state.map : "C";
  if (found) showMaps(of, found, drawn, { map, view }, model.classes);
}

const failed = (error) => {
  document.querySelector(".stage").classList.remove("busy");
  say(error.message, true);
};

async function take(picture, target = null) {
  Object.assign(state, { picture, target, known: new Map() });
  await explain();
}

const takeBlob = (blob) => {
  stopCamera();
  mark(null);
  return fromBlob(blob).then(take).catch(failed);
};

function chooseTarget(target) {
  state.target = target;
  explain().catch(failed);
}

function chooseMap(map) {
  state.map = map;
  redraw();
}

/** Frame after frame, as fast as they are explained; stopping keeps the last one. */
async function toggleCamera() {
  if (camera.on) return stopCamera();
  await camera.start();
  mark(null);
  state.target = null;
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Hold this picture";
  say("The camera is on; its pictures stay on this machine.");
  while (camera.on) {
    Object.assign(state, { picture: camera.frame(), known: new Map() });
    await explain({ quiet: true });
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  if (!camera.on) return;
  camera.stop();
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Use the camera";
  if (state.found) say(told(state.found));
}

// Examples -------------------------------------------------------------------------------------------------------------

function mark(button) {
  for (const each of $("examples").children) each.setAttribute("aria-pressed", String(each === button));
}

async function showExample(button, file) {
  stopCamera();
  mark(button);
  const answer = await fetch(file);
  await fromBlob(await answer.blob()).then(take);
}

function makeExamples(examples) {
  for (const { name, file } of examples) {
    const button = document.createElement("button");
    const image = Object.assign(document.createElement("img"), { src: file, alt: name });
    Object.assign(button, { type: "button", ariaPressed: "false", title: name });
    button.append(image);
    button.addEventListener("click", () => showExample(button, file).catch(failed));
    $("examples").append(button);
  }
}

// Another class --------------------------------------------------------------------------------------------------------

function findClass(text) {
  const { classes } = state.model;
  const wanted = text.trim().toLowerCase();
  const named = classes?.findIndex((name) => name.toLowerCase() === wanted) ?? -1;
  if (named >= 0 || !wanted) return named;
  if (/^\d+$/.test(wanted)) return Number(wanted) < (state.found?.logits.length ?? 0) ? Number(wanted) : -1;
  return classes?.findIndex((name) => name.toLowerCase().startsWith(wanted)) ?? -1;
}

function chooseOther() {
  const index = findClass($("other").value);
  const wrong = index < 0 && $("other").value.trim() !== "";
  $("other-said").textContent = wrong ? "no such class" : "";
  if (index < 0) return;
  $("other").value = "";
  chooseTarget(index);
}

// Keys -----------------------------------------------------------------------------------------------------------------

const VIEWS = ["over", "map", "picture"];
const check = (name, value) => {
  const input = document.querySelector(`input[name="${name}"][value="${value}"]`);
  if (input && !input.checked) input.click();
};
const KEYS = {
  c: () => check("map", "C"),
  w: () => check("map", "Cw"),
  b: () => check("map", "Cb"),
  v: () => check("view", VIEWS[(VIEWS.indexOf(state.view) + 1) % VIEWS.length]),
  o: () => $("file").click(),
  k: () => $("camera").click(),
};

function pressed(event) {
  const typing = event.target.matches?.("input:not([type=radio], [type=checkbox]), textarea, select");
  if (!$("keys").checked || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const number = Number(event.key);
  if (number >= 1 && number <= state.shown.length) check("class", state.shown[number - 1]);
  else KEYS[event.key.toLowerCase()]?.();
}

// The beginning --------------------------------------------------------------------------------------------------------

function listen() {
  $("file").addEventListener("change", () => {
    if ($("file").files.length) takeBlob($("file").files[0]);
    $("file").value = ""; // the same file again is a change, too
  });
  whenGiven($("drop"), takeBlob);
  $("camera").addEventListener("click", () =>
    toggleCamera().catch((error) => {
      stopCamera();
      failed(new Error(`No camera: ${error.message}`));
    }),
  );
  $("views").addEventListener("change", (event) => {
    state.view = event.target.value;
    redraw();
  });
  $("smooth").addEventListener("input", () => {
    state.smooth = Number($("smooth").value);
    if (!state.found) return;
    state.drawn = drawable(state.found, state.smooth);
    redraw();
  });
  $("other").addEventListener("change", chooseOther);
  addEventListener("keydown", pressed);
  $("stage").addEventListener("pointermove", (event) => state.found && readOut(event, state.found, state.map));
  $("stage").addEventListener("pointerleave", () => ($("readout").hidden = true));
}

async function begin() {
  $("unstarted").hidden = true;
  $("main").hidden = false;
  $("progress").hidden = false;
  showRamp();
  const answer = await fetch("page.json");
  const about = await answer.json();
  document.title = `What ${about.title} saw`;
  $("title").textContent = about.title;
  $("version").textContent = about.version;
  $("untrained").hidden = !about.untrained;
  makeExamples(about.examples);
  say("Loading the model …");
  state.model = await ask("begin", { file: new URL("model.onnx", document.baseURI).href });
  $("progress").hidden = true;
  const { classes, targets, threads } = state.model;
  $("threads").textContent = `, ${threads} ${threads === 1 ? "thread" : "threads"}`;
  $("other-row").hidden = targets !== "input";
  $("names").append(...(classes ?? []).map((name) => Object.assign(document.createElement("option"), { value: name })));
  say("Ready: choose a picture, drop one, or use the camera.");
  listen();
  if (state.picture === null && about.examples.length) $("examples").firstElementChild.click();
}

begin().catch((error) => {
  $("progress").hidden = true;
  failed(error);
});
