// What is asked, as the part of the address after #: a link to it can be kept, shared and gone back to.

/**
 * @typedef {{kind: "patch", id: number}
 *   | {kind: "image", id: number}
 *   | {kind: "upload", id: string, region: number[]|null}} Question
 * "image" is a stored image of which no patch is picked yet; "upload" is only known to this page.
 *
 * @typedef {{spec: string, by: "patch"|"image", other: boolean, merge: boolean,
 *   consistent: boolean, exact: boolean, k: string, filter: string, prefix: string,
 *   max: string}} Options as the controls hold them
 */

/** @type {Options} */
export const DEFAULTS = Object.freeze({
  spec: "",
  by: "patch",
  other: false,
  merge: false,
  consistent: false,
  exact: false,
  k: "24",
  filter: "",
  prefix: "",
  max: "",
});

/**
 * @param {string} hash
 * @returns {{question: Question|null, options: Options}}
 */
export function parse(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const options = { ...DEFAULTS };
  for (const [key, value] of Object.entries(DEFAULTS)) {
    if (given.has(key)) options[key] = typeof value === "boolean" ? true : given.get(key);
  }
  return { question: parseQuestion(given), options };
}

/**
 * @param {Question} question
 * @param {Options} options
 */
export function format(question, options) {
  const parts = new URLSearchParams(questionParts(question));
  for (const [key, value] of Object.entries(options)) {
    // Only a picture of several patches has an arrangement.
    if (key === "consistent" && question.kind !== "upload") continue;
    if (value !== DEFAULTS[key]) parts.set(key, value === true ? "1" : value);
  }
  return `#${String(parts).replaceAll("%2C", ",")}`;
}

function parseQuestion(given) {
  if (given.has("patch")) return { kind: "patch", id: Number(given.get("patch")) };
  if (given.has("image")) return { kind: "image", id: Number(given.get("image")) };
  if (given.has("upload")) {
    const region = given.get("region")?.split(",").map(Number) ?? null;
    return { kind: "upload", id: given.get("upload"), region };
  }
  return null;
}

function questionParts(question) {
  const parts = { [question.kind]: String(question.id) };
  if (question.region) parts.region = question.region.join();
  return parts;
}
