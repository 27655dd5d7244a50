/**
 * The pages of the daemon's lists of sessions that this page reads: the newest of all, and those of each
 * state, in which also a session that was not touched for long is found at once.
 */

import { get } from "./api.js";
import { batch, signal } from "./lib.js";
import { putSession } from "./reading.js";
import { route } from "./route.js";
import { sessions, work } from "./state.js";

/** @import { Session } from "./types.js" */

/**
 * @typedef {"needs-you" | "working" | "queued" | "failed" | "done" | "all"} List a state of sessions, or all of them
 * @typedef {{ session: Session, activity: any }} Found
 */

/** Sessions that are read at once, the newest first: the first time, and each time after it. */
const FIRST = 1000;
export const NEXT = 200;

/** Where the next page of each list begins. A list that was read to its end is not there. */
export const cursors = signal(/** @type {{ [list: string]: string }} */ ({}));

/** Lists whose first page was not read yet. @type {List[]} */
let unread = [];

/** Changes when the lists are read anew: what was asked for before is of no use then. */
export let round = 0;

/** Sessions that cannot be read, such as the one above a shared session. */
const hidden = /** @type {Set<string>} */ (new Set());

/**
 * Read a page of a list.
 *
 * @param {List} name
 * @param {number} limit
 * @param {string} [cursor]
 * @param {string} [q] words that the sessions must have
 * @returns {Promise<{ name: List, found: Found[], next: string | null }>}
 */
export async function readPage(name, limit, cursor, q) {
  const state = name === "all" ? null : name;
  const page = await get("sessions", { order: "newest", activity: true, state, q, limit, cursor });
  const found = page.sessions.map((/** @type {Session} */ session, /** @type {number} */ index) => ({ session, activity: page.activity[index] }));
  return { name, found, next: page.next_cursor };
}

/** @param {string} id @returns {Promise<Found | null>} */
async function readParent(id) {
  try {
    return await get(`sessions/${encodeURIComponent(id)}`, { activity: true });
  } catch {
    hidden.add(id);
    return null;
  }
}

/**
 * Return the sessions with those above them that are not known: a helper is shown below the one that
 * started it, never alone first.
 *
 * @param {Found[]} found
 * @param {Iterable<string>} known ids of sessions
 */
export async function withParents(found, known) {
  const all = [...found];
  const ids = new Set(known);
  for (const { session } of found) ids.add(session.id);
  for (let last = found; last.length; ) {
    const above = new Set(last.map(({ session }) => session.parent_session_id ?? ""));
    const missing = [...above].filter((id) => id && !ids.has(id) && !hidden.has(id));
    last = (await Promise.all(missing.map(readParent))).filter((one) => one !== null);
    for (const { session } of last) ids.add(session.id);
    all.push(...last);
  }
  return all;
}

/** @param {List} name @param {string | null} next */
function moveCursor(name, next) {
  const others = Object.entries(cursors.value).filter(([list]) => list !== name);
  cursors.value = Object.fromEntries(next ? [...others, [name, next]] : others);
}

/**
 * Read what the first look shows: the newest sessions, and all that need the user or are at work.
 *
 * @returns {Promise<() => void>} what puts them in place of those that are shown
 */
export async function readFirst() {
  const current = ++round;
  hidden.clear();
  const pages = await Promise.all([readPage("all", FIRST), readPage("needs-you", NEXT), readPage("working", NEXT)]);
  const found = await withParents(pages.flatMap((page) => page.found), []);
  return () => {
    if (current !== round) return;
    const open = route.value.name === "s" ? route.value.id : "";
    const [shown, run] = [sessions.value.get(open), work.value.get(open)];
    sessions.value = new Map();
    work.value = new Map();
    // What is shown stays, also if it is older than the lists.
    if (shown) putSession(shown);
    if (shown && run) work.value.set(open, run);
    for (const { session, activity } of found) putSession(session, activity);
    cursors.value = {};
    for (const { name, next } of pages) moveCursor(name, next);
    // Otherwise the first page has all of them.
    unread = pages[0].next ? ["queued", "failed", "done"] : [];
  };
}

/** Read the first page of the other lists. These take the daemon longer, so nothing waits for them. */
export async function readOthers() {
  const current = round;
  while (unread.length && current === round) {
    const [name] = unread;
    try {
      await read(name);
    } catch {
      return; // the next connection goes on
    }
    if (current === round) unread = unread.filter((one) => one !== name);
  }
}

/** @type {Set<List>} */
const reading = new Set();

/**
 * Read the next page of a list that has one, and further ones until something is found.
 *
 * @param {List} name
 * @throws {import("./api.js").ApiError | import("./api.js").Unreachable}
 */
export async function readMore(name) {
  if (reading.has(name)) return;
  reading.add(name);
  try {
    while (cursors.value[name] && !(await read(name, cursors.value[name])));
  } finally {
    reading.delete(name);
  }
}

/**
 * Read a page of a list and show what it has.
 *
 * @param {List} name
 * @param {string} [cursor]
 * @returns {Promise<boolean>} whether nothing more needs to be read now
 */
async function read(name, cursor) {
  const current = round;
  const page = await readPage(name, NEXT, cursor);
  const found = await withParents(page.found, sessions.value.keys());
  if (current !== round) return true;
  let count = 0;
  batch(() => {
    count = add(found);
    moveCursor(name, page.next);
  });
  return count > 0;
}

/** Add sessions that are not known. @param {Found[]} found @returns {number} how many were added */
export function add(found) {
  // The events since the answer have changed the sessions that are known.
  const added = found.filter(({ session }) => !sessions.value.has(session.id));
  batch(() => {
    sessions.value = new Map(sessions.value);
    work.value = new Map(work.value);
    for (const { session, activity } of added) putSession(session, activity);
  });
  return added.length;
}
