/**
 * The outbox: changes that the user made, kept on the device until the daemon has them. Each has an
 * idempotency key, so that a change that is sent again after a lost answer takes effect once.
 */

import { ApiError, Unreachable, change, newKey } from "./api.js";
import { signal } from "./lib.js";

/**
 * @typedef {{
 *   key: string, method: string, path: string, body: { [name: string]: any }, about: string,
 *   at: number, state: "waiting" | "sending" | "refused", error?: string, code?: string,
 * }} Entry
 */

const STORED = "agentd.outbox";

/** @returns {Entry[]} */
function read() {
  try {
    const entries = JSON.parse(localStorage.getItem(STORED) ?? "[]");
    return entries.map((/** @type {Entry} */ entry) =>
      entry.state === "sending" ? { ...entry, state: "waiting" } : entry,
    );
  } catch {
    return [];
  }
}

/** The changes that the daemon does not have yet, oldest first. */
export const outbox = signal(read());

/** @type {Map<string, (answer: any) => void>} */
const waiters = new Map();
/** @type {(entry: Entry, answer: any) => void} */
let onSent = () => {};
let sending = false;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** @param {Entry[]} entries */
function write(entries) {
  outbox.value = entries;
  localStorage.setItem(STORED, JSON.stringify(entries));
}

/** @param {string} key @param {Partial<Entry>} values */
const update = (key, values) =>
  write(outbox.value.map((entry) => (entry.key === key ? { ...entry, ...values } : entry)));

/** @param {string} key */
export const discard = (key) => write(outbox.value.filter((entry) => entry.key !== key));

/** @param {string} key */
export function retry(key) {
  update(key, { state: "waiting", error: undefined, code: undefined });
  void flush();
}

/** @param {(entry: Entry, answer: any) => void} listener called with each answer of the daemon */
export function onAnswer(listener) {
  onSent = listener;
}

/**
 * Queue a change. It is sent at once if the daemon can be reached, otherwise as soon as it can be.
 *
 * @param {string} method
 * @param {string} path
 * @param {{ [name: string]: any }} body
 * @param {string} about the object that it changes, such as a session's id
 * @returns {Promise<any>} the daemon's answer; null if it refused
 */
export function post(method, path, body, about) {
  const key = newKey();
  write([...outbox.value, { key, method, path, body, about, at: Date.now(), state: "waiting" }]);
  const answered = new Promise((resolve) => waiters.set(key, resolve));
  void flush();
  return answered;
}

/** Send what waits, in order. */
export async function flush() {
  clearTimeout(timer);
  if (sending) return;
  sending = true;
  try {
    for (;;) {
      const entry = outbox.value.find((one) => one.state === "waiting");
      if (!entry) return;
      update(entry.key, { state: "sending" });
      try {
        const answer = await change(entry.method, entry.path, entry.body, entry.key);
        discard(entry.key);
        onSent(entry, answer);
        waiters.get(entry.key)?.(answer);
      } catch (error) {
        if (error instanceof ApiError && error.status !== 503 && error.status !== 429) {
          update(entry.key, { state: "refused", error: error.message, code: error.code });
          onSent({ ...entry, state: "refused", code: error.code }, null);
          waiters.get(entry.key)?.(null);
        } else if (error instanceof ApiError || error instanceof Unreachable) {
          update(entry.key, { state: "waiting" });
          const seconds = error instanceof ApiError ? (error.retryAfter ?? 5) : 5;
          timer = setTimeout(() => void flush(), seconds * 1000);
          return;
        } else throw error;
      }
      waiters.delete(entry.key);
    }
  } finally {
    sending = false;
  }
}

addEventListener("online", () => void flush());
// Another tab of the same browser changes the same list.
addEventListener("storage", (event) => {
  if (event.key === STORED && !sending) outbox.value = read();
});
