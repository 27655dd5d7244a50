/** What the page knows: the daemon's lists and the connection, as signals. */

import { clockOffset } from "./api.js";
import { computed, signal } from "./lib.js";

/** @import { ApiError } from "./api.js" */
/** @import { DaemonStatus, Request, Session } from "./types.js" */
/** @import { StreamState } from "./stream.js" */

/**
 * @typedef {{
 *   run: string, status: string, at: string, provider: string, host?: string, sandbox?: string, cost?: number, error?: string,
 * }} Work the active run of a session, else its newest
 * @typedef {{ request: Request, at: number, mine: boolean }} Decided
 */

export const connection = signal(/** @type {StreamState} */ ("connecting"));
/** When the connection was lost, in milliseconds; 0 if it is live. */
export const lostAt = signal(Date.now());
/** Why the daemon refused the page; null if it did not. */
export const refusal = signal(/** @type {ApiError | null} */ (null));
/** Whether the lists are those of the daemon, not those of an earlier visit. */
export const isFresh = signal(false);
export const sessions = signal(/** @type {Map<string, Session>} */ (new Map()));
/** Open requests that the caller may decide. */
export const requests = signal(/** @type {Map<string, Request>} */ (new Map()));
/** Requests that were decided while the page was open, newest first. */
export const decided = signal(/** @type {Decided[]} */ ([]));
export const work = signal(/** @type {Map<string, Work>} */ (new Map()));
export const status = signal(/** @type {DaemonStatus | null} */ (null));
/** Problems of the daemon, each in words. That agents have no sandbox is a choice: a mark that never goes away says nothing. */
export const warnings = computed(() => (status.value?.problems ?? []).filter(({ code }) => code !== "agents_unconfined").map(({ message }) => String(message)));
/** Whether the daemon has another version of the page. */
export const isNewVersion = signal(false);
/** Whether the page shows what a share link lets it read, and can change nothing. */
export const isReader = signal(sessionStorage.getItem("agentd.reader") === "yes");

/** @param {boolean} value */
export function setReader(value) {
  isReader.value = value;
  if (value) sessionStorage.setItem("agentd.reader", "yes");
  else sessionStorage.removeItem("agentd.reader");
}

export const toasts = signal(/** @type {{ id: number, text: string }[]} */ ([]));
/** The time by the daemon's clock, in milliseconds; changes once a second while the page is visible. */
export const now = signal(Date.now());

/** Requests by deadline, the first first. */
export const inbox = computed(() =>
  [...requests.value.values()].sort((a, b) => a.expires_at.localeCompare(b.expires_at) || a.id.localeCompare(b.id)),
);

/** @param {string} state */
export const isOver = (state) => state === "completed" || state === "failed" || state === "canceled";

/** @param {string} text */
export function toast(text) {
  const id = Math.random();
  toasts.value = [...toasts.value, { id, text }].slice(-3);
  setTimeout(() => (toasts.value = toasts.value.filter((one) => one.id !== id)), 6000);
}

const tick = () => {
  if (!document.hidden) now.value = Date.now() + clockOffset;
};
setInterval(tick, 1000);
document.addEventListener("visibilitychange", tick);
