/** What stays in this browser: the lists that it showed last, for the next visit. */

import { batch } from "./lib.js";
import { isFresh, requests, sessions, work } from "./state.js";

const SNAPSHOT = "agentd.snapshot";

/** @param {string} name @returns {any} */
export function stored(name) {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "null");
  } catch {
    return null;
  }
}

/** Show what an earlier visit knew. */
export function restore() {
  const snapshot = stored(SNAPSHOT);
  if (!snapshot) return;
  batch(() => {
    sessions.value = new Map(snapshot.sessions);
    requests.value = new Map(snapshot.requests);
    work.value = new Map(snapshot.work);
  });
}

/** @param {string} name of a list @returns {number} how many rows it had at the last visit, to reserve their place */
export const rowsOf = (name) => Math.min(20, Number(localStorage.getItem(`agentd.rows.${name}`)) || 0);

/** @param {string} name @param {number} count */
export function keepRows(name, count) {
  if (!isCleared) localStorage.setItem(`agentd.rows.${name}`, String(count));
}

/** Whether nothing may be kept any more: a page that is left keeps what it shows otherwise. */
let isCleared = false;

/** Forget everything that this browser keeps. */
export function clearStorage() {
  isCleared = true;
  localStorage.clear();
  sessionStorage.clear();
}

/** Forget the lists, also those that are shown. */
export function dropLists() {
  localStorage.removeItem(SNAPSHOT);
  batch(() => {
    isFresh.value = false;
    sessions.value = new Map();
    requests.value = new Map();
    work.value = new Map();
  });
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let saveTimer;
export const saveSoon = () => (saveTimer ??= setTimeout(save, 3000));

export function save() {
  clearTimeout(saveTimer);
  saveTimer = undefined;
  if (!isFresh.value || isCleared) return;
  const newest = [...sessions.value].sort(([, a], [, b]) => b.updated_at.localeCompare(a.updated_at)).slice(0, 100);
  const ids = new Set([...newest.map(([id]) => id), ...[...requests.value.values()].map((request) => request.session_id)]);
  /** @param {[string, any]} entry */
  const isKept = ([id]) => ids.has(id);
  const snapshot = {
    sessions: [...sessions.value].filter(isKept),
    requests: [...requests.value],
    work: [...work.value].filter(isKept),
  };
  try {
    localStorage.setItem(SNAPSHOT, JSON.stringify(snapshot));
  } catch {
    localStorage.removeItem(SNAPSHOT);
  }
}

addEventListener("pagehide", save);
document.addEventListener("visibilitychange", () => document.hidden && save());
