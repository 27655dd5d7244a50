/** The screens behind "More": the daemon's status and its audit trail. */

import { get, list } from "./api.js";
import { html, useEffect } from "./lib.js";
import { post } from "./outbox.js";
import { Empty, Header, Icon, State, Twice } from "./parts.js";
import { refreshStatus, useRead } from "./reading.js";
import { to } from "./route.js";
import { connection, status, toast, warnings, work } from "./state.js";
import { clean, cleanCode, clock, counted, duration, table } from "./text.js";

export const More = () => html`
  <${Header} title="More" />
  <div class="scroll" data-screen="more"><nav aria-label="More"><ul class="rows">
    ${[
      ["status", "Status", "Workers, queue, providers, findings of doctor"],
      ["audit", "Audit", "Who decided what"],
      ["devices", "Devices and notices", "Who is let in and notified, and what this browser keeps"],
    ].map(([path, name, about]) => html`<li><div class="row"><a href=${to(path)}><span class="row-title">${name}</span>
      ${path === "status" && warnings.value.length > 0
        ? html`<span class="row-line problem"><${Icon} name="warning" /> ${counted(warnings.value.length, "problem")}: ${clean(warnings.value[0])}</span>`
        : html`<span class="row-line muted">${about}</span>`}</a></div></li>`)}
  </ul></nav></div>
`;

/** @type {{ [health: string]: string }} */
const HEALTH = table({ ok: "completed", degraded: "failed", draining: "waiting" });

export function Status() {
  useEffect(() => void refreshStatus(), [connection.value, work.value]);
  const [doctor, doctorError] = useRead(() => get("daemon/doctor"), [connection.value]);
  const found = status.value;
  if (!found) return html`<${Header} title="Status" back=${to("more")} /><${Empty} title="Reading…" />`;
  const stopAll = async () => {
    const runs = (await Promise.all(["queued", "running", "waiting"].map((state) => list("runs", "runs", { status: state })))).flat();
    await Promise.all(runs.map((run) => post("POST", `runs/${run.id}/cancel`, {}, run.session_id)));
    toast(`Asked ${counted(runs.length, "run")} to stop.`);
  };
  const { queued_count, running_count, waiting_count } = found.queue_counts;
  // Several daemons may share the store, and its queue.
  const others = found.daemons.filter((one) => one.max_concurrency !== null);
  const all = others.length ? others.reduce((sum, one) => sum + one.max_concurrency, 0) : found.max_concurrency;
  const busy = Math.min(running_count, all);
  const free = Math.max(0, all - busy);
  const findings = (doctor?.findings ?? []).filter((/** @type {any} */ one) => one.level !== "ok");
  return html`
    <${Header} title="Status" back=${to("more")} />
    <div class="scroll" data-screen="status"><div class="details">
      <section><h2>The daemon</h2>
        <p><${State} state=${HEALTH[found.daemon_health] ?? "failed"} label=${clean(found.daemon_health)} /> <span class="muted">version ${clean(found.version)} · up ${duration(found.uptime_s)}</span></p>
        ${found.problems.map((problem) => html`<p class="warn"><${Icon} name="warning" />${clean(problem.message ?? problem)}</p>`)}
        <div class="tiles">
          <div><strong>${running_count}</strong><span class="muted">at work</span></div>
          <div><strong>${queued_count}</strong><span class="muted">queued</span></div>
          <div><strong>${waiting_count}</strong><span class="muted">waiting</span></div>
          <div><strong>${free}</strong><span class="muted">of ${counted(all, "worker")} free, ${busy} busy</span></div>
        </div>
        ${found.alive_workers < found.max_concurrency && html`<p class="warn"><${Icon} name="warning" />${found.max_concurrency - found.alive_workers} of ${counted(found.max_concurrency, "worker")} do not work.</p>`}</section>
      <section><h2>Providers</h2><ul class="plain-list">${found.providers.map((one) => html`<li class="line provider">
        <${State} state=${one.available ? "completed" : "failed"} label=${one.available ? "ready" : "not ready"} />
        <span class="strong">${clean(one.name)}</span>${one.default && html`<span class="muted">default</span>`}
        <span class="muted">${[one.runner, one.mode, one.version].filter(Boolean).map(clean).join(" · ")}</span>
        ${one.reason && html`<span class="muted last">${clean(one.reason)}</span>`}
        ${one.logged_in === false && html`<span class="warn last">not logged in</span>`}</li>`)}</ul></section>
      <section><h2>In an emergency</h2>
        <p class="muted">Asks every run to stop: queued, at work and waiting. The sessions and what they have changed stay, and the daemon goes on.</p>
        <${Twice} class="deny" question="Really stop every run?" onConfirm=${() => void stopAll()}>Stop everything<//>
        <p class="muted">To let what is at work end first, and take no more: <code>agentctl daemon stop</code> on the daemon’s machine.</p></section>
      <section><h2>What doctor found</h2>
        ${doctorError && html`<p class="muted sentence">${doctorError}</p>`}
        ${!doctor && !doctorError && html`<p class="muted">Reading…</p>`}
        ${doctor && !findings.length && html`<p><${State} state="completed" label="nothing to mend" /></p>`}
        <ul class="plain-list">${findings.map((/** @type {any} */ one) => html`<li class="finding"><p><${State} state=${one.level === "note" ? "waiting" : "failed"} label=${clean(one.level)} /> <span class="strong">${clean(one.about)}</span></p>
          <p>${clean(one.message)}</p>${one.hint && html`<p class="muted">${clean(one.hint)}</p>`}</li>`)}</ul></section>
      <section><h2>Store</h2><dl>${Object.entries(found.store).map(([name, value]) => html`<dt>${name.replaceAll("_", " ")}</dt><dd>${cleanCode(String(value))}</dd>`)}</dl></section>
    </div></div>`;
}

export function Audit() {
  const [found, error] = useRead(() => list("daemon/audit", "entries", { order: "newest" }, 300), []);
  const entries = found ?? [];
  return html`
    <${Header} title="Audit" back=${to("more")} />
    <div class="scroll" data-screen="audit">
      ${error && html`<${Empty} title="The audit trail cannot be shown"><p class="muted">${error}</p><//>`}
      ${found && !entries.length && html`<${Empty} title="Nothing yet"><p class="muted">Decisions, cancels, grants and tokens appear here.</p><//>`}
      <ul class="rows audit">${entries.map((one) => html`<li key=${one.seq}><div class="row"><div class="row-body">
        <span class="row-top"><span class="row-title"><strong>${clean(one.principal)}</strong> ${clean(one.operation.replaceAll("_", " "))}</span><span class="muted">${clock(one.at)}</span></span>
        <span class="row-state"><${State} state=${one.decision === "done" ? "completed" : "failed"} label=${clean(one.decision)} /> ${targetOf(one.target ?? "")}</span>
        <span class="row-line muted">${inWords(one.detail)}</span>
      </div></div></li>`)}</ul>
    </div>`;
}

/** @type {{ [kind: string]: string }} the screen of each kind of object */
const SCREENS = table({ ses: "s", req: "r", run: "run" });

/** What an entry is about, as a link if it has a screen. @param {string} target */
function targetOf(target) {
  const screen = SCREENS[target.split("_", 1)[0]];
  return screen && /^\w+$/.test(target) ? html`<a class="target" href=${to(`${screen}/${target}`)}><code>${target}</code></a>` : html`<code>${cleanCode(target)}</code>`;
}

/** @param {{ [name: string]: any } | null} detail of an entry of the audit trail */
function inWords(detail) {
  const given = Object.entries(detail ?? {}).filter(([, value]) => value !== null);
  return cleanCode(given.map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", "));
}
