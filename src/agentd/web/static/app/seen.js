/** What the user has seen of each session, on this device and on the others. */

import { change } from "./api.js";
import { signal } from "./lib.js";
import { stored } from "./storage.js";

const SEEN = "agentd.seen";

/** The `seq` up to which a session was seen on this device. */
export const seen = signal(/** @type {{ [session: string]: number }} */ (stored(SEEN) ?? {}));

/**
 * Take what the daemon says was seen on any device.
 *
 * @param {string} id @param {number} seq
 */
export function seenElsewhere(id, seq) {
  if (seq > (seen.value[id] ?? 0)) seen.value = { ...seen.value, [id]: seq };
}

/** @param {string} id @param {number} seq */
export function markSeen(id, seq) {
  if ((seen.value[id] ?? 0) >= seq) return;
  seen.value = { ...seen.value, [id]: seq };
  localStorage.setItem(SEEN, JSON.stringify(seen.value));
  seenSoon.add(id);
  seenTimer ??= setTimeout(sendSeen, 2000);
}

/** Sessions whose mark the daemon does not have yet. */
const seenSoon = /** @type {Set<string>} */ (new Set());
/** @type {ReturnType<typeof setTimeout> | undefined} */
let seenTimer;

/** Tell the daemon what was seen, so that the user's other devices know. A mark that is lost is no harm. */
async function sendSeen() {
  seenTimer = undefined;
  const ids = [...seenSoon];
  seenSoon.clear();
  for (const id of ids) await change("POST", `sessions/${encodeURIComponent(id)}/seen`, { seq: seen.value[id] }).catch(() => {});
}
