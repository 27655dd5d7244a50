/** What the page calls a session, and the state that it shows. */

import { requests, sessionOf, status, work } from "./store.js";
import { oneLine } from "./text.js";

/** @import { Session } from "./types.js" */

/**
 * Return the titles of a session and of those above it, the topmost first.
 *
 * @param {string} id
 */
export function pathOf(id) {
  const path = [];
  for (let session = sessionOf(id); session && path.length < 12; session = sessionOf(session.parent_session_id))
    path.unshift({ id: session.id, title: titleOf(session) });
  return path.length ? path : [{ id, title: id }];
}

/** @param {Session} session */
export const titleOf = (session) => oneLine(session.title || `Session ${session.id.slice(-6)}`, 80);

/**
 * Return the state of a session, as a key of `STATES`.
 *
 * @param {Session} session
 */
export function stateOf(session) {
  for (const request of requests.value.values()) if (request.session_id === session.id) return "needs";
  const found = work.value.get(session.id)?.status;
  if (found === "running" || found === "waiting" || found === "queued") return found;
  if (session.status === "closed") return "closed";
  return found ?? "idle";
}

/** @param {Session} session */
export const providerOf = (session) =>
  session.provider ?? work.value.get(session.id)?.provider ?? status.value?.providers.find((one) => one.default)?.name ?? "";
