// The stored patches of a picture on a stage: one is picked by a click, or by arrow keys and Enter.

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {{patch_id: number, box: number[]}} Patch
 *
 * @param {ReturnType<import("./stage.js").makeStage>} stage
 * @param {{picked: (patch: Patch) => void, pointed?: (patch: Patch) => void}} tell
 */
export function makePatchPicker(stage, { picked, pointed = () => {} }) {
  const dots = document.createElementNS(SVG, "svg");
  dots.classList.add("dots");
  dots.setAttribute("preserveAspectRatio", "none");
  dots.setAttribute("aria-hidden", "true");
  const centres = dots.appendChild(document.createElementNS(SVG, "path"));
  stage.root.append(dots);
  const chosen = stage.mark("mark");
  const cursor = stage.mark("mark cursor");
  let patches = [];
  let at = null;

  function point(patch) {
    at = patch;
    stage.place(cursor, patch?.box ?? null);
  }

  stage.root.addEventListener("pointermove", (event) => {
    if (patches.length && event.pointerType !== "touch") point(nearest(patches, stage.point(event)));
  });
  stage.root.addEventListener("pointerleave", () => stage.place(cursor, null));
  stage.root.addEventListener("click", (event) => {
    if (patches.length) picked(nearest(patches, stage.point(event)));
  });
  stage.root.addEventListener("keydown", (event) => {
    if (!patches.length) return;
    if (ARROWS[event.key]) {
      point(at ? neighbour(patches, at, ARROWS[event.key]) : patches[0]);
      pointed(at);
    } else if (event.key === "Enter" && at) {
      picked(at);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });

  return {
    /**
     * @param {Patch[]} all
     * @param {number[]|null} box what is marked as chosen
     */
    show(all, box) {
      patches = all;
      stage.root.classList.toggle("pickable", all.length > 0);
      dots.setAttribute("viewBox", `0 0 ${stage.width} ${stage.height}`);
      const drawn = all.map(({ box: [x, y, w, h] }) => `M${x + w / 2} ${y + h / 2}h0`);
      centres.setAttribute("d", drawn.join(""));
      point(null);
      this.choose(box);
    },
    choose(box) {
      at = patches.find((patch) => String(patch.box) === String(box)) ?? null;
      stage.place(chosen, box);
    },
    hide() {
      this.show([], null);
    },
  };
}

/** Of the patches around a point the one whose centre is nearest; of equally near ones the smallest. */
export function nearest(patches, [px, py]) {
  const around = patches.filter(
    ({ box: [x, y, w, h] }) => x <= px && px < x + w && y <= py && py < y + h,
  );
  return least(around.length ? around : patches, ({ box: [x, y, w, h] }) => [
    Math.hypot(x + w / 2 - px, y + h / 2 - py),
    w * h,
  ]);
}

function neighbour(patches, from, [dx, dy]) {
  const [x, y, w, h] = from.box;
  const ahead = patches
    .map((patch) => {
      const [qx, qy, qw, qh] = patch.box;
      const [right, down] = [qx + qw / 2 - x - w / 2, qy + qh / 2 - y - h / 2];
      const [along, across] = [right * dx + down * dy, Math.abs(right * dy + down * dx)];
      return { patch, along, across, grown: Math.abs(Math.log(qw / w)) };
    })
    .filter(({ along, across }) => along > 0 && across <= along);
  if (!ahead.length) return from;
  return least(ahead, ({ along, across, grown }) => [Math.round(grown), along + 2 * across]).patch;
}

function least(items, key) {
  return items
    .map((item) => [item, key(item)])
    .reduce((best, next) => (before(next[1], best[1]) ? next : best))[0];
}

function before(one, other) {
  const at = one.findIndex((value, i) => value !== other[i]);
  return at >= 0 && one[at] < other[at];
}
