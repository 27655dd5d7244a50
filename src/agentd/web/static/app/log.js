/** The story of a session: its events, reduced to the items that are shown. */

import { ApiError, get } from "./api.js";
import { signal } from "./lib.js";
import { reduce } from "./reduce.js";

/** @import { Event, Item, RunState, Usage } from "./types.js" */

/** Events that are read first, from the end, and those that are read at once from then on. */
const FIRST = 400;
export const PAGE = 1000;

/** The state of a session's log: the events from `first` to `last`, and the items made of them. */
export class Log {
  /** @param {string} sessionId */
  constructor(sessionId) {
    this.sessionId = sessionId;
    /** @type {Event[]} */ this.events = [];
    /** @type {Item[]} */ this.items = [];
    /** @type {Map<string, Item>} */ this.byKey = new Map();
    /** @type {Map<string, RunState>} */ this.runs = new Map();
    /** @type {Map<string, string>} the run of each message */ this.runOf = new Map();
    /** @type {Map<string, Item>} the last text of the agent in each run */ this.said = new Map();
    /** @type {Item[]} the messages that steer a run */ this.steering = [];
    /** @type {Map<string, boolean>} whether the agent has each of them */ this.taken = new Map();
    this.changes = signal(0);
    this.loading = signal(false);
    this.isOpen = signal(false);
    this.error = signal("");
    /** @type {{ steps: { text: string, status: string }[], at: string } | null} */ this.plan = null;
    /** The `seq` up to which events are no longer kept. */
    this.oldest = 0;
    this.filling = false;
    /** Whether the stream had events that the reads under way may not have. */
    this.missed = false;
  }

  /** The `seq` before the first event that is loaded; 0 if none before it is kept. */
  get before() {
    const before = this.events.length ? this.events[0].seq - 1 : 0;
    return before > this.oldest ? before : 0;
  }

  get last() {
    return this.events.length ? this.events[this.events.length - 1].seq : 0;
  }

  /**
   * Load the end of the log, or what came since.
   *
   * @param {number} lastSeq the `last_seq` of the session
   */
  async open(lastSeq) {
    if (this.loading.value) return;
    this.loading.value = true;
    this.error.value = "";
    try {
      await this.load(this.isOpen.value ? this.last : Math.max(0, lastSeq - FIRST));
      this.isOpen.value = true;
    } catch (error) {
      this.error.value = error instanceof Error ? error.message : String(error);
    } finally {
      this.loading.value = false;
    }
    if (this.missed && this.isOpen.value) void this.fill();
  }

  /**
   * Read events after a cursor, or after the oldest one if those are no longer kept.
   *
   * @param {number} cursor @param {number} limit
   */
  async read(cursor, limit) {
    const path = `sessions/${this.sessionId}/events`;
    try {
      return await get(path, { cursor: Math.max(cursor, this.oldest), limit });
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 410) throw error;
      this.oldest = error.details.oldest;
      return get(path, { cursor: this.oldest, limit });
    }
  }

  /** @param {number} cursor */
  async load(cursor) {
    for (let more = true; more; ) {
      const page = await this.read(cursor, PAGE);
      this.append(page.events);
      cursor = page.next_cursor;
      more = page.has_more;
    }
  }

  /** Load the events before the first one that is loaded. */
  async loadEarlier() {
    if (this.loading.value || !this.before) return;
    this.loading.value = true;
    try {
      const { readEarlier } = await import("./prepend.js");
      await readEarlier(this);
      this.changes.value++;
    } finally {
      this.loading.value = false;
    }
  }

  /**
   * Take events as they come from the stream. A gap is filled from the log first.
   *
   * @param {Event[]} events
   */
  follow(events) {
    if (!this.isOpen.value) {
      this.missed = true;
      return;
    }
    const [first] = events.filter((event) => event.seq > this.last);
    if (!first) return;
    if (first.seq === this.last + 1 && !this.filling) this.append(events);
    else void this.fill();
  }

  async fill() {
    this.missed = true;
    if (this.filling) return;
    this.filling = true;
    try {
      while (this.missed) {
        this.missed = false;
        await this.load(this.last);
      }
    } catch {
      // The stream's next event, or its next connection, fills the gap.
    } finally {
      this.filling = false;
    }
  }

  /** @param {Event[]} events */
  append(events) {
    let changed = false;
    for (const event of events) {
      if (event.seq <= this.last) continue;
      this.events.push(event);
      changed = reduce(this, event) || changed;
    }
    if (changed) this.changes.value++;
  }

  /**
   * @param {string} key
   * @param {string} kind
   * @param {Event} event
   * @param {{ [name: string]: any }} values
   */
  put(key, kind, event, values) {
    const existing = this.byKey.get(key);
    if (existing) {
      Object.assign(existing, values);
      existing.rev.value++;
      return false;
    }
    const item = { key, kind, seq: event.seq, at: event.created_at, run: event.run_id, rev: signal(0), ...values };
    this.byKey.set(key, item);
    this.items.push(item);
    if (values.isSteering) this.steering.push(item);
    return true;
  }

  /** @param {Event} event @param {string} status @param {Usage} [usage] */
  setRun(event, status, usage) {
    const known = this.runs.get(String(event.run_id));
    this.runs.set(String(event.run_id), { status, messageId: known?.messageId ?? null, usage, at: event.created_at });
    this.touchMessage(event.run_id);
    // Messages that steered the run have its outcome too.
    for (const item of this.steering) if (item.run === event.run_id) item.rev.value++;
  }

  /** @param {string | null} run */
  touchMessage(run) {
    const id = this.runs.get(String(run))?.messageId;
    const item = id ? this.byKey.get(`message/${id}`) : undefined;
    if (!item) return;
    item.runId = run;
    item.rev.value++;
  }
}
