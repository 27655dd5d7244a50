/**
 * The lists of the page, kept up to date by the stream of events. They are read once, at the stream's
 * head; from then on each change is an event.
 */

import { ApiError, change, hasCredentials, list } from "./api.js";
import { apply } from "./events.js";
import { batch } from "./lib.js";
import { clearLogs, fillLogs, readAhead } from "./logs.js";
import { flush } from "./outbox.js";
import { readFirst, readOthers } from "./pages.js";
import { refreshStatus } from "./reading.js";
import { route } from "./route.js";
import { connection, isFresh, lostAt, refusal, requests } from "./state.js";
import { clearStorage, dropLists, restore, save, saveSoon } from "./storage.js";
import { follow } from "./stream.js";

/** @import { Event } from "./types.js" */

/** After so many milliseconds without a connection the lists are read anew instead of all events. */
const LONG_AWAY_MS = 10 * 60_000;

/** @type {string | null} */
let cursor = null;
/** @type {Event[]} */
let queue = [];
let loading = false;
let isLoaded = false;
/** @type {{ close(): void, reconnect(): void } | null} */
let stream = null;

/** Show what an earlier visit knew, and connect. */
export function start() {
  // What this visit knows is newer.
  if (!isFresh.value) restore();
  stream?.close();
  refusal.value = null;
  // Beside the stream and the lists, not after them.
  if (route.value.name === "s") void readAhead(route.value.id);
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
      if (cursor !== null && (error.code === "cursor_ahead" || error.status === 410 || error.status === 400)) {
        // The database was restored from a backup, or events since then are no longer kept: begin again. Without a
        // cursor, that would be refused as well, for ever.
        forget();
        clearLogs();
        setTimeout(start, 1000);
      } else refuse(error);
    },
  });
}

/**
 * Become a device, if this browser is only trusted for being on the daemon's machine. A first token ends
 * that trust, so this comes before a token is made for somebody else.
 */
export async function keepAccess() {
  if (hasCredentials()) return;
  const { claimDevice } = await import("./claim.js");
  const { code } = await change("POST", "devices", { scopes: ["admin"] });
  await claimDevice(code);
  start(); // the stream may have been refused meanwhile
}

/** @param {ApiError} error */
function refuse(error) {
  // Who is not let in any more keeps nothing of what they saw.
  if (error.status === 401) {
    forget();
    clearLogs();
    dropLists();
  }
  refusal.value = error;
}

function forget() {
  cursor = null;
  isLoaded = false;
}

/** Forget everything that this device knows. */
export function clearDevice() {
  stream?.close();
  clearStorage();
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
  else {
    void readOthers();
    void refreshStatus(); // the daemon may be another one
  }
  fillLogs();
}

/** Read the lists. */
async function load() {
  if (loading) return;
  loading = true;
  try {
    const [showSessions, open] = await Promise.all([readFirst(), list("requests", "requests", { order: "deadline" })]);
    batch(() => {
      showSessions();
      requests.value = new Map(open.map((request) => [request.id, request]));
      isFresh.value = true;
    });
    isLoaded = true;
    loading = false;
    drain();
    save();
    // The daemon asks its providers for its state: nothing waits for that. A share link does not show it.
    void refreshStatus();
    void readOthers();
  } catch (error) {
    loading = false;
    if (error instanceof ApiError && error.status < 500) refuse(error);
    else setTimeout(() => connection.value === "live" && !isLoaded && void load(), 2000);
  }
}

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
