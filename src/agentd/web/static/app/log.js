/** The story of a session: its events, reduced to the items that are shown. */

import { get } from "./api.js";
import { signal } from "./lib.js";

/** @import { Event, Usage } from "./types.js" */

/** Events that are read first, from the end, and those that are read at once from then on. */
const FIRST = 400;
const PAGE = 1000;

/**
 * @typedef {{
 *   key: string, kind: string, seq: number, at: string, run: string | null,
 *   rev: import("../vendor/signals.mjs").Signal<number>, [name: string]: any,
 * }} Item an entry of the story; `rev` changes whenever the item does
 *
 * @typedef {{ status: string, messageId: string | null, usage?: Usage, at: string }} RunState
 */

/** The state of a session's log: the events from `first` to `last`, and the items made of them. */
export class Log {
  /** @param {string} sessionId */
  constructor(sessionId) {
    this.sessionId = sessionId;
    /** @type {Event[]} */ this.events = [];
    /** @type {Item[]} */ this.items = [];
    /** @type {Map<string, Item>} */ this.byKey = new Map();
    /** @type {Map<string, RunState>} */ this.runs = new Map();
    this.changes = signal(0);
    this.loading = signal(false);
    this.isOpen = signal(false);
    this.error = signal("");
    /** @type {{ steps: { text: string, status: string }[], at: string } | null} */ this.plan = null;
    this.filling = false;
  }

  /** The `seq` before the first event that is loaded. */
  get before() {
    return this.events.length ? this.events[0].seq - 1 : 0;
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
  }

  /** @param {number} cursor */
  async load(cursor) {
    for (let more = true; more; ) {
      const page = await get(`sessions/${this.sessionId}/events`, { cursor, limit: PAGE });
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
      const end = this.before;
      let cursor = Math.max(0, end - PAGE);
      /** @type {Event[]} */ const found = [];
      while (cursor < end) {
        const page = await get(`sessions/${this.sessionId}/events`, { cursor, limit: Math.min(PAGE, end - cursor) });
        if (!page.events.length) break;
        found.push(...page.events);
        cursor = page.next_cursor;
      }
      this.rebuild([...found, ...this.events]);
    } finally {
      this.loading.value = false;
    }
  }

  /** @param {Event[]} events */
  rebuild(events) {
    this.events = [];
    this.items = [];
    this.byKey = new Map();
    this.runs = new Map();
    this.plan = null;
    for (const event of events) {
      this.events.push(event);
      this.reduce(event);
    }
    this.changes.value++;
  }

  /**
   * Take events as they come from the stream. A gap is filled from the log first.
   *
   * @param {Event[]} events
   */
  follow(events) {
    if (!this.isOpen.value) return;
    const [first] = events.filter((event) => event.seq > this.last);
    if (!first) return;
    if (first.seq === this.last + 1 && !this.filling) this.append(events);
    else void this.fill();
  }

  async fill() {
    if (this.filling) return;
    this.filling = true;
    try {
      await this.load(this.last);
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
      changed = this.reduce(event) || changed;
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
    return true;
  }

  /**
   * Add an event to the story.
   *
   * @param {Event} event
   * @returns {boolean} whether there is a new item
   */
  reduce(event) {
    const { data, event_type: type, run_id: run, seq } = event;
    const item = `${run}/${event.attempt}/${data.item_id ?? seq}`;
    const tool = `${run}/${event.attempt}/tool/${data.tool_id}`;
    switch (type) {
      case "message.created":
        return this.put(`message/${data.message_id}`, "message", event, {
          text: data.text, role: data.role, source: data.source, id: data.message_id,
          images: data.images ?? [], requestId: data.request_id,
        });
      case "user.message":
        return this.put(`said/${seq}`, "message", event, { text: data.text, role: "user", source: null, images: [] });
      case "agent.message.delta": {
        const known = this.byKey.get(item);
        if (known?.whole) return false;
        return this.put(item, "agent", event, { text: (known?.text ?? "") + data.text, whole: false });
      }
      case "agent.message":
        return this.put(item, "agent", event, { text: data.text, whole: true, parent: data.parent_tool_id });
      case "subagent.message":
        return this.put(item, "subagent", event, { text: data.text, parent: data.parent_tool_id });
      case "agent.reasoning":
        return this.put(`${item}/reasoning`, "reasoning", event, { text: data.text });
      case "tool.started":
        return this.put(tool, "tool", event, {
          name: data.name, tool: data.kind, input: data.input, status: "running", output: "", parent: data.parent_tool_id,
        });
      case "tool.output": {
        const known = this.byKey.get(tool);
        if (known && known.status !== "running") return false;
        const output = ((known?.output ?? "") + data.text).slice(-200_000);
        return this.put(tool, "tool", event, known ? { output } : { output, name: "", input: null, status: "running" });
      }
      case "tool.completed":
        return this.put(tool, "tool", event, {
          name: data.name, tool: data.kind, input: data.input, status: data.status, output: data.output ?? "",
          exitCode: data.exit_code, error: data.error, result: data.result, ended: event.created_at,
        });
      case "file.changed":
        return this.put(`${run}/${event.attempt}/files/${data.tool_id ?? seq}`, "files", event, {
          changes: data.changes ?? [], status: data.status,
        });
      case "plan.updated":
        this.plan = { steps: data.steps ?? [], at: event.created_at };
        return this.put(`${run}/plan`, "plan", event, { steps: data.steps ?? [] });
      case "request.created":
      case "request.updated":
      case "request.extended":
      case "request.expiring":
      case "request.resolved": {
        const known = this.byKey.get(`request/${data.id}`);
        // The log of a session above has less of the request.
        const request = known && data.cut ? { ...data, detail: known.request.detail, options: known.request.options } : data;
        return this.put(`request/${data.id}`, "request", event, { request });
      }
      case "child.spawned":
        return this.put(`child/${data.session_id}`, "child", event, { child: data, outcome: null });
      case "child.finished":
        return this.put(`child/${data.session_id}/${data.run_id}`, "childEnd", event, { child: data });
      case "run.queued":
        this.runs.set(String(run), { status: "queued", messageId: data.message_id ?? this.runs.get(String(run))?.messageId ?? null, at: event.created_at });
        this.touchMessage(run);
        return data.reason ? this.put(`note/${seq}`, "note", event, { text: `Queued again: ${data.reason}` }) : false;
      case "run.started":
        this.setRun(event, "running");
        return false;
      case "run.waiting":
        this.setRun(event, "waiting");
        return false;
      case "run.resumed":
        this.setRun(event, "running");
        return false;
      case "run.completed":
      case "run.failed":
      case "run.canceled": {
        const status = type.slice(4);
        this.setRun(event, status, data.usage);
        const shown = [...this.items].reverse().find((one) => one.kind === "agent" && one.run === run);
        // Most agents say their result as their last message too.
        const repeated = shown?.text?.trim() === data.result?.text?.trim();
        return this.put(`end/${run}`, "end", event, {
          status, result: repeated ? null : data.result, error: data.error, reason: data.reason,
          usage: data.usage, exitCode: data.exit_code,
        });
      }
      case "run.recovered":
        return this.put(`note/${seq}`, "note", event, { text: `The daemon was lost meanwhile; the run was ${data.action}: ${data.reason}` });
      case "run.error":
        return this.put(`note/${seq}`, "note", event, {
          isProblem: true,
          text: data.fallback ? `${data.message} The provider ${data.fallback} replaces ${data.provider}.` : data.message,
        });
      case "thread.replaced":
        return this.put(`note/${seq}`, "note", event, { text: "The agent began a new conversation." });
      case "session.updated":
      case "session.closed":
        return this.put(`note/${seq}`, "note", event, { text: updated(data) });
      default:
        return false;
    }
  }

  /** @param {Event} event @param {string} status @param {Usage} [usage] */
  setRun(event, status, usage) {
    const known = this.runs.get(String(event.run_id));
    this.runs.set(String(event.run_id), { status, messageId: known?.messageId ?? null, usage, at: event.created_at });
    this.touchMessage(event.run_id);
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

/** @param {{ [name: string]: any }} data */
function updated(data) {
  if (data.status === "closed") return "The session was closed.";
  if (data.status === "open") return "The session was opened again.";
  if (data.cwd !== undefined) return `The agent now works in ${data.cwd}`;
  if (data.title !== undefined) return data.title ? `Renamed: ${data.title}` : "The title was removed.";
  const names = Object.keys(data).map((name) => name.replaceAll("_", " "));
  return names.length ? `Changed: ${names.join(", ")}` : "The session was changed.";
}
