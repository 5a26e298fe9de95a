// The service as functions: JSON, problems, the access token, pictures.

const TOKEN = "patchstore.token";

/** What the service refused, in words for people. */
export class Problem extends Error {
  /**
   * @param {string} title
   * @param {string} detail
   * @param {string} [requestId] under which the service's log has it
   */
  constructor(title, detail, requestId) {
    super([title, detail].filter(Boolean).join(": "));
    this.requestId = requestId;
  }
}

let askToken = async () => null;
let asking = null;

/** @param {(refused: boolean) => Promise<string|null>} ask asks the person; null: cancelled */
export function onUnauthorized(ask) {
  askToken = ask;
}

/**
 * GETs or POSTs; a FormData goes as a form, a string as the JSON that it is, anything else as JSON.
 * @param {string} path
 * @param {{body?: object|string, signal?: AbortSignal}} [options]
 * @returns {Promise<any>} the answer's JSON
 * @throws {Problem}
 */
export async function request(path, { body, signal } = {}) {
  const init = { signal };
  if (body) {
    init.method = "POST";
    const asIs = body instanceof FormData || typeof body === "string";
    init.body = asIs ? body : JSON.stringify(body);
    if (!(body instanceof FormData)) init.headers = { "Content-Type": "application/json" };
  }
  const answer = await send(path, init);
  if (!answer.ok) throw await problem(answer);
  return JSON.parse(await answer.text(), asWritten);
}

/** Whole numbers beyond 2^53 as they were written, where the browser tells how: not rounded. */
function asWritten(_key, value, { source } = {}) {
  const rounded = typeof value === "number" && !Number.isSafeInteger(value);
  return rounded && /^-?\d+$/.test(source) ? JSON.rawJSON(source) : value;
}

/**
 * Shows a picture of the service. With a token it must be fetched, for an <img> sends no header.
 * @param {HTMLImageElement} img
 * @param {string} path
 */
export function showPicture(img, path) {
  img.onerror = () => img.classList.add("gone");
  img.classList.remove("gone");
  if (!sessionStorage.getItem(TOKEN)) {
    img.src = path;
    return;
  }
  img.removeAttribute("src");
  img.dataset.path = path;
  inSight.observe(img);
}

const inSight = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      inSight.unobserve(target);
      fetchPicture(target, target.dataset.path);
    }
  },
  { rootMargin: "400px" },
);

async function fetchPicture(img, path) {
  try {
    const answer = await send(path);
    if (!answer.ok) throw await problem(answer);
    const url = URL.createObjectURL(await answer.blob());
    if (img.dataset.path === path) img.src = url;
    await img.decode().catch(() => {});
    URL.revokeObjectURL(url);
  } catch {
    if (img.dataset.path === path) img.classList.add("gone");
  }
}

async function send(path, init = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = new Headers(init.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let answer;
  try {
    answer = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer", "is it still running?");
  }
  if (answer.status !== 401) return answer;
  if (sessionStorage.getItem(TOKEN) === token) {
    // Several requests may be refused at once; the person is asked once.
    asking ??= askToken(token !== null).finally(() => (asking = null));
    const given = await asking;
    if (given === null) return answer;
    // What a header cannot hold was pasted along with the token, and may not even be seen.
    sessionStorage.setItem(TOKEN, given.replace(/[^\x21-\x7e]/g, ""));
  }
  return send(path, init);
}

async function problem(answer) {
  const told = await answer.json().catch(() => ({}));
  const title = told.title ?? `The service answered ${answer.status}`;
  const detail = typeof told.detail === "string" ? told.detail : "";
  return new Problem(title, detail, told.request_id);
}
