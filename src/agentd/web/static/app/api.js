/** Calls of the daemon's HTTP API. Addresses are relative to the page, so that it may be under any path. */

/** The address of the page, which ends with a slash. */
export const base = new URL("./", document.baseURI);

/** Milliseconds that the daemon's clock is ahead of this one. */
export let clockOffset = 0;

/** A refusal of the daemon. */
export class ApiError extends Error {
  /** @param {number} status @param {{ code?: string, message?: string, details?: any }} error @param {number} [retryAfter] */
  constructor(status, error, retryAfter) {
    super(error.message || `the daemon answered ${status}`);
    this.status = status;
    this.code = error.code ?? "internal";
    this.details = error.details ?? {};
    /** Seconds after which the daemon asks to repeat the call. */
    this.retryAfter = retryAfter;
  }
}

/** The daemon cannot be reached. */
export class Unreachable extends Error {
  constructor() {
    super("the daemon cannot be reached");
  }
}

export const TOKEN = "agentd.token";
export const DEVICE = "agentd.device";

/** The token that was typed in, if any. */
const storedToken = () => sessionStorage.getItem(TOKEN) ?? localStorage.getItem(TOKEN);

/** The device's id and secret with a dot between them, if this browser was let in as a device. */
const storedDevice = () => localStorage.getItem(DEVICE);

/** The id of this device; null if it is none. */
export const deviceId = () => storedDevice()?.split(".", 1)[0] ?? null;

/** Whether this browser has something to show to the daemon. */
export const hasCredentials = () => storedToken() !== null || storedDevice() !== null;

/**
 * Keep a token for this page's calls.
 *
 * @param {string} token
 * @param {boolean} remember also after the browser was closed
 */
export function keepToken(token, remember) {
  sessionStorage.removeItem(TOKEN);
  localStorage.removeItem(TOKEN);
  localStorage.removeItem(DEVICE);
  (remember ? localStorage : sessionStorage).setItem(TOKEN, token);
}

/**
 * Return the headers by which the daemon knows this browser.
 *
 * @returns {{ [name: string]: string }}
 */
export function credentials() {
  const token = storedToken();
  if (token) return { Authorization: `Bearer ${token}` };
  const device = storedDevice();
  return device ? { "Agentd-Device": device } : {};
}

/**
 * Send a request and return the response if it is a success.
 *
 * @param {string} path without a leading slash
 * @param {RequestInit & { headers?: { [name: string]: string } }} [options]
 * @throws {ApiError | Unreachable}
 */
export async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, base), {
      cache: "no-store",
      redirect: "error",
      ...options,
      headers: { ...credentials(), ...options.headers },
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  const date = Date.parse(response.headers.get("Date") ?? "");
  // The header has whole seconds: a smaller difference says nothing.
  if (date) clockOffset = Math.abs(date - Date.now()) > 2000 ? date - Date.now() : 0;
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  // A proxy's own answer means that the daemon behind it cannot be reached.
  if (!body?.error && response.status >= 502) throw new Unreachable();
  const retryAfter = Number(response.headers.get("Retry-After")) || undefined;
  throw new ApiError(response.status, body?.error ?? {}, retryAfter);
}

/**
 * @param {string} path
 * @param {{ [name: string]: string | number | boolean | null | undefined }} [query]
 * @returns {Promise<any>}
 */
export async function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return (await send(search ? `${path}?${search}` : path)).json();
}

/**
 * @param {string} method
 * @param {string} path
 * @param {object} body
 * @param {string} [key] idempotency key
 * @returns {Promise<any>}
 */
export async function change(method, path, body, key) {
  const headers = {
    "Content-Type": "application/json",
    ...(key ? { "Idempotency-Key": key } : {}),
  };
  return (await send(path, { method, headers, body: JSON.stringify(body) })).json();
}

/**
 * Return all items of a list, page by page.
 *
 * @param {string} path
 * @param {string} name of the list in the answer
 * @param {{ [name: string]: string | number | boolean | null | undefined }} query
 * @param {number} [most] maximum number of items
 * @returns {Promise<any[]>}
 */
export async function list(path, name, query, most = 5000) {
  const found = [];
  /** @type {string | undefined} */ let cursor;
  do {
    const page = await get(path, { limit: Math.min(1000, most - found.length), ...query, cursor });
    found.push(...page[name]);
    cursor = page.next_cursor ?? undefined;
  } while (cursor && found.length < most);
  return found;
}

/** Return a new idempotency key. */
export const newKey = () => `page-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
