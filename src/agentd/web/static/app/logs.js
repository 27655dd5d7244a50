/** The logs of the sessions that were opened last. */

import { Log } from "./log.js";
import { fetchSession } from "./reading.js";
import { sessions } from "./state.js";

/** @import { Event } from "./types.js" */

/** @type {Map<string, Log>} */
const logs = new Map();

/**
 * Return the log of a session. It is kept, so that it opens at once the next time.
 *
 * @param {string} id
 */
export function logOf(id) {
  let log = logs.get(id);
  if (!log) {
    log = new Log(id);
    logs.set(id, log);
    // The logs of the sessions that were open last stay in memory.
    if (logs.size > 6) logs.delete([...logs.keys()][0]);
  }
  return log;
}

/**
 * Read a session and the end of its log, as soon as it is known that it will be shown.
 *
 * @param {string} id
 */
export async function readAhead(id) {
  if (!sessions.value.has(id)) await fetchSession(id);
  const session = sessions.value.get(id);
  const log = logOf(id);
  if (session && !log.isOpen.value) await log.open(session.last_seq);
}

/**
 * @param {string} id of a session
 * @param {Event[]} events that the stream has of it
 */
export const followLog = (id, events) => logs.get(id)?.follow(events);

/** Read what came while there was no connection. */
export function fillLogs() {
  for (const log of logs.values()) {
    if (log.isOpen.value) void log.fill();
    // What is read now may be older than what the stream begins with.
    else log.missed = true;
  }
}

export const clearLogs = () => logs.clear();
