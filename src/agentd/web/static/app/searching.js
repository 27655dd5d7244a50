/** A search for sessions: loaded when somebody searches. */

import { NEXT, add, readPage, round, withParents } from "./pages.js";
import { sessions } from "./state.js";

/** Characters of a search that the daemon takes. */
const LONGEST = 200;

/**
 * Read sessions that have some words, also those that no list has shown yet.
 *
 * @param {string} words
 * @param {() => boolean} isWanted false when somebody looks for something else
 */
export async function readMatching(words, isWanted) {
  const current = round;
  let cursor = /** @type {string | undefined} */ (undefined);
  for (let count = 0; count < NEXT; ) {
    const page = await readPage("all", NEXT, cursor, words.slice(0, LONGEST));
    const found = await withParents(page.found, sessions.value.keys());
    if (current !== round || !isWanted()) return;
    add(found);
    count += page.found.length;
    if (!page.next) return;
    cursor = page.next;
  }
}
