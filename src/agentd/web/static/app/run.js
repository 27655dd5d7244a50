/** A run: why it is as it is, in words, with the evidence. */

import { get, list } from "./api.js";
import { html, useEffect, useState } from "./lib.js";
import { post } from "./outbox.js";
import { Age, Block, Empty, Header, State, Twice, usageText } from "./parts.js";
import { go, to } from "./route.js";
import { titleOf } from "./sessionfacts.js";
import { isOver, sessionOf, work } from "./store.js";
import { clean, cleanCode, clock } from "./text.js";

/** @import { Run } from "./types.js" */

/** @param {{ id: string }} props */
export function RunScreen({ id }) {
  const [found, setFound] = useState(/** @type {{ run: Run, diagnostics: any } | null} */ (null));
  const [error, setError] = useState("");
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
    return html`<${Header} title="Run" back=${to("sessions")} /><${Empty} title=${error ? "This run cannot be shown" : "Reading…"}><p class="muted">${error}</p><//>`;
  const { run, diagnostics } = found;
  const issue = diagnostics.likely_issue ?? {};
  const session = sessionOf(run.session_id);
  const again = async () => {
    const messages = await list(`sessions/${run.session_id}/messages`, "messages", {});
    const message = messages.find((/** @type {any} */ one) => one.id === run.message_id);
    if (message && (await post("POST", `sessions/${run.session_id}/messages`, { text: message.text }, run.session_id))) go(`s/${run.session_id}`);
  };
  const facts = [
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
      <section class=${`diagnosis diagnosis-${run.status}`}><h2>Why it is so</h2>
        <p class="strong">${clean(issue.message)}</p>
        ${issue.hint && html`<p>${clean(issue.hint)}</p>`}
        ${issue.code && !["none", "unknown"].includes(issue.code) && html`<p class="muted">Code <code>${clean(issue.code)}</code></p>`}
        ${run.error && !String(issue.message).includes(run.error.message) && html`<div class="failed-note"><p><strong>${clean(run.error.code)}</strong> ${clean(run.error.message)}</p></div>`}
        ${isOver(run.status) && run.status !== "completed" && run.message_id && html`<button type="button" class="primary" onClick=${() => void again()}>Send its message again</button>`}
      </section>
      <section><h2>Evidence</h2><dl>${facts.map(([name, value]) => html`<dt>${name}</dt><dd>${cleanCode(value)}</dd>`)}</dl></section>
      <section><h2>Attempts</h2><ul class="plain-list">${(diagnostics.attempts ?? []).map((/** @type {any} */ one) => html`<li class="line"><span class="strong">${one.attempt}</span>
        <span>${clean(one.provider)}</span><span class="muted">${clock(one.started_at)}${one.ended_at && ` – ${clock(one.ended_at)}`}</span><span>${clean(one.outcome ?? "at work")}</span></li>`)}</ul></section>
      ${diagnostics.process_tree?.length > 0 && html`<section><h2>Processes</h2><${Block} text=${processes(diagnostics.process_tree)} name="Processes" /></section>`}
      ${diagnostics.invocation && html`<section><h2>How it was started</h2><${Block} text=${diagnostics.invocation.command} name="Command" /></section>`}
      ${diagnostics.stderr_tail && html`<section><h2>What it said on standard error</h2><${Block} text=${diagnostics.stderr_tail} name="Standard error" /></section>`}
      ${run.result?.text && html`<section><h2>Result</h2><${Block} text=${run.result.text} name="Result" /></section>`}
    </div></div>`;
}

/** @param {any[]} tree @param {number} [depth] @returns {string} */
function processes(tree, depth = 0) {
  return tree
    .map((one) => {
      const name = one.command ?? one.cmdline ?? one.name ?? "";
      const line = `${"  ".repeat(depth)}${one.pid}  ${Array.isArray(name) ? name.join(" ") : name}`;
      return one.children?.length ? `${line}\n${processes(one.children, depth + 1)}` : line;
    })
    .join("\n");
}
