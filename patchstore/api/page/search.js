// A question and its options, as the service wants them.

import { request } from "./client.js";

const MOST = 10_000; // hits of one answer
const AREAS = 200; // that are asked about: at one place thousands of patches may overlap

/**
 * @typedef {{spec: string, metric: string, exact: boolean, hits: Hit[],
 *   question: {image_ids: number[], patch_id: number|null, box: number[]|null,
 *     width: number|null, height: number|null, vector: number[]}}} Answer
 * @typedef {{patch_id: number, image_id: number, uri: string, box: number[], distance: number,
 *   metadata: object, matched: number|null, thumbnail: string}} Hit
 *
 * @param {import("./address.js").Question} question not of kind "image"
 * @param {import("./address.js").Options} options
 * @param {File} [file] of an upload
 * @param {AbortSignal} signal
 * @returns {Promise<Answer>}
 */
export function search(question, options, file, signal) {
  const fields = fieldsOf(options);
  if (question.kind === "patch") {
    return request("/v1/search", { body: json({ ...fields, patch_id: question.id }), signal });
  }
  if (question.region) fields.region = question.region.join();
  if (options.consistent) fields.consistent = true;
  return request("/v1/search", { body: form(fields, file), signal });
}

/**
 * How far every patch of one image is from a question. Where there are more than one answer holds,
 * the halves of the image are asked about, and their halves.
 * @param {string} spec
 * @param {number[]} vector of the question
 * @param {number} imageId
 * @param {Promise<{width: number, height: number}>} image
 * @param {AbortSignal} signal
 * @returns {Promise<Hit[]>} in no order
 */
export async function compareImage(spec, vector, imageId, image, signal) {
  const found = new Map();
  const question = { spec, vector, image_ids: [imageId], k: MOST, exact: true };
  let left = AREAS;
  async function ask(area) {
    if (left-- <= 0) return;
    const body = area ? { ...question, touching: area } : question;
    const { hits } = await request("/v1/search", { body, signal });
    for (const hit of hits) found.set(hit.patch_id, hit);
    if (hits.length < MOST) return;
    const { width, height } = await image;
    for (const half of halves(area ?? [0, 0, width, height])) await ask(half);
  }
  await ask(null);
  return [...found.values()];
}

/** @param {number[]} area x, y, width, height */
function halves([x, y, width, height]) {
  if (width * height < 2) return []; // a pixel has no halves
  if (width >= height) {
    const left = Math.floor(width / 2);
    return [
      [x, y, left, height],
      [x + left, y, width - left, height],
    ];
  }
  const top = Math.floor(height / 2);
  return [
    [x, y, width, top],
    [x, y + top, width, height - top],
  ];
}

function fieldsOf(options) {
  const fields = {
    spec: options.spec,
    k: Number(options.k),
    by: options.by,
    other_images: options.other,
    merge: options.merge,
    exact: options.exact,
    with_vector: true,
  };
  if (options.filter) fields.filter = options.filter;
  if (options.prefix) fields.prefix = options.prefix;
  if (options.max) fields.max_distance = Number(options.max);
  return fields;
}

/** As JSON, the filter as it was written: JavaScript's numbers lose digits beyond 2^53. */
function json({ filter, ...fields }) {
  const text = JSON.stringify(fields);
  return filter ? `${text.slice(0, -1)},"filter":${filter}}` : text;
}

function form(fields, file) {
  const data = new FormData();
  data.append("image", file);
  for (const [name, value] of Object.entries(fields)) data.append(name, String(value));
  return data;
}
