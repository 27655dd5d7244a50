/** How each event of a session changes its story. */

/** @import { Log } from "./log.js" */
/** @import { Event, Item } from "./types.js" */

/**
 * Add an event to the story.
 *
 * @param {Log} log
 * @param {Event} event
 * @returns {boolean} whether there is a new item
 */
export function reduce(log, event) {
  const { data, event_type: type, run_id: run, seq } = event;
  const item = `${run}/${event.attempt}/${data.item_id ?? seq}`;
  const tool = `${run}/${event.attempt}/tool/${data.tool_id}`;
  switch (type) {
    case "message.created":
      return log.put(`message/${data.message_id}`, "message", event, {
        text: data.text, role: data.role, source: data.source, id: data.message_id,
        images: data.images ?? [], requestId: data.request_id, isSteering: data.is_steering === true,
      });
    case "message.updated": {
      log.taken.set(data.message_id, data.delivery === "delivered");
      const message = log.byKey.get(`message/${data.message_id}`);
      if (message) message.rev.value++;
      return false;
    }
    case "user.message":
      return log.put(`said/${seq}`, "message", event, { text: data.text, role: "user", source: null, images: [] });
    case "agent.message.delta": {
      const known = log.byKey.get(item);
      if (known?.whole) return false;
      return say(log, item, event, { text: (known?.text ?? "") + data.text, whole: false });
    }
    case "agent.message":
      return say(log, item, event, { text: data.text, whole: true, parent: data.parent_tool_id });
    case "subagent.message":
      return log.put(item, "subagent", event, { text: data.text, parent: data.parent_tool_id });
    case "agent.reasoning":
      return log.put(`${item}/reasoning`, "reasoning", event, { text: data.text });
    case "tool.started":
      return log.put(tool, "tool", event, {
        name: data.name, tool: data.kind, input: data.input, status: "running", output: "", parent: data.parent_tool_id,
      });
    case "tool.output": {
      const known = log.byKey.get(tool);
      if (known && known.status !== "running") return false;
      const output = ((known?.output ?? "") + data.text).slice(-200_000);
      return log.put(tool, "tool", event, known ? { output } : { output, name: "", input: null, status: "running" });
    }
    case "tool.completed":
      return log.put(tool, "tool", event, {
        name: data.name, tool: data.kind, input: data.input, status: data.status, output: data.output ?? "",
        exitCode: data.exit_code, error: data.error, result: data.result, ended: event.created_at,
      });
    case "file.changed":
      return log.put(`${run}/${event.attempt}/files/${data.tool_id ?? seq}`, "files", event, {
        changes: data.changes ?? [], status: data.status,
      });
    case "plan.updated":
      log.plan = { steps: data.steps ?? [], at: event.created_at };
      return log.put(`${run}/plan`, "plan", event, { steps: data.steps ?? [] });
    case "request.created":
    case "request.updated":
    case "request.extended":
    case "request.expiring":
    case "request.resolved": {
      const known = log.byKey.get(`request/${data.id}`);
      // The log of a session above has less of the request.
      const request = known && data.cut ? { ...data, detail: known.request.detail, options: known.request.options } : data;
      return log.put(`request/${data.id}`, "request", event, { request });
    }
    case "child.spawned":
      return log.put(`child/${data.session_id}`, "child", event, { child: data, outcome: null });
    case "child.finished":
      return log.put(`child/${data.session_id}/${data.run_id}`, "childEnd", event, { child: data });
    case "run.queued":
      log.runs.set(String(run), { status: "queued", messageId: data.message_id ?? log.runs.get(String(run))?.messageId ?? null, at: event.created_at });
      if (data.message_id) log.runOf.set(data.message_id, String(run));
      log.touchMessage(run);
      return data.reason ? log.put(`note/${seq}`, "note", event, { text: `Queued again: ${data.reason}` }) : false;
    case "run.started":
      log.setRun(event, "running");
      return false;
    case "run.waiting":
      log.setRun(event, "waiting");
      return false;
    case "run.resumed":
      log.setRun(event, "running");
      return false;
    case "run.completed":
    case "run.failed":
    case "run.canceled": {
      const status = type.slice(4);
      log.setRun(event, status, data.usage);
      return log.put(`end/${run}`, "end", event, {
        status, given: data.result, result: isRepeated(log.said.get(String(run)), data.result) ? null : data.result, error: data.error, reason: data.reason,
        usage: data.usage, exitCode: data.exit_code,
      });
    }
    case "run.recovered":
      return log.put(`note/${seq}`, "note", event, { text: `The daemon was lost meanwhile; the run was ${data.action}: ${data.reason}` });
    case "run.error":
      return log.put(`note/${seq}`, "note", event, {
        isProblem: true,
        text: data.fallback ? `${data.message} The provider ${data.fallback} replaces ${data.provider}.` : data.message,
      });
    case "thread.replaced":
      return log.put(`note/${seq}`, "note", event, { text: "The agent began a new conversation." });
    case "session.imported":
      return log.put(`note/${seq}`, "note", event, { text: "The session was imported. All before this happened elsewhere." });
    case "session.updated":
    case "session.closed":
      return log.put(`note/${seq}`, "note", event, { text: updated(data) });
    default:
      return false;
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

/**
 * Put a text of the agent, and note that it is the last one of its run.
 *
 * @param {Log} log @param {string} key @param {Event} event @param {{ [name: string]: any }} values
 */
function say(log, key, event, values) {
  const isNew = log.put(key, "agent", event, values);
  if (isNew) log.said.set(String(event.run_id), /** @type {Item} */ (log.byKey.get(key)));
  return isNew;
}

/**
 * Whether a result is the last text of the agent too, as it is with most agents.
 *
 * @param {Item | undefined} said @param {{ text: string } | null | undefined} result
 */
export const isRepeated = (said, result) => said?.text?.trim() === result?.text?.trim();
