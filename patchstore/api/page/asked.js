// The question's picture: one of the person's own, to draw a rectangle on, or a stored one, to pick
// a patch of.

import { request, showPicture } from "./client.js";
import { boxText } from "./hits.js";
import { makePatchPicker, nearest } from "./patches.js";
import { makeRegion } from "./region.js";
import { makeStage } from "./stage.js";

const HINTS = {
  whole: "The whole picture is asked about. Draw a rectangle to ask about a part of it.",
  region: "Drag to move or resize. Arrow keys move, with Shift resize, Escape clears.",
  unseen: "This browser cannot show the format. Type a rectangle to ask about a part of it.",
  stored: "Click a place to ask about its patch; with the keyboard, arrow keys and Enter.",
  none: "This picture has no patches under this spec. Choose another spec, or another picture.",
};

/**
 * @param {{regionChanged: (box: number[]|null) => void, patchPicked: (id: number) => void}} tell
 */
export function makeAsked(tell) {
  const stage = makeStage(document.getElementById("stage"));
  const hint = document.getElementById("hint");
  const numbers = document.getElementById("numbers");
  const whole = document.getElementById("whole");
  const inputs = ["x", "y", "width", "height"].map((name) => numbers.elements[name]);
  const region = makeRegion(stage, (box, settled) => {
    showNumbers(box);
    if (settled) tell.regionChanged(box);
  });
  const picker = makePatchPicker(stage, {
    picked: (patch) => tell.patchPicked(patch.patch_id),
    pointed: (patch) => (hint.textContent = `Patch at ${boxText(patch.box)}. Enter asks about it.`),
  });
  const sizes = new Map(); // of uploads, as the service sees them
  let key = ""; // of what the stage shows
  let stored = null;

  function showNumbers(next) {
    inputs.forEach((input, i) => (input.value = next ? next[i] : ""));
    whole.disabled = next === null;
    const seen = !stage.root.classList.contains("unseen");
    hint.textContent = seen ? HINTS[next ? "region" : "whole"] : HINTS.unseen;
  }

  numbers.addEventListener("change", ({ target }) => {
    const typed = inputs.map((input) => input.value);
    if (typed.every((text) => text === "")) region.set(null);
    else if (typed.every((text) => text !== "")) region.set(fitting(typed.map(Number), target));
  });

  /** The number that was typed stays as far as it can; what goes beyond the picture is cut off. */
  function fitting([x, y, width, height], typed) {
    if (typed === inputs[0]) width = Math.min(width, stage.width - x);
    if (typed === inputs[1]) height = Math.min(height, stage.height - y);
    return [x, y, width, height];
  }

  whole.addEventListener("click", () => {
    region.set(null);
    stage.root.focus(); // the button cannot be used any more
  });

  async function loadStored(id, spec, signal) {
    const [image, patches] = await Promise.all([
      request(`/v1/images/${id}`, { signal }),
      loadPatches(id, spec, signal),
    ]);
    return { ...image, patches };
  }

  async function loadPatches(id, spec, signal) {
    const path = `/v1/images/${id}/patches?${new URLSearchParams({ spec })}`;
    return (await request(path, { signal })).patches;
  }

  return {
    /**
     * @param {string} id
     * @param {File} file
     * @param {number[]|null} box
     */
    async showUpload(id, file, box) {
      stored = null;
      picker.hide();
      numbers.hidden = false;
      const isNew = key !== id;
      if (isNew) {
        key = id;
        await showFile(stage, file);
        if (key !== id) return; // somebody went on while it was decoded
        if (sizes.has(id)) stage.resize(...sizes.get(id));
      }
      const before = region.box();
      const now = region.show(box);
      // Somebody may be typing the next number while the last rectangle's answer comes.
      if (isNew || String(before) !== String(now)) showNumbers(now);
    },

    /** The size of an upload; this browser may not be able to tell. */
    learnSize(id, width, height) {
      sizes.set(id, [width, height]);
      if (stage.width !== width || stage.height !== height) stage.resize(width, height);
    },

    /**
     * @param {number} id
     * @param {string} spec
     * @param {number[]|null} next the box of the patch that is asked about
     * @param {AbortSignal} signal
     * @returns {Promise<{uri: string, patches: object[]}>} the image
     */
    async showStored(id, spec, next, signal) {
      const wanted = `${id} ${spec}`;
      if (key !== wanted) {
        // Until they are here, a click would pick a patch of what was shown before.
        picker.hide();
        key = "";
        stored = await loadStored(id, spec, signal);
        key = wanted;
        region.hide();
        numbers.hidden = true;
        stage.root.classList.remove("unseen");
        stage.resize(stored.width ?? 1, stored.height ?? 1); // of one that failed none is known
        stage.img.alt = "";
        showPicture(stage.img, `/v1/images/${id}/picture.jpg?side=1024`);
        picker.show(stored.patches, next);
      }
      picker.choose(next);
      hint.textContent = HINTS[stored.patches.length ? "stored" : "none"];
      return stored;
    },

    /**
     * The patch at the same place under another spec.
     * @param {{image: number, box: number[]}} place
     * @param {string} spec
     * @param {AbortSignal} signal
     * @returns {Promise<import("./address.js").Question>} its image, where that has no patch
     */
    async under({ image, box }, spec, signal) {
      const patches = await loadPatches(image, spec, signal);
      if (!patches.length) return { kind: "image", id: image };
      // An alias of the same spec has the same patch; under another one its place counts.
      const same = patches.find((patch) => String(patch.box) === String(box));
      const [x, y, width, height] = box;
      const { patch_id } = same ?? nearest(patches, [x + width / 2, y + height / 2]);
      return { kind: "patch", id: patch_id };
    },

    focus: () => stage.root.focus({ preventScroll: true }),

    clear() {
      key = "";
      stored = null;
      region.hide();
      picker.hide();
      stage.img.removeAttribute("src");
      delete stage.img.dataset.path;
      numbers.hidden = true;
      hint.textContent = "";
    },
  };
}

async function showFile(stage, file) {
  const url = URL.createObjectURL(file);
  delete stage.img.dataset.path;
  stage.img.onerror = null; // said by `unseen`
  stage.img.classList.remove("gone");
  stage.img.src = url;
  stage.img.alt = file.name;
  const seen = await stage.img.decode().then(
    () => true,
    () => false,
  );
  stage.root.classList.toggle("unseen", !seen);
  if (seen) stage.resize(stage.img.naturalWidth, stage.img.naturalHeight);
  URL.revokeObjectURL(url);
}
