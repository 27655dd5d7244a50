/**
 * What the page knows: the daemon's lists, kept up to date by the stream of events. The lists are read
 * once, at the stream's head; from then on each change is an event.
 */

import { ApiError, change, clockOffset, get, list } from "./api.js";
import { outcome } from "./asking.js";
import { batch, computed, signal } from "./lib.js";
import { Log } from "./log.js";
import { discard, flush, onAnswer, post } from "./outbox.js";
import { follow } from "./stream.js";
import { oneLine } from "./text.js";

/** @import { DaemonStatus, Event, Request, Session } from "./types.js" */
/** @import { StreamState } from "./stream.js" */

/**
 * @typedef {{
 *   run: string, status: string, at: string, provider: string, host?: string, cost?: number, error?: string,
 * }} Work the active run of a session, else its newest
 * @typedef {{ request: Request, at: number, mine: boolean }} Decided
 */

const SNAPSHOT = "agentd.snapshot";
const SEEN = "agentd.seen";
/** After so many milliseconds without a connection the lists are read anew instead of all events. */
const LONG_AWAY_MS = 10 * 60_000;

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
/** The `seq` up to which a session was seen on this device. */
export const seen = signal(/** @type {{ [session: string]: number }} */ (stored(SEEN) ?? {}));
/** Whether the page shows what a share link lets it read, and can change nothing. */
export const isReader = signal(sessionStorage.getItem("agentd.reader") === "yes");
export const toasts = signal(/** @type {{ id: number, text: string }[]} */ ([]));
/** The time by the daemon's clock, in milliseconds; changes once a second while the page is visible. */
export const now = signal(Date.now());

/** Requests by deadline, the first first. */
export const inbox = computed(() =>
  [...requests.value.values()].sort((a, b) => a.expires_at.localeCompare(b.expires_at) || a.id.localeCompare(b.id)),
);

/** @type {Map<string, Log>} */
const logs = new Map();
/** @type {Set<string>} */
const mine = new Set();
/** @type {string | null} */
let cursor = null;
/** @type {Event[]} */
let queue = [];
let loading = false;
let isLoaded = false;
/** @type {{ close(): void, reconnect(): void } | null} */
let stream = null;

/** @param {string} name @returns {any} */
function stored(name) {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "null");
  } catch {
    return null;
  }
}

// --- the stream --------------------------------------------------------------------------------

/** Show what an earlier visit knew, and connect. */
export function start() {
  const snapshot = stored(SNAPSHOT);
  if (snapshot && !isLoaded) {
    batch(() => {
      sessions.value = new Map(snapshot.sessions);
      requests.value = new Map(snapshot.requests);
      work.value = new Map(snapshot.work);
    });
  }
  stream?.close();
  refusal.value = null;
  stream = follow({
    cursor: () => cursor ?? "head",
    onEvents: receive,
    onCaughtUp: caughtUp,
    onState: (state) =>
      batch(() => {
        connection.value = state;
        if (state === "lost" && !lostAt.value) lostAt.value = Date.now();
        if (state === "connecting" && lostAt.value && Date.now() - lostAt.value > LONG_AWAY_MS) forget();
      }),
    onRefused: (error) => {
      if (error.code === "cursor_ahead" || error.status === 410 || error.status === 400) {
        // The database was restored from a backup: begin again.
        forget();
        logs.clear();
        setTimeout(start, 1000);
      } else refusal.value = error;
    },
  });
}

function forget() {
  cursor = null;
  isLoaded = false;
}

/** Whether nothing may be kept any more: a page that is left keeps what it shows otherwise. */
let isCleared = false;

/** Forget everything that this device knows. */
export function clearDevice() {
  isCleared = true;
  stream?.close();
  localStorage.clear();
  sessionStorage.clear();
}

/** @param {Event[]} events @param {string} newCursor */
function receive(events, newCursor) {
  cursor = newCursor;
  queue.push(...events);
  if (isLoaded && !loading) drain();
}

/** @param {string | null} headCursor */
function caughtUp(headCursor) {
  cursor ??= headCursor;
  batch(() => {
    connection.value = "live";
    lostAt.value = 0;
  });
  void flush();
  if (!isLoaded) void load();
  for (const log of logs.values()) if (log.isOpen.value) void log.fill();
}

/** Sessions that are read at once, the newest first. */
const MOST_SESSIONS = 1000;

/** Read the lists. */
async function load() {
  if (loading) return;
  loading = true;
  try {
    const [found, open, daemon] = await Promise.all([
      get("sessions", { order: "newest", activity: true, limit: MOST_SESSIONS }),
      list("requests", "requests", { order: "deadline" }),
      // A share link does not show the daemon's state.
      get("daemon/status").catch((error) => (error.status === 403 ? null : Promise.reject(error))),
    ]);
    // An older session may be at work.
    const states = found.next_cursor ? ["queued", "running", "waiting"] : [];
    const runs = (await Promise.all(states.map((state) => list("runs", "runs", { status: state, order: "newest" })))).flat();
    batch(() => {
      sessions.value = new Map();
      work.value = new Map(runs.map((run) => [run.session_id, workOf(run)]));
      found.sessions.forEach((/** @type {Session} */ session, /** @type {number} */ index) => putSession(session, found.activity[index]));
      requests.value = new Map(open.map((request) => [request.id, request]));
      status.value = daemon;
      isFresh.value = true;
    });
    for (const id of work.value.keys()) sessionOf(id);
    isLoaded = true;
    loading = false;
    drain();
    save();
  } catch (error) {
    loading = false;
    if (error instanceof ApiError && error.status < 500) refusal.value = error;
    else setTimeout(() => connection.value === "live" && !isLoaded && void load(), 2000);
  }
}

/**
 * Put a session into the lists, with what the daemon says of its activity.
 *
 * @param {Session} session
 * @param {any} [activity]
 */
function putSession(session, activity) {
  sessions.value.set(session.id, session);
  if (activity?.run) work.value.set(session.id, workOf(activity.run));
  if (activity && activity.seen_seq > (seen.value[session.id] ?? 0)) seen.value = { ...seen.value, [session.id]: activity.seen_seq };
}

/** @param {any} run a run, or its state in a list of sessions @returns {Work} */
const workOf = (run) => ({
  run: run.id,
  status: run.status,
  at: run.started_at ?? run.created_at,
  provider: run.provider,
  host: run.host ?? undefined,
  cost: run.cost_usd ?? run.usage?.cost_usd ?? undefined,
  error: run.error?.message ?? run.error_code ?? undefined,
});

/** @param {string} state */
export const isOver = (state) => state === "completed" || state === "failed" || state === "canceled";

/** @type {ReturnType<typeof setTimeout> | undefined} */
let frame;

/** Apply what came, at most once in each frame. */
function drain() {
  frame ??= setTimeout(
    () => {
      frame = undefined;
      if (!isLoaded || loading) return;
      const events = queue;
      queue = [];
      batch(() => apply(events));
      saveSoon();
    },
    document.hidden ? 0 : 16,
  );
}

/** @param {Event[]} events */
function apply(events) {
  /** @type {Map<string, Event[]>} */ const bySession = new Map();
  const changed = { sessions: false, work: false };
  for (const event of events) {
    const known = bySession.get(event.session_id);
    if (known) known.push(event);
    else bySession.set(event.session_id, [event]);
    applyEvent(event, changed);
  }
  for (const [id, found] of bySession) {
    logs.get(id)?.follow(found);
    const session = sessions.value.get(id);
    const lastSeq = found[found.length - 1].seq;
    if (session && session.last_seq < lastSeq) {
      const at = found[found.length - 1].created_at;
      sessions.value.set(id, { ...session, last_seq: lastSeq, updated_at: at });
      if (found.some((one) => !/\.delta$|^tool\.output|^usage/.test(one.event_type))) changed.sessions = true;
    }
  }
  if (changed.sessions) sessions.value = new Map(sessions.value);
  if (changed.work) work.value = new Map(work.value);
}

/** @param {Event} event @param {{ sessions: boolean, work: boolean }} changed */
function applyEvent(event, changed) {
  const { event_type: type, data, session_id: id } = event;
  if (type === "session.created" || type === "session.updated" || type === "session.closed") {
    if (!sessions.value.has(id) || type === "session.created") void fetchSession(id);
    else {
      const fields = Object.fromEntries(Object.entries(data).filter(([name]) => name !== "previous_cwd"));
      const session = /** @type {Session} */ (sessions.value.get(id));
      sessions.value.set(id, { ...session, ...fields, ...(type === "session.closed" ? { status: "closed" } : {}) });
      changed.sessions = true;
    }
  } else if (/^run\.(queued|started|waiting|resumed|completed|failed|canceled)$/.test(type)) {
    const known = work.value.get(id);
    const state = { queued: "queued", started: "running", resumed: "running" }[type.slice(4)] ?? type.slice(4);
    // A message that waits does not hide the run at work, nor does the end of another run.
    const isOther = known && known.run !== event.run_id && !isOver(known.status);
    if (!isOther || state === "running") {
      work.value.set(id, {
        run: String(event.run_id),
        status: state,
        at: event.created_at,
        provider: data.provider ?? known?.provider ?? "",
        error: data.error?.message,
      });
      changed.work = true;
    }
  } else if (type === "agent.message") {
    const session = sessions.value.get(id);
    if (session) sessions.value.set(id, { ...session, last_line: lastLine(data.text) });
    changed.sessions = true;
  } else if (type.startsWith("request.") && data.session_id === id) applyRequest(type, /** @type {any} */ (data));
}

/** @param {unknown} text of an agent */
const lastLine = (text) => oneLine(String(text).trimEnd().split("\n").pop(), 200);

/** @param {string} type @param {Request} request */
function applyRequest(type, request) {
  if (request.status === "pending") {
    if (requests.value.has(request.id)) {
      requests.value = new Map(requests.value).set(request.id, request);
    } else if (type === "request.created" || type === "request.updated") void fetchRequests(request.session_id);
    return;
  }
  const isMine = mine.has(request.id);
  if (close(request, isMine) && !isMine) toast(`${outcome(request)}: ${oneLine(request.text, 60)}`);
}

/**
 * Take a request out of the inbox, and note how it was decided.
 *
 * @param {Request} request
 * @param {boolean} isMine whether this device decided
 * @returns {boolean} whether it was open here
 */
function close(request, isMine) {
  closed.add(request.id);
  if (!requests.value.has(request.id)) return false;
  const open = new Map(requests.value);
  open.delete(request.id);
  requests.value = open;
  const others = decided.value.filter((one) => one.request.id !== request.id);
  decided.value = [{ request, at: Date.now(), mine: isMine }, ...others].slice(0, 30);
  return true;
}

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

/** Requests that were seen to be closed: a list that is older may still have them. */
const closed = /** @type {Set<string>} */ (new Set());
/** Sessions whose requests are to be read again, because of events since the list was asked for. */
const again = /** @type {Set<string>} */ (new Set());

/**
 * Read the requests of a session that the caller may decide.
 *
 * @param {string} sessionId
 * @returns {Promise<void>}
 */
function fetchRequests(sessionId) {
  if (fetching.has(`requests/${sessionId}`)) again.add(sessionId);
  return once(`requests/${sessionId}`, async () => {
    do {
      again.delete(sessionId);
      const query = { status: "pending", session_id: sessionId, resolvable: true };
      const found = (await list("requests", "requests", query)).filter(({ id }) => !closed.has(id));
      const others = [...requests.value].filter(([, request]) => request.session_id !== sessionId);
      requests.value = new Map([...others, ...found.map((one) => /** @type {const} */ ([one.id, one]))]);
    } while (again.has(sessionId));
  });
}

/** @param {string} id */
export const fetchSession = (id) =>
  once(`session/${id}`, async () => {
    const { session, activity } = await get(`sessions/${encodeURIComponent(id)}`, { activity: true });
    batch(() => {
      sessions.value = new Map(sessions.value);
      work.value = new Map(work.value);
      putSession(session, activity);
    });
  });

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

// --- what the user does ------------------------------------------------------------------------

/** @param {string} text */
export function toast(text) {
  const id = Math.random();
  toasts.value = [...toasts.value, { id, text }].slice(-3);
  setTimeout(() => (toasts.value = toasts.value.filter((one) => one.id !== id)), 6000);
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

/** @param {Request} request @param {number} seconds */
export const extend = (request, seconds) =>
  post("POST", `requests/${request.id}/extend`, { expires_in_s: seconds }, request.id);

onAnswer((entry, answer) => {
  if (answer?.request) {
    const request = /** @type {Request} */ (answer.request);
    if (request.status === "pending") requests.value = new Map(requests.value).set(request.id, request);
    else close(request, true);
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
  decided.value = decided.value.map((one) => (one.request.id === request.id ? { ...one, request, mine: false } : one));
  toast(`Too late. ${outcome(request)} before you.`);
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

// --- what stays on the device ------------------------------------------------------------------

/** @type {ReturnType<typeof setTimeout> | undefined} */
let saveTimer;
const saveSoon = () => (saveTimer ??= setTimeout(save, 3000));

function save() {
  clearTimeout(saveTimer);
  saveTimer = undefined;
  if (!isFresh.value || isCleared) return;
  const newest = [...sessions.value].sort(([, a], [, b]) => b.updated_at.localeCompare(a.updated_at)).slice(0, 100);
  const ids = new Set(newest.map(([id]) => id));
  /** @param {[string, any]} entry */
  const isKept = ([id]) => ids.has(id);
  const snapshot = {
    sessions: newest,
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

const tick = () => {
  if (!document.hidden) now.value = Date.now() + clockOffset;
};
setInterval(tick, 1000);
document.addEventListener("visibilitychange", tick);
