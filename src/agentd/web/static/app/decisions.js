/** Decisions about requests: those of this device, which wait in the outbox, and those of others. */

import { get } from "./api.js";
import { isHere, outcome } from "./asking.js";
import { discard, onAnswer, post } from "./outbox.js";
import { decided, requests, sessions, toast } from "./state.js";
import { oneLine } from "./text.js";

/** @import { Request } from "./types.js" */

/** Decisions that are kept for the inbox and for screens of one request. */
const MOST_DECIDED = 200;
/** Requests that this device decided. */
/** @type {Set<string>} */
const mine = new Set();

/** Requests that were seen to be closed: a list that is older may still have them. */
const closed = /** @type {Set<string>} */ (new Set());

/** @param {string} id of a request */
export const isClosed = (id) => closed.has(id);

/**
 * Take a request out of the inbox, and note how it was decided.
 *
 * @param {Request} request
 * @param {boolean} isMine whether this device decided
 * @returns {boolean} whether it was open here
 */
export function close(request, isMine) {
  closed.add(request.id);
  if (!requests.value.has(request.id)) return false;
  const open = new Map(requests.value);
  open.delete(request.id);
  requests.value = open;
  const known = decided.value.find((one) => one.request.id === request.id);
  const others = decided.value.filter((one) => one !== known);
  // A list that is older than the answer may have opened it again.
  decided.value = [{ request, at: Date.now(), mine: isMine || known?.mine === true }, ...others].slice(0, MOST_DECIDED);
  return true;
}

/**
 * Correct who decided a request: an event may have come before the answer that says so.
 *
 * @param {Request} request
 * @param {boolean} isMine
 */
function correct(request, isMine) {
  decided.value = decided.value.map((one) => (one.request.id === request.id ? { ...one, request, mine: isMine } : one));
}

/**
 * Take a decision out of the stream, and say whose it is if another made it.
 *
 * @param {Request} request
 */
export function noteDecision(request) {
  // Where this device answered too, the daemon's reply to it says who was first.
  const isMine = isHere(request);
  if (close(request, isMine) && !isMine && !mine.has(request.id)) toast(`${outcome(request)}: ${oneLine(request.text, 60)}`);
}

/**
 * Decide a request.
 *
 * @param {Request} request
 * @param {{ decision: string, option?: string, scope?: string, text?: string }} decision
 */
export function resolve(request, decision) {
  mine.add(request.id);
  return post("POST", `requests/${request.id}/resolve`, decision, request.id);
}

onAnswer((entry, answer) => {
  if (answer?.request) {
    const request = /** @type {Request} */ (answer.request);
    if (request.status === "pending") requests.value = new Map(requests.value).set(request.id, request);
    else {
      // Somebody else may have given the same answer before.
      const isMine = answer.decided_now !== false || isHere(request);
      if (!isMine) mine.delete(request.id);
      close(request, isMine);
      correct(request, isMine);
    }
  }
  if (answer?.session) sessions.value = new Map(sessions.value).set(answer.session.id, answer.session);
  if (entry.code === "already_resolved") void tooLate(entry);
});

/**
 * Show who decided a request before this device did.
 *
 * @param {import("./outbox.js").Entry} entry
 */
async function tooLate(entry) {
  mine.delete(entry.about);
  discard(entry.key);
  const { request } = await get(`requests/${entry.about}`);
  close(request, false);
  correct(request, false);
  toast(`Too late. ${outcome(request)} before you.`);
}
