// The answer as a grid of pictures.

import { showPicture } from "./client.js";

/**
 * @param {HTMLOListElement} list
 * @param {import("./search.js").Hit[]} hits
 * @param {{metric: string, whole: boolean, linkTo: (hit: object) => string,
 *   open: (index: number) => void}} how `whole`: pictures show whole images
 */
export function showHits(list, hits, how) {
  const focused = [...list.children].findIndex((item) => item.contains(document.activeElement));
  list.replaceChildren(
    ...hits.map((hit, index) => {
      const item = document.createElement("li");
      item.append(figure(hit, index, how));
      return item;
    }),
  );
  list.children[focused]?.querySelector(".open").focus({ preventScroll: true });
}

/** @param {HTMLOListElement} list */
export function showSkeleton(list) {
  const blanks = Array.from({ length: 8 }, () => {
    const item = document.createElement("li");
    item.className = "skeleton";
    return item;
  });
  list.replaceChildren(...blanks);
}

/** @param {string} uri */
export function nameOf(uri) {
  return uri.split("/").pop() || uri;
}

/** @param {number[]} box */
export function boxText([x, y, width, height]) {
  return `x ${x}, y ${y}, ${width}\u00a0×\u00a0${height}`; // never broken before a number
}

/** An element with text; never markup, for file names may hold anything. */
export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function figure(hit, index, { metric, whole, linkTo, open }) {
  const name = nameOf(hit.uri);
  const distance = hit.distance.toFixed(4);
  const made = element("figure", "hit");
  const img = document.createElement("img");
  img.loading = "lazy";
  img.decoding = "async";
  img.alt = "";
  showPicture(img, whole ? `/v1/images/${hit.image_id}/picture.jpg?side=384` : hit.thumbnail);

  const caption = document.createElement("figcaption");
  const measured = element("span", "measured");
  measured.append(element("b", "distance", distance), ` ${metric}`);
  const opener = element("button", "open");
  opener.type = "button";
  opener.title = hit.uri;
  opener.setAttribute("aria-label", `${name}: hit ${index + 1}, ${metric} distance ${distance}`);
  opener.append(element("span", "name", name));
  opener.addEventListener("click", () => open(index));
  caption.append(measured, opener, element("span", "box", boxText(hit.box)));
  if (hit.matched !== null) caption.append(element("span", "matched", agreed(hit.matched)));
  const onward = element("a", "onward", "Search from here");
  onward.href = linkTo(hit);
  onward.setAttribute("aria-label", `Search from here: ${name}`);
  caption.append(onward);
  made.append(img, caption);
  return made;
}

function agreed(count) {
  return count === 1 ? "1 patch agrees" : `${count} patches agree`;
}
