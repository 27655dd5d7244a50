/** Reads of single objects: a session, its requests, the daemon's status. */

import { get, list } from "./api.js";
import { isClosed } from "./decisions.js";
import { batch, useEffect, useState } from "./lib.js";
import { seenElsewhere } from "./seen.js";
import { isFresh, requests, sessions, status, work } from "./state.js";

/** @import { Session } from "./types.js" */
/** @import { Work } from "./state.js" */

/**
 * Put a session into the lists, with what the daemon says of its activity.
 *
 * @param {Session} session
 * @param {any} [activity]
 */
export function putSession(session, activity) {
  sessions.value.set(session.id, session);
  if (activity?.run) work.value.set(session.id, workOf(activity.run));
  if (activity) seenElsewhere(session.id, activity.seen_seq);
}

/** @param {any} run a run, or its state in a list of sessions @returns {Work} */
export const workOf = (run) => ({
  run: run.id,
  status: run.status,
  at: run.started_at ?? run.created_at,
  provider: run.provider,
  host: run.host ?? undefined,
  sandbox: run.sandbox ?? undefined,
  cost: run.cost_usd ?? run.usage?.cost_usd ?? undefined,
  error: run.error?.message ?? run.error_code ?? undefined,
});

/** @type {Map<string, Promise<void>>} */
const fetching = new Map();

/** @param {string} key @param {() => Promise<void>} read */
function once(key, read) {
  const known = fetching.get(key);
  if (known) return known;
  const begun = read()
    .catch(() => {})
    .finally(() => fetching.delete(key));
  fetching.set(key, begun);
  return begun;
}

/** What is to be read again, because of events since it was asked for. */
const again = /** @type {Set<string>} */ (new Set());

/**
 * Read the requests of a session that the caller may decide.
 *
 * @param {string} sessionId
 * @returns {Promise<void>}
 */
export function fetchRequests(sessionId) {
  const key = `requests/${sessionId}`;
  if (fetching.has(key)) again.add(key);
  return once(key, async () => {
    do {
      again.delete(key);
      const query = { status: "pending", session_id: sessionId, resolvable: true };
      const found = (await list("requests", "requests", query)).filter(({ id }) => !isClosed(id));
      const others = [...requests.value].filter(([, request]) => request.session_id !== sessionId);
      requests.value = new Map([...others, ...found.map((one) => /** @type {const} */ ([one.id, one]))]);
    } while (again.has(key));
  });
}

/**
 * Read a session. One that changes while it is read is read again.
 *
 * @param {string} id
 */
export function fetchSession(id) {
  const key = `session/${id}`;
  if (fetching.has(key)) again.add(key);
  return once(key, async () => {
    do {
      again.delete(key);
      const { session, activity } = await get(`sessions/${encodeURIComponent(id)}`, { activity: true });
      // Events that overtook the answer have told more than it does, but not where the agent works.
      if ((sessions.value.get(id)?.last_seq ?? 0) > session.last_seq) {
        notePlace(id, activity?.run);
        return;
      }
      batch(() => {
        sessions.value = new Map(sessions.value);
        work.value = new Map(work.value);
        putSession(session, activity);
      });
    } while (again.has(key));
  });
}

/** @param {string} id of a session @param {any} run the one that was read, which may not be the newest any more */
function notePlace(id, run) {
  const known = work.value.get(id);
  if (!run || !known || known.run !== run.id) return;
  const { host, sandbox } = workOf(run);
  work.value = new Map(work.value).set(id, { ...known, host, sandbox });
}

/**
 * Return a session; read it if the page does not have it yet.
 *
 * @param {string | null} id
 */
export function sessionOf(id) {
  if (!id) return undefined;
  const session = sessions.value.get(id);
  if (!session && isFresh.value && !missing.has(id)) {
    missing.add(id);
    void fetchSession(id);
  }
  return session;
}

/** @type {Set<string>} */
const missing = new Set();

export const refreshStatus = () =>
  once("status", async () => {
    status.value = await get("daemon/status");
  });

/**
 * Read something for a screen, anew whenever an input changes.
 *
 * @template T
 * @param {() => Promise<T>} read
 * @param {any[]} inputs
 * @returns {[T | null, string]} null while it is read, and why it cannot be
 */
export function useRead(read, inputs) {
  const [found, setFound] = useState(/** @type {T | null} */ (null));
  const [error, setError] = useState("");
  useEffect(() => {
    let isCurrent = true;
    setError("");
    read().then(
      (answer) => isCurrent && setFound(() => answer),
      (reason) => isCurrent && setError(reason.message),
    );
    return () => {
      isCurrent = false;
    };
  }, inputs);
  return [found, error];
}

