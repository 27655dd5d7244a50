/** The stream of all events that the caller may read: one connection, resumed at its cursor for ever. */

import { ApiError, Unreachable, send } from "./api.js";

/** @import { Event } from "./types.js" */

/** Milliseconds of silence after which a connection is dead. The daemon sends a comment every 15 s. */
const SILENCE_MS = 35_000;
/** Pauses between tries. A page that somebody looks at tries often for a minute: a daemon that restarts is back within seconds. */
const RETRY_MS = [250, 500, ...Array(80).fill(700), 2000, 5000, 10_000];
/** Where nobody looks, and where the network is known to be gone, the last pause is reached sooner. */
const HIDDEN_RETRY_MS = [250, 1000, 5000, 10_000];

/**
 * @typedef {"connecting" | "live" | "lost" | "draining"} StreamState
 *
 * @typedef {{
 *   cursor(): string,
 *   onEvents(events: Event[], cursor: string): void,
 *   onCaughtUp(cursor: string | null): void,
 *   onState(state: StreamState): void,
 *   onRefused(error: ApiError): void,
 * }} Reader
 */

/**
 * Parse frames of server-sent events. Return a function that takes the text as it arrives.
 *
 * @param {(frame: { id: string, data: string, comment: string }) => void} onFrame
 */
export function frameParser(onFrame) {
  let rest = "";
  let id = "";
  let data = /** @type {string[]} */ ([]);
  /** @param {string} text */
  return (text) => {
    const lines = (rest + text).split("\n");
    rest = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (line === "") {
        if (data.length) onFrame({ id, data: data.join("\n"), comment: "" });
        data = [];
      } else if (line.startsWith(":")) onFrame({ id, data: "", comment: line.slice(1).trim() });
      else if (line.startsWith("data: ")) data.push(line.slice(6));
      else if (line.startsWith("id: ")) id = line.slice(4);
    }
  };
}

/**
 * Follow the stream until `close` is called.
 *
 * @param {Reader} reader
 */
export function follow(reader) {
  let closed = false;
  let failures = 0;
  let lastByteAt = 0;
  let connection = new AbortController();
  let wake = () => {};

  async function connect() {
    connection = new AbortController();
    const response = await send(`stream?cursor=${encodeURIComponent(reader.cursor())}`, {
      signal: connection.signal,
      headers: { Accept: "text/event-stream" },
    });
    if (!response.body) throw new Unreachable();
    const bytes = response.body.getReader();
    const decoder = new TextDecoder();
    /** @type {Event[]} */ let events = [];
    let cursor = "";
    /** @type {(() => void)[]} */ let notes = [];
    const parse = frameParser((frame) => {
      if (frame.data) {
        events.push(JSON.parse(frame.data));
        cursor = frame.id;
      } else if (frame.comment === "caught up") {
        const id = frame.id || null;
        notes.push(() => reader.onCaughtUp(id));
      } else if (frame.comment === "draining") notes.push(() => reader.onState("draining"));
    });
    for (;;) {
      const { done, value } = await bytes.read();
      if (done) return;
      lastByteAt = Date.now();
      failures = 0;
      parse(decoder.decode(value, { stream: true }));
      if (events.length) reader.onEvents(events, cursor);
      notes.forEach((note) => note());
      events = [];
      notes = [];
    }
  }

  async function run() {
    while (!closed) {
      reader.onState("connecting");
      lastByteAt = Date.now();
      const pauses = document.hidden || !navigator.onLine ? HIDDEN_RETRY_MS : RETRY_MS;
      let pause = pauses[Math.min(failures++, pauses.length - 1)];
      try {
        await connect();
      } catch (error) {
        if (error instanceof ApiError) {
          if (error.status !== 503 && error.status !== 429) {
            closed = true;
            return reader.onRefused(error);
          }
          pause = Math.max(pause, (error.retryAfter ?? 0) * 1000);
        } else if (!(error instanceof Unreachable || error instanceof DOMException || error instanceof TypeError))
          throw error;
      }
      if (closed) return undefined;
      reader.onState("lost");
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pause * (0.75 + Math.random() / 2));
        wake = () => {
          clearTimeout(timer);
          resolve(undefined);
        };
      });
    }
    return undefined;
  }

  /** Connect anew at once, because the device was asleep or changed its network. */
  function reconnect() {
    failures = 0;
    connection.abort();
    wake();
  }

  // A browser does not always say that a connection ended, such as after sleep.
  const watchdog = setInterval(() => {
    if (Date.now() - lastByteAt > SILENCE_MS) connection.abort();
  }, 5000);
  const woke = () => {
    if (document.visibilityState === "visible") reconnect();
  };
  document.addEventListener("visibilitychange", woke);
  addEventListener("online", reconnect);
  // What is lost is shown at once, not when a connection ends that nobody answers.
  const drop = () => connection.abort();
  addEventListener("offline", drop);
  addEventListener("pageshow", (event) => event.persisted && reconnect());
  void run();
  return {
    reconnect,
    close() {
      closed = true;
      clearInterval(watchdog);
      document.removeEventListener("visibilitychange", woke);
      removeEventListener("online", reconnect);
      removeEventListener("offline", drop);
      connection.abort();
      wake();
    },
  };
}
