// A question and its options, as the service wants them.

import { request } from "./client.js";

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
    return request("/v1/search", { body: { ...fields, patch_id: question.id }, signal });
  }
  if (question.region) fields.region = question.region.join();
  if (options.consistent) fields.consistent = true;
  return request("/v1/search", { body: form(fields, file), signal });
}

/**
 * How far every patch of one image is from a question.
 * @param {string} spec
 * @param {number[]} vector of the question
 * @param {number} imageId
 * @param {AbortSignal} signal
 * @returns {Promise<Answer>}
 */
export function compareImage(spec, vector, imageId, signal) {
  const body = { spec, vector, image_ids: [imageId], k: 10_000, exact: true };
  return request("/v1/search", { body, signal });
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
  if (options.filter) fields.filter = JSON.parse(options.filter);
  if (options.prefix) fields.prefix = options.prefix;
  if (options.max) fields.max_distance = Number(options.max);
  return fields;
}

function form(fields, file) {
  const data = new FormData();
  data.append("image", file);
  for (const [name, value] of Object.entries(fields)) {
    data.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  return data;
}
