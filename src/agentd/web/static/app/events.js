/** How each event changes the lists of the page. */

import { noteDecision } from "./decisions.js";
import { followLog } from "./logs.js";
import { fetchRequests, fetchSession } from "./reading.js";
import { isOver, requests, sessions, work } from "./state.js";
import { oneLine } from "./text.js";

/** @import { Event, Request, Session } from "./types.js" */

/** @param {Event[]} events */
export function apply(events) {
  /** @type {Map<string, Event[]>} */ const bySession = new Map();
  const changed = { sessions: false, work: false };
  for (const event of events) {
    const known = bySession.get(event.session_id);
    if (known) known.push(event);
    else bySession.set(event.session_id, [event]);
    applyEvent(event, changed);
  }
  for (const [id, found] of bySession) {
    followLog(id, found);
    const session = sessions.value.get(id);
    const lastSeq = found[found.length - 1].seq;
    // An old session that something happens to is in none of the pages that were read.
    if (!session) void fetchSession(id);
    else if (session.last_seq < lastSeq) {
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
        host: known?.host,
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
    } else if (type === "request.created" || type === "request.updated") {
      void fetchRequests(request.session_id);
      // No event says on which machine and in which sandbox the agent works.
      void fetchSession(request.session_id);
    }
    return;
  }
  noteDecision(request);
}
