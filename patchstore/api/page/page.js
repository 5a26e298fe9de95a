// The page: what is asked stands in the address; everything else follows from it.

import { format, parse, DEFAULTS } from "./address.js";
import { makeBrowser } from "./browse.js";
import { onUnauthorized, request } from "./client.js";
import { makeControls } from "./controls.js";
import { nameOf, showHits, showSkeleton } from "./hits.js";
import { makeInspector } from "./inspector.js";
import { makeAsked } from "./asked.js";
import { search } from "./search.js";
import { askToken } from "./token.js";

const PAUSE_MS = 200; // a drag, a held key or typing is one question

const byId = (id) => document.getElementById(id);
/** @type {Map<string, File>} */
const uploads = new Map();
let running = new AbortController();
let moving = new AbortController(); // to another spec
/** @type {import("./address.js").Question|null} */
let question = null;
let options = DEFAULTS; // the last that made sense
let askedSpec = ""; // under which the question was asked
/** @type {{patch: number, image: number, box: number[]}|null} */
let place = null; // of the last patch that was answered
let specs = null;
let timer = 0;

onUnauthorized(askToken);
const controls = makeControls(byId("controls"), () => later(optionsChanged));
const asked = makeAsked({ regionChanged, patchPicked: (id) => go({ kind: "patch", id }) });
const inspector = makeInspector((id) => linkTo({ kind: "patch", id }));
const browser = makeBrowser((id) => format({ kind: "image", id }, DEFAULTS));

function linkTo(next) {
  options = controls.read() ?? options;
  return format(next, options);
}

function go(next, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", linkTo(next));
  follow();
}

function later(action) {
  moving.abort(); // it would go on with what the controls held before
  clearTimeout(timer);
  timer = setTimeout(action, PAUSE_MS);
}

function regionChanged(region) {
  question = { ...question, region };
  later(() => go(question));
}

async function optionsChanged() {
  const wanted = controls.read();
  if (!wanted) return;
  moving = new AbortController();
  const { signal } = moving;
  try {
    // A patch belongs to its spec: under another one the same place is asked about.
    const moves = question?.kind === "patch" && wanted.spec !== askedSpec;
    const next = moves
      ? await asked.under(await placeOf(question.id, signal), wanted.spec, signal)
      : question;
    if (!signal.aborted && linkTo(next) !== location.hash) go(next, { replace: true });
  } catch (error) {
    if (!signal.aborted) tell(error);
  }
}

/** Where a patch of the spec that it was asked under lies; its answer may not be here yet. */
async function placeOf(patch, signal) {
  if (place?.patch === patch) return place;
  const body = { patch_id: patch, spec: askedSpec, k: 1 };
  const { question: { image_ids: [image], box } } = await request("/v1/search", { body, signal });
  return { patch, image, box };
}

/** Shows what the address says. */
async function follow() {
  clearTimeout(timer);
  moving.abort();
  running.abort();
  running = new AbortController();
  const { signal } = running;
  wait(false);
  inspector.close();
  tell(null);
  const before = question;
  const said = parse(location.hash);
  question = said.question;
  try {
    if (question?.kind === "upload" && !uploads.has(question.id)) {
      question = null;
      tell(new Error("Pictures of your own are not kept when the page is left; choose it again."));
    }
    arrange(before);
    await learnSpecs(signal);
    if (signal.aborted) return;
    controls.show(said.options, question?.kind);
    if (question) await answer(signal);
    else browser.open(controls.read()?.spec);
  } catch (error) {
    if (!signal.aborted) tell(error, { retry: true });
  }
}

async function learnSpecs(signal) {
  if (specs) return;
  specs = (await request("/v1/specs", { signal })).specs;
  controls.fill(specs);
}

function arrange(before) {
  byId("start").hidden = question !== null;
  byId("work").hidden = byId("again").hidden = question === null;
  document.body.classList.toggle("asking", question !== null);
  if (!question) {
    byId("hits").replaceChildren();
    asked.clear();
    document.title = "patchstore";
  }
  if (before?.kind !== question?.kind || before?.id !== question?.id) scrollTo(0, 0);
}

async function answer(signal) {
  const wanted = controls.read();
  if (!wanted) return;
  options = wanted;
  askedSpec = wanted.spec;
  const file = uploads.get(question.id);
  if (question.kind === "upload") {
    entitle(file.name);
    await asked.showUpload(question.id, file, question.region);
  }
  if (question.kind === "image") {
    byId("hits").replaceChildren();
    byId("answer-heading").textContent = "Nearest patches";
    note("");
    const { uri, patches } = await asked.showStored(question.id, options.spec, null, signal);
    if (patches.length) note("Click a place of the picture to see what is like it.");
    entitle(nameOf(uri));
    return;
  }
  if (signal.aborted) return;
  wait(true);
  try {
    const begun = performance.now();
    const found = await search(question, options, file, signal);
    showAnswer(found, performance.now() - begun);
    await showAsked(found, signal);
  } catch (error) {
    if (!signal.aborted) showNothing();
    throw error;
  } finally {
    if (!signal.aborted) wait(false);
  }
}

function showNothing() {
  byId("hits").replaceChildren();
  head();
  note("");
  if (question.kind === "upload") return;
  asked.clear();
  entitle("Question");
}

async function showAsked(found, signal) {
  const { image_ids: [image], box, width, height } = found.question;
  if (question.kind === "upload") {
    asked.learnSize(question.id, width, height);
    return;
  }
  place = { patch: question.id, image, box };
  entitle(nameOf((await asked.showStored(image, found.spec, box, signal)).uri));
}

function showAnswer(found, took) {
  const whole = head();
  const shown = { ...found, vector: found.question.vector };
  showHits(byId("hits"), found.hits, {
    metric: found.metric,
    whole,
    linkTo: (hit) => linkTo({ kind: "patch", id: hit.patch_id }),
    open: (index) => inspector.open(shown, index),
  });
  note(found.hits.length ? summary(found, whole, took) : nothing());
}

/** Says what the answer is of; true: whole images. */
function head() {
  const whole = options.consistent || options.by === "image";
  byId("answer-heading").textContent = whole ? "Nearest images" : "Nearest patches";
  return whole;
}

function nothing() {
  const { filter, prefix, max, other, spec } = options;
  if (filter || prefix || max || other) return "Nothing was found; ask for less at once.";
  return `No picture has patches of ${spec} yet.`;
}

function summary({ hits, metric, exact }, whole, took) {
  const things = whole ? "image" : "patch";
  const plural = hits.length === 1 ? "" : whole ? "s" : "es";
  return [
    `${hits.length} ${things}${plural}`,
    `${metric} distance`,
    exact ? "exact" : "approximate",
    `${Math.round(took)} ms`,
  ].join(" · ");
}

/** The last answer stays, faded, until the next is here. */
function wait(on) {
  byId("answer").setAttribute("aria-busy", String(on));
  if (on && !byId("hits").children.length) showSkeleton(byId("hits"));
  if (on) note("Searching …");
}

function entitle(name) {
  byId("asked").textContent = name;
  document.title = `Like ${name} · patchstore`;
}

function note(text) {
  byId("status").textContent = text;
}

/** @param {Error|null} failure null: all is well again */
function tell(failure, { retry = false } = {}) {
  const line = byId("problem");
  line.hidden = failure === null;
  byId("problem-text").textContent = failure?.message ?? "";
  byId("retry").hidden = !retry;
  line.title = failure?.requestId ? `request ${failure.requestId}` : "";
}

function take(file) {
  if (!file) return;
  const id = Date.now().toString(36);
  uploads.set(id, file);
  go({ kind: "upload", id, region: null });
  asked.focus();
}

byId("retry").addEventListener("click", () => {
  byId("main").focus(); // the button goes
  follow();
});
byId("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => take(event.clipboardData.files[0]));
addEventListener("popstate", follow);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the question's
  byId("main").focus();
});

follow();
