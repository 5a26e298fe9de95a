// One hit, large: its image with the box, how similar every place of it is, and the way on.

import { request, showPicture } from "./client.js";
import { drawHeat, drawScale } from "./heat.js";
import { boxText, element, nameOf } from "./hits.js";
import { makePatchPicker } from "./patches.js";
import { compareImage } from "./search.js";
import { makeStage } from "./stage.js";

/**
 * @typedef {{hits: import("./search.js").Hit[], spec: string, metric: string, vector: number[]}} Shown
 *
 * @param {(patchId: number) => string} linkTo the address of a patch as a question
 */
export function makeInspector(linkTo) {
  const byId = (id) => document.getElementById(id);
  const dialog = byId("inspector");
  const [previous, next, onward, opacity] = ["previous", "next", "go-on", "heat"].map(byId);
  const stage = makeStage(byId("hit-stage"));
  const heat = element("canvas", "heat");
  stage.root.append(heat);
  const outline = stage.mark("mark hit-box");
  const picker = makePatchPicker(stage, { picked: pick });
  let running = new AbortController();
  /** @type {Shown} */
  let shown;
  let at = 0;

  async function show(index) {
    running.abort();
    running = new AbortController();
    at = index;
    const hit = shown.hits[index];
    tellHit(hit);
    picker.hide();
    stage.place(outline, null);
    heat.hidden = true;
    stage.root.setAttribute("aria-busy", "true");
    const { signal } = running;
    try {
      const asked = request(`/v1/images/${hit.image_id}`, { signal });
      const [image, compared] = await Promise.all([
        asked,
        compareImage(shown.spec, shown.vector, hit.image_id, asked, signal),
      ]);
      stage.resize(image.width, image.height);
      showPicture(stage.img, `/v1/images/${hit.image_id}/picture.jpg?side=1600`);
      stage.place(outline, hit.box);
      picker.show(compared, null);
      tellHeat(drawHeat(heat, image.width, image.height, compared));
      heat.hidden = false;
    } catch (error) {
      if (error.name === "AbortError") return;
      tellProblem(error.message);
      hidePicture(); // what is still there is another hit's
    } finally {
      if (!signal.aborted) stage.root.removeAttribute("aria-busy");
    }
  }

  function hidePicture() {
    stage.img.removeAttribute("src");
    delete stage.img.dataset.path;
    byId("near").textContent = byId("far").textContent = "";
  }

  function tellHit(hit) {
    const focused = document.activeElement;
    byId("position").textContent = `${at + 1} of ${shown.hits.length}`;
    previous.disabled = at === 0;
    next.disabled = at === shown.hits.length - 1;
    if (focused.disabled) onward.focus({ preventScroll: true }); // else nobody hears the keys
    byId("hit-name").textContent = nameOf(hit.uri);
    byId("hit-uri").textContent = hit.uri;
    stage.img.alt = nameOf(hit.uri);
    tellProblem("");
    tellFacts(hit, Object.entries(hit.metadata));
  }

  function tellFacts(patch, more) {
    const facts = [
      [`${shown.metric} distance`, patch.distance.toFixed(4)],
      ["box", boxText(patch.box)],
      ...more.map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]),
    ];
    byId("hit-facts").replaceChildren(
      ...facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]),
    );
    onward.href = linkTo(patch.patch_id);
  }

  function tellHeat({ near, far }) {
    byId("near").textContent = `nearest place ${near.toFixed(4)}`;
    byId("far").textContent = `farthest place ${far.toFixed(4)}`;
  }

  function tellProblem(text) {
    byId("hit-problem").textContent = text;
    byId("hit-problem").hidden = !text;
  }

  function pick(patch) {
    picker.choose(patch.box);
    tellFacts(patch, Object.entries(shown.hits[at].metadata));
  }

  function step(by) {
    if (shown.hits[at + by]) show(at + by);
  }

  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => running.abort());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.target === opacity) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  const fade = () => (heat.style.opacity = opacity.value / 100);
  opacity.addEventListener("input", fade);
  fade();
  drawScale(byId("scale"));

  return {
    /**
     * @param {Shown} answer
     * @param {number} index of the hit
     */
    open(answer, index) {
      shown = answer;
      dialog.showModal();
      onward.focus({ preventScroll: true });
      show(index);
    },
    close: () => dialog.close(),
  };
}
