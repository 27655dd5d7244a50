/** A run: why it is as it is, in words, with the evidence. */

import { get, list } from "./api.js";
import { html, useEffect, useState } from "./lib.js";
import { post } from "./outbox.js";
import { Markdown } from "./markdown.js";
import { Age, Block, Empty, Header, State, Twice, usageText } from "./parts.js";
import { sessionOf } from "./reading.js";
import { go, to } from "./route.js";
import { titleOf } from "./sessionfacts.js";
import { isOver, now, work } from "./state.js";
import { clean, cleanCode, clock, duration, oneLine, table } from "./text.js";

/** @import { Run } from "./types.js" */

/**
 * Return the message that began a run; null while it is read, and if it is not there.
 *
 * @param {Run | undefined} run
 * @returns {{ text: string } | null}
 */
function useMessage(run) {
  const [found, setFound] = useState(/** @type {{ id: string, text: string } | null} */ (null));
  const { session_id: session, message_id: id } = run ?? {};
  useEffect(() => {
    if (!session || !id) return undefined;
    let isCurrent = true;
    list(`sessions/${session}/messages`, "messages", {}).then(
      (all) => isCurrent && setFound(all.find((/** @type {any} */ one) => one.id === id) ?? null),
      () => {},
    );
    return () => {
      isCurrent = false;
    };
  }, [session, id]);
  return found?.id === id ? found : null;
}

/** How long a run was, or is, at work. @param {Run} run */
function tookOf(run) {
  if (!run.started_at) return "";
  const end = run.finished_at ? Date.parse(run.finished_at) : now.value;
  const seconds = (end - Date.parse(run.started_at)) / 1000;
  return seconds < 1 ? "less than 1 s" : duration(seconds);
}

/** Characters of a message that is shown whole. */
const SHORT = 240;

/** What to do where the daemon has no advice. */
const NEXT = /** @type {{ [status: string]: string }} */ (table({
  queued: "Nothing: it begins when a worker is free.",
  running: "Nothing: the agent is at work. A message reaches it while it works, or after it.",
  waiting: "Its request needs an answer.",
  completed: "Nothing. Write to its session to go on.",
  failed: "Send its message again, or write to its session.",
  canceled: "Send its message again, or write to its session.",
}));

/** @param {{ id: string }} props */
export function RunScreen({ id }) {
  const [found, setFound] = useState(/** @type {{ run: Run, diagnostics: any } | null} */ (null));
  const [error, setError] = useState("");
  const message = useMessage(found?.run);
  const state = found && work.value.get(found.run.session_id)?.status;
  useEffect(() => {
    let isCurrent = true;
    setError("");
    get(`runs/${encodeURIComponent(id)}/diagnose`).then(
      (answer) => isCurrent && setFound(answer),
      (reason) => isCurrent && setError(reason.message),
    );
    return () => {
      isCurrent = false;
    };
  }, [id, state]);
  if (!found || found.run.id !== id)
    return html`<${Header} title="Run" back=${to("sessions")} /><${Empty} title=${error ? "This run cannot be shown" : "Reading…"}>${error && html`<p class="muted sentence">${error}</p><a class="button" href=${to("sessions")}>All sessions</a>`}<//>`;
  const { run, diagnostics } = found;
  const issue = diagnostics.likely_issue ?? {};
  const code = ["none", "unknown"].includes(issue.code) ? run.error?.code : issue.code;
  const why = String(issue.message ?? "");
  const session = sessionOf(run.session_id);
  const again = async () => {
    if (message && (await post("POST", `sessions/${run.session_id}/messages`, { text: message.text }, run.session_id))) go(`s/${run.session_id}`);
  };
  // Runners of codex have a field of their own for it.
  const started = diagnostics.invocation ?? diagnostics.codex_invocation;
  const facts = [
    [isOver(run.status) ? "Took" : "At work for", tookOf(run)],
    ["Provider", run.provider],
    ["Model", run.model],
    ["Sandbox", run.sandbox],
    ["Attempt", String(run.attempt)],
    ["Worker", run.worker_id],
    ["Process", diagnostics.active_pid],
    ["Exit code", run.exit_code],
    ["Usage", usageText(run.usage)],
    ["Place in the queue", diagnostics.queue_position],
    ["Last output", diagnostics.last_output_at && clock(diagnostics.last_output_at)],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return html`
    <${Header} title="Run" back=${to(`s/${run.session_id}`)} actions=${!isOver(run.status) && html`<${Twice} class="small stop" question="Stop it?" onConfirm=${() => void post("POST", `runs/${id}/cancel`, {}, run.session_id)}>Stop<//>`}>
      <p class="muted sub"><${State} state=${run.status} />${session && html`<a href=${to(`s/${session.id}`)}>${titleOf(session)}</a>`} <${Age} at=${run.created_at} /></p>
    <//>
    <div class="scroll" data-screen="run"><div class="details">
      <section class=${`diagnosis diagnosis-${run.status}`}><h2>Why</h2>
        <p class="strong sentence">${clean(code && why.startsWith(`${code}: `) ? why.slice(code.length + 2) : why)}</p>
        ${code && html`<p class="muted">Code <code>${cleanCode(code)}</code></p>`}
        ${run.error && !why.includes(run.error.message) && html`<div class="failed-note"><p><strong>${clean(run.error.code)}</strong> ${clean(run.error.message)}</p></div>`}
      </section>
      ${run.message_id && html`<section><h2>The message that began it</h2><div class="quoted">${message === null ? html`<p class="muted">Reading…</p>` : message.text.length > SHORT
        ? html`<details class="fold"><summary><span class="quoted-line">${oneLine(message.text, SHORT)}</span></summary><${Markdown} text=${message.text} /></details>`
        : html`<${Markdown} text=${message.text} />`}</div></section>`}
      <section><h2>What to do next</h2>
        <p class="sentence">${issue.hint ? clean(issue.hint) : NEXT[run.status]}</p>
        <div class="row-buttons">
          ${isOver(run.status) && run.status !== "completed" && run.message_id && html`<button type="button" class="primary" disabled=${message === null} onClick=${() => void again()}>Send its message again</button>`}
          ${!isOver(run.status) && diagnostics.pending_request && html`<a class="button primary" href=${to(`r/${diagnostics.pending_request.id}`)}>Open the request</a>`}
          ${!isOver(run.status) && diagnostics.blocked_by_run_id && html`<a class="button" href=${to(`run/${diagnostics.blocked_by_run_id}`)}>The run before it</a>`}
          <a class="button" href=${to(`s/${run.session_id}`)}>Open its session</a>
        </div></section>
      <section><h2>Evidence</h2><dl>${facts.map(([name, value]) => html`<dt>${name}</dt><dd>${cleanCode(value)}</dd>`)}</dl></section>
      <section><h2>Attempts</h2><ul class="plain-list">${(diagnostics.attempts ?? []).map((/** @type {any} */ one) => html`<li class="line"><span class="strong">${one.attempt}</span>
        <span>${clean(one.provider)}</span><span class="muted">${clock(one.started_at)}${one.ended_at && ` – ${clock(one.ended_at)}`}</span><span>${clean(one.outcome ?? "at work")}</span></li>`)}</ul></section>
      ${diagnostics.process_tree?.length > 0 && html`<section><h2>Processes</h2><${Block} text=${processes(diagnostics.process_tree)} name="Processes" /></section>`}
      ${diagnostics.processes_unknown && html`<section><h2>Processes</h2><p class="sentence">Not known: ${clean(diagnostics.processes_unknown)}</p></section>`}
      ${started && html`<section><h2>How it was started</h2><${Block} text=${`cd ${quoted(started.cwd)}\n${started.argv.map(quoted).join(" ")}`} name="Command" /></section>`}
      ${diagnostics.stderr_tail && html`<section><h2>What it said on standard error</h2><${Block} text=${diagnostics.stderr_tail} name="Standard error" /></section>`}
      ${run.result?.text && html`<section><h2>Result</h2><${Block} text=${run.result.text} name="Result" /></section>`}
    </div></div>`;
}

/** @param {string} word @returns {string} as it is typed in a shell */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}

/** @param {any[]} listed processes, each after its parent @returns {string} a line for each, below its parent */
function processes(listed) {
  /** @type {Map<number, number>} */
  const depths = new Map();
  const line = (/** @type {any} */ one) => {
    const depth = (depths.get(one.parent_pid) ?? -1) + 1;
    depths.set(one.pid, depth);
    return `${"  ".repeat(Math.min(depth, 20))}${one.pid}  ${one.command}`;
  };
  return listed.map(line).join("\n");
}
