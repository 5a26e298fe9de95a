// A rectangle that is drawn, moved and resized on a stage, by pointer or by keyboard.

import { clamp } from "./stage.js";

const SMALLEST = 8; // pixels; the service refuses less
const GRIPS = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * @param {ReturnType<import("./stage.js").makeStage>} stage
 * @param {(box: number[]|null, settled: boolean) => void} changed not settled: still being dragged
 */
export function makeRegion(stage, changed) {
  const frame = stage.mark("region");
  frame.dataset.grip = "move";
  for (const name of GRIPS) {
    const grip = document.createElement("i");
    grip.dataset.grip = name;
    frame.append(grip);
  }
  let active = false;
  let held = false; // by a pointer, whose word counts until it lets go
  let box = null;

  function set(next, settled) {
    box = next && inside(next, stage);
    stage.place(frame, box);
    changed(box, settled);
  }

  stage.root.addEventListener("pointerdown", (down) => {
    if (!active || held || down.button !== 0) return;
    down.preventDefault();
    stage.root.focus({ preventScroll: true });
    stage.root.setPointerCapture(down.pointerId);
    held = true;
    const before = box;
    const grip = down.target.dataset.grip ?? "";
    const from = stage.point(down);
    const move = (event) => {
      if (event.pointerId === down.pointerId) set(dragged(before, grip, from, stage.point(event)), false);
    };
    const end = (event) => {
      if (event.pointerId !== down.pointerId) return;
      held = false;
      stage.root.removeEventListener("pointermove", move);
      stage.root.removeEventListener("pointerup", end);
      stage.root.removeEventListener("pointercancel", end);
      // A click without a drag draws nothing.
      const still = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < 4;
      if (still || event.type === "pointercancel") set(before, false);
      else set(box, true);
    };
    stage.root.addEventListener("pointermove", move);
    stage.root.addEventListener("pointerup", end);
    stage.root.addEventListener("pointercancel", end);
  });

  stage.root.addEventListener("keydown", (event) => {
    if (!active) return;
    if (event.key === "Escape" && box) {
      set(null, true);
      event.preventDefault();
    }
    const arrow = ARROWS[event.key];
    if (!arrow || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    set(box ? nudged(box, arrow, stage, event) : middle(stage), true);
  });

  return {
    /** Starts with a rectangle, or without one, and tells nobody. */
    show(next) {
      active = true;
      if (!held) box = next && inside(next, stage);
      stage.place(frame, box);
      return box;
    },
    hide() {
      active = false;
      box = null;
      stage.place(frame, null);
    },
    set: (next) => set(next, true),
    box: () => box,
  };
}

function dragged(before, grip, from, to) {
  if (!grip || !before) {
    return [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])];
  }
  const [x, y, width, height] = before;
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  if (grip === "move") return [x + dx, y + dy, width, height];
  const left = grip.includes("w") ? Math.min(x + dx, x + width - SMALLEST) : x;
  const top = grip.includes("n") ? Math.min(y + dy, y + height - SMALLEST) : y;
  const right = x + width + (grip.includes("e") ? dx : 0);
  const bottom = y + height + (grip.includes("s") ? dy : 0);
  return [left, top, right - left, bottom - top];
}

function nudged([x, y, width, height], [dx, dy], stage, { shiftKey, altKey }) {
  const step = altKey ? 1 : Math.max(1, Math.round(Math.max(stage.width, stage.height) / 50));
  if (shiftKey) return [x, y, width + dx * step, height + dy * step];
  return [x + dx * step, y + dy * step, width, height];
}

function middle({ width, height }) {
  return [width / 4, height / 4, width / 2, height / 2];
}

/** Whole pixels inside the picture, and not too few of them. */
function inside([x, y, width, height], stage) {
  const w = Math.round(clamp(width, Math.min(SMALLEST, stage.width), stage.width));
  const h = Math.round(clamp(height, Math.min(SMALLEST, stage.height), stage.height));
  return [Math.round(clamp(x, 0, stage.width - w)), Math.round(clamp(y, 0, stage.height - h)), w, h];
}
