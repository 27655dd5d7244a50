/** How earlier events are put before those of a log: at the cost of the earlier ones, however long the log is. */

import { Log, PAGE } from "./log.js";
import { isRepeated } from "./reduce.js";

/** @import { Event, Item } from "./types.js" */

/** Read the events before the first one that a log has. @param {Log} log */
export async function readEarlier(log) {
  const end = log.before;
  let cursor = Math.max(0, end - PAGE);
  /** @type {Event[]} */ const found = [];
  while (cursor < end) {
    const page = await log.read(cursor, Math.min(PAGE, end - cursor));
    if (!page.events.length) break;
    found.push(...page.events.filter((/** @type {Event} */ event) => event.seq <= end));
    cursor = page.next_cursor;
  }
  const earlier = new Log(log.sessionId);
  earlier.append(found);
  prepend(earlier, log);
}

/**
 * Put an earlier part of a session's log before a later one. The result is the same as if all events had
 * been reduced in order.
 *
 * @param {Log} earlier
 * @param {Log} later changed to have both
 */
export function prepend(earlier, later) {
  const shared = new Set();
  earlier.items = earlier.items.map((item) => {
    const known = later.byKey.get(item.key);
    if (!known) {
      later.byKey.set(item.key, item);
      return item;
    }
    shared.add(known);
    continueItem(item, known);
    return known;
  });
  const rest = shared.size ? later.items.filter((item) => !shared.has(item)) : later.items;
  later.items = earlier.items.concat(rest);
  later.events = earlier.events.concat(later.events);
  later.plan ??= earlier.plan;
  for (const [run, said] of earlier.said) {
    const known = later.said.get(run);
    // A text that began in the earlier part is before those that began since.
    const since = known && (shared.has(known) ? rest.findLast((item) => item.kind === "agent" && item.run === run) : known);
    const last = since ?? later.byKey.get(said.key);
    if (last) later.said.set(run, last);
    const end = later.byKey.get(`end/${run}`);
    if (end) change(end, { result: isRepeated(last, end.given) ? null : end.given });
  }
  for (const [run, state] of earlier.runs) {
    const known = later.runs.get(run);
    later.runs.set(run, known ? { ...known, messageId: known.messageId ?? state.messageId } : state);
    later.touchMessage(run);
  }
  later.steering.unshift(...earlier.steering);
  for (const [message, isTaken] of earlier.taken) if (!later.taken.has(message)) later.taken.set(message, isTaken);
  for (const [message, run] of earlier.runOf) if (!later.runOf.has(message)) later.runOf.set(message, run);
  for (const { kind, id } of earlier.items) if (kind === "message" && later.runOf.has(id)) later.touchMessage(String(later.runOf.get(id)));
}

/**
 * Make an entry of the later part continue the same one of the earlier part.
 *
 * @param {Item} before
 * @param {Item} item
 */
function continueItem(before, item) {
  const { kind, seq, at, run } = before;
  change(item, { kind, seq, at, run });
  if (kind === "agent" && !item.whole) {
    if (before.whole) change(item, { text: before.text, whole: true, parent: before.parent });
    else change(item, { text: before.text + item.text });
  } else if (kind === "tool" && item.status === "running" && !item.input) {
    // The later part has only output of it.
    if (before.status !== "running") change(item, { ...before, rev: item.rev });
    else change(item, { ...before, rev: item.rev, output: (before.output + item.output).slice(-200_000) });
  } else if (kind === "request" && item.request.cut) {
    // The log of a session above has less of the request.
    const { detail = before.request.detail, options = before.request.options } = item.request;
    change(item, { request: { ...item.request, detail, options } });
  }
  for (const [name, value] of Object.entries(before)) if (!(name in item)) item[name] = value;
}

/** @param {Item} item @param {{ [name: string]: any }} values */
function change(item, values) {
  Object.assign(item, values);
  item.rev.value++;
}
