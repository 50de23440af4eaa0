// The server: where it is, with which key, and what it answers.

import { toJSON } from "./seeds.js";

const root = document.documentElement;

/** Of another server, when the page's address names one; "" for the one that served this page. */
export const backend = root.dataset.backend;
/** Where requests and keys go. */
export const host = new URL(backend || location.href).host;
/** Absolute, with a slash at the end; a server behind a path prefix works too. */
export const base = backend ? `${backend}/` : new URL(".", location.href).href;

// One key for each server: a key is never sent to a server that it was not given for.
const keyName = `dalle-server.key ${base}`;

export const getKey = () => localStorage.getItem(keyName) ?? "";
export const setKey = (key) => (key ? localStorage.setItem(keyName, key) : localStorage.removeItem(keyName));

/** What the server, or the way to it, refused. status 0: no answer at all. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "unreachable", param = null, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** A header is made of bytes: fetch refuses a character beyond Latin-1, and the server reads UTF-8. */
const bytesOf = (text) => String.fromCharCode(...new TextEncoder().encode(text));

export async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (getKey()) sent.Authorization = `Bearer ${bytesOf(getKey())}`;
  const isForm = body instanceof FormData; // it names its own type, with the boundary between its parts
  if (body && !isForm) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\//, ""), base), {
      method, headers: sent, signal, body: isForm ? body : body && toJSON(body), credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`no answer from ${host}`);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

export const getJSON = async (path, options) => (await request(path, options)).json();

async function failure(response) {
  const body = await response.json().catch(() => null);
  const error = body?.error ?? body ?? {};
  const message = error.message ?? body?.detail ?? `the server answered ${response.status} ${response.statusText}`;
  return new ApiError(message, {
    status: response.status,
    code: error.code ?? "unknown",
    param: error.param ?? null,
    retryAfter: Number(response.headers.get("Retry-After")) || 0,
  });
}

const blobs = new Map();

/** An address that an <img> can show. With a key the picture is fetched, since an <img> cannot send one. */
export function pictureSource(url) {
  const absolute = new URL(url.replace(/^\//, ""), base).href;
  if (!getKey() && !backend) return Promise.resolve(absolute);
  if (!blobs.has(url)) {
    const fetched = request(url).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob));
    fetched.catch(() => blobs.delete(url));
    blobs.set(url, fetched);
  }
  return blobs.get(url);
}

export function forgetPicture(url) {
  blobs.get(url)?.then(URL.revokeObjectURL, () => {});
  blobs.delete(url);
}

/** A file as text. */
export function dataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    Object.assign(reader, { onload: () => resolve(reader.result), onerror: () => reject(reader.error) });
    reader.readAsDataURL(blob);
  });
}
