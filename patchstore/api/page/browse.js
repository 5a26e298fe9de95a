// The stored pictures, page by page, to start from.

import { request, showPicture } from "./client.js";
import { element, nameOf } from "./hits.js";

const PAGE = 24;

/**
 * @param {(imageId: number) => string} linkTo
 * @returns {{open: (spec: string|undefined) => void}} asks at the first time, and of another spec
 */
export function makeBrowser(linkTo) {
  const [list, note, more, prefix] = ["stored", "stored-note", "stored-more", "stored-prefix"].map(
    (id) => document.getElementById(id),
  );
  let next = null;
  let begun = false;
  let of;
  let running = new AbortController();
  let timer = 0;

  async function load(after) {
    running.abort();
    running = new AbortController();
    const asked = new URLSearchParams({ limit: PAGE });
    if (of) asked.set("spec", of);
    if (prefix.value) asked.set("prefix", prefix.value);
    if (after) asked.set("after", after);
    try {
      const page = await request(`/v1/images?${asked}`, { signal: running.signal });
      const items = page.images.map((image) => item(image, linkTo));
      if (after) list.append(...items);
      else list.replaceChildren(...items);
      if (after) items[0]?.firstChild.focus();
      next = page.next;
      more.hidden = next === null;
      note.textContent = list.children.length ? "" : nothing(prefix.value, of);
      begun = true;
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = error.message;
    }
  }

  more.addEventListener("click", () => load(next));
  prefix.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, 200);
  });

  return {
    /** Lists what has patches under the spec: the others lead nowhere. */
    open(spec) {
      if (begun && spec === of) return;
      of = spec;
      load();
    },
  };
}

function item(image, linkTo) {
  const made = document.createElement("li");
  const link = document.createElement("a");
  link.href = linkTo(image.image_id);
  link.title = image.uri;
  const img = document.createElement("img");
  img.loading = "lazy";
  img.alt = "";
  showPicture(img, `/v1/images/${image.image_id}/picture.jpg?side=256`);
  link.append(img, element("span", "name", nameOf(image.uri)));
  made.append(link);
  return made;
}

function nothing(prefix, spec) {
  if (prefix) return `No stored picture's path begins with ${prefix}`;
  if (spec) return `No picture has patches of ${spec} yet: patchstore ingest FOLDER --spec ${spec}`;
  return "The store holds no pictures yet. Add some with: patchstore ingest FOLDER";
}
