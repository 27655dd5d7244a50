/** The screens behind "More": the daemon's status, its audit trail, this device. */

import { base, change, claimDevice, deviceId, get, hasCredentials, list } from "./api.js";
import { html, signal, useEffect, useState } from "./lib.js";
import { Notices } from "./notices.js";
import { post } from "./outbox.js";
import { Block, Empty, Header, Icon, State, Twice } from "./parts.js";
import { to } from "./route.js";
import { clearDevice, connection, refreshStatus, start, status, toast, work } from "./store.js";
import { clean, cleanCode, clock, counted, duration, oneLine } from "./text.js";

export const More = () => html`
  <${Header} title="More" />
  <div class="scroll" data-screen="more"><nav aria-label="More"><ul class="rows">
    ${[
      ["status", "Status", "Workers, queue, providers, findings of doctor"],
      ["audit", "Audit", "Who decided what"],
      ["devices", "Devices and notices", "Who is let in and notified, and what this browser keeps"],
    ].map(([path, name, about]) => html`<li><div class="row"><a href=${to(path)}><span class="row-title">${name}</span><span class="row-line muted">${about}</span></a></div></li>`)}
  </ul></nav></div>
`;

/** @template T @param {() => Promise<T>} read @param {any[]} inputs @returns {[T | null, string]} */
function useRead(read, inputs) {
  const [found, setFound] = useState(/** @type {T | null} */ (null));
  const [error, setError] = useState("");
  useEffect(() => {
    let isCurrent = true;
    setError("");
    read().then(
      (answer) => isCurrent && setFound(() => answer),
      (reason) => isCurrent && setError(reason.message),
    );
    return () => {
      isCurrent = false;
    };
  }, inputs);
  return [found, error];
}

/** @type {{ [health: string]: string }} */
const HEALTH = { ok: "completed", degraded: "failed", draining: "waiting" };

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
          <div><strong>${found.alive_workers}</strong><span class="muted">of ${found.max_concurrency} workers</span></div>
        </div></section>
      <section><h2>Providers</h2><ul class="plain-list">${found.providers.map((one) => html`<li class="line provider">
        <${State} state=${one.available ? "completed" : "failed"} label=${one.available ? "ready" : "not ready"} />
        <span class="strong">${clean(one.name)}</span>${one.default && html`<span class="muted">default</span>`}
        <span class="muted">${[one.runner, one.mode, one.version].filter(Boolean).map(clean).join(" · ")}</span>
        ${one.reason && html`<span class="muted last">${clean(one.reason)}</span>`}
        ${one.logged_in === false && html`<span class="warn last">not logged in</span>`}</li>`)}</ul></section>
      <section><h2>What doctor found</h2>
        ${doctorError && html`<p class="muted">${doctorError}</p>`}
        ${doctor && !findings.length && html`<p><${State} state="completed" label="nothing to mend" /></p>`}
        <ul class="plain-list">${findings.map((/** @type {any} */ one) => html`<li class="finding"><p><${State} state=${one.level === "note" ? "waiting" : "failed"} label=${clean(one.level)} /> <span class="strong">${clean(one.about)}</span></p>
          <p>${clean(one.message)}</p>${one.hint && html`<p class="muted">${clean(one.hint)}</p>`}</li>`)}</ul></section>
      <section><h2>Store</h2><dl>${Object.entries(found.store).map(([name, value]) => html`<dt>${name.replaceAll("_", " ")}</dt><dd>${cleanCode(String(value))}</dd>`)}</dl></section>
      <section><h2>In an emergency</h2><${Twice} class="deny" question="Really stop every run?" onConfirm=${() => void stopAll()}>Stop everything<//></section>
    </div></div>`;
}

export function Audit() {
  const [found, error] = useRead(() => list("daemon/audit", "entries", {}, 5000), []);
  const entries = found ? [...found].reverse() : [];
  return html`
    <${Header} title="Audit" back=${to("more")} />
    <div class="scroll" data-screen="audit">
      ${error && html`<${Empty} title="The audit trail cannot be shown"><p class="muted">${error}</p><//>`}
      ${found && !entries.length && html`<${Empty} title="Nothing yet"><p class="muted">Decisions, cancels, grants and tokens appear here.</p><//>`}
      <ul class="rows audit">${entries.slice(0, 300).map((one) => html`<li key=${one.seq}><div class="row"><div class="row-body">
        <span class="row-top"><span><strong>${clean(one.principal)}</strong> ${clean(one.operation.replaceAll("_", " "))}</span><span class="muted">${clock(one.at)}</span></span>
        <span class="row-state"><${State} state=${one.decision === "done" ? "completed" : "failed"} label=${clean(one.decision)} /> <code>${cleanCode(one.target ?? "")}</code></span>
        <span class="row-line muted">${inWords(one.detail)}</span>
      </div></div></li>`)}</ul>
    </div>`;
}

/** @param {{ [name: string]: any } | null} detail of an entry of the audit trail */
function inWords(detail) {
  const given = Object.entries(detail ?? {}).filter(([, value]) => value !== null);
  return cleanCode(given.map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", "));
}

/** The code of the last invitation, as long as it is valid. The screen may be replaced while it is made. */
const invitation = signal("");
const INVITATION_MS = 5 * 60_000;

/** @param {string} code */
function showInvitation(code) {
  invitation.value = code;
  setTimeout(() => invitation.value === code && (invitation.value = ""), INVITATION_MS);
}

export function Devices() {
  const [changes, setChanges] = useState(0);
  const [found, error] = useRead(() => list("devices", "devices", {}), [changes]);
  const [problem, setProblem] = useState("");
  const own = deviceId();
  const attempt = async (/** @type {() => Promise<void>} */ task) => {
    setProblem("");
    await task().catch((reason) => setProblem(reason.message));
    setChanges(changes + 1);
  };
  const invite = () =>
    attempt(async () => {
      // The browser that invites first becomes a device itself, because from then on each caller needs a token.
      const { code } = await change("POST", "devices", hasCredentials() ? {} : { scopes: ["admin"] });
      if (hasCredentials()) showInvitation(code);
      else {
        await claimDevice(code);
        start(); // the stream may have been refused meanwhile
        showInvitation((await change("POST", "devices", {})).code);
      }
    });
  const revoke = (/** @type {string} */ id) => attempt(() => change("POST", `devices/${id}/revoke`, {}));
  const clear = async () => {
    if (own) await change("POST", `devices/${own}/revoke`, {}).catch(() => {});
    clearDevice();
    for (const name of await caches.keys()) await caches.delete(name);
    for (const worker of await navigator.serviceWorker.getRegistrations()) await worker.unregister();
    location.href = base.href;
  };
  const devices = (found ?? []).filter((one) => !one.revoked_at && one.purpose === "device");
  const link = new URL(`#device=${invitation.value}`, base).href;
  return html`
    <${Header} title="Devices and notices" back=${to("more")} />
    <div class="scroll" data-screen="devices"><div class="details">
      <section><h2>Let in</h2>
        ${(error || problem) && html`<p class="failed-note" role="alert">${clean(problem || error)}</p>`}
        ${found && !devices.length && html`<p class="muted">None yet. ${hasCredentials() ? "This browser uses a token." : "The daemon trusts this machine."}</p>`}
        <ul class="plain-list">${devices.map((one) => html`<li key=${one.id} class="line device"><span class="strong">${oneLine(one.name, 60)}</span>
          ${one.id === own && html`<span class="state state-running">this one</span>`}
          <span class="muted">${clean(one.scopes.join(", "))} · since ${clock(one.created_at)}</span>
          <${Twice} class="small deny" question="Really?" onConfirm=${() => void revoke(one.id)}>Revoke<//></li>`)}</ul>
        ${invitation.value
          ? html`<div class="invitation"><p>Open this on the other device, within five minutes:</p><${Block} text=${link} name="Link" />
              <p>Or open <code>${base.href}</code> there, and type the code <strong class="code-word">${invitation.value}</strong></p></div>`
          : html`<button type="button" class="primary" onClick=${() => void invite()}>Let another device in</button>
              ${!hasCredentials() && html`<p class="muted">From then on every browser and program needs to be let in, this one included.</p>`}`}
      </section>
      <${Notices} />
      <section><h2>What this browser keeps</h2><p>The page itself, the lists that it showed last, and what you wrote that was not sent yet. It works without a network, and sends your answers once when there is one.</p>
        <${Twice} class="deny" question="Really forget everything here?" onConfirm=${() => void clear()}>Forget everything here<//></section>
      <section><h2>Use it as an app</h2><p>Open this page on the phone and choose “Add to Home Screen”. That needs HTTPS, for instance by <code>tailscale serve</code> or a reverse proxy.</p></section>
    </div></div>`;
}
