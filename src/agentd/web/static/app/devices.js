/** The devices that are let in, and what this browser keeps. */

import { base, change, deviceId, hasCredentials, list } from "./api.js";
import { Handover } from "./handover.js";
import { html, signal, useEffect, useState } from "./lib.js";
import { Notices } from "./notices.js";
import { Age, Header, Reserved, Twice } from "./parts.js";
import { useRead } from "./reading.js";
import { to } from "./route.js";
import { keepRows, rowsOf } from "./storage.js";
import { clearDevice, keepAccess } from "./sync.js";
import { clean, clock, oneLine, table } from "./text.js";

/** The code of the last invitation, as long as it is valid. The screen may be replaced while it is made. */
const invitation = signal("");
const INVITATION_MS = 5 * 60_000;

/** @param {string} code */
function showInvitation(code) {
  invitation.value = code;
  setTimeout(() => invitation.value === code && (invitation.value = ""), INVITATION_MS);
}

const SCOPES = /** @type {{ [scope: string]: string }} */ (table({ read: "look", write: "start and write", approve: "answer requests", admin: "everything" }));

/** @param {string[]} scopes */
const inWords = (scopes) => (scopes.includes("admin") ? "do everything" : scopes.map((one) => SCOPES[one] ?? clean(one)).join(", "));

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
      await keepAccess();
      showInvitation((await change("POST", "devices", {})).code);
    });
  const revoke = (/** @type {string} */ id) => attempt(() => change("POST", `devices/${id}/revoke`, {}));
  const clear = async () => {
    if (own) await change("POST", `devices/${own}/revoke`, {}).catch(() => {});
    clearDevice();
    for (const name of await caches.keys()) await caches.delete(name);
    for (const worker of await navigator.serviceWorker.getRegistrations()) await worker.unregister();
    location.href = base.href;
  };
  const devices = found?.filter((one) => !one.revoked_at && one.purpose === "device");
  useEffect(() => devices && keepRows("devices", devices.length), [devices?.length]);
  const link = new URL(`#device=${invitation.value}`, base).href;
  return html`
    <${Header} title="Devices and notices" back=${to("more")} />
    <div class="scroll" data-screen="devices"><div class="details">
      <section><h2>Let in</h2>
        ${(error || problem) && html`<p class="failed-note" role="alert">${clean(problem || error)}</p>`}
        ${invitation.value
          ? html`<div class="invitation"><p>Open this on the other device, or scan it with its camera, within five minutes:</p><${Handover} link=${link} />
              <p>Or open <code>${base.href}</code> there, and type the code <strong class="code-word">${invitation.value}</strong></p></div>`
          : html`<button type="button" class="primary" onClick=${() => void invite()}>Let another device in</button>
              ${!hasCredentials() && html`<p class="muted">From then on every browser and program needs to be let in, this one included.</p>`}`}
        ${(devices?.length ?? rowsOf("devices")) > 0 && html`<p class="muted">A device that you revoke is signed out at once, and gets no more notices. It needs a new code to come back.</p>`}
        ${!devices && !error && (rowsOf("devices") ? html`<${Reserved} count=${rowsOf("devices")} class="admitted" />` : html`<p class="muted">Reading…</p>`)}
        ${devices && !devices.length && html`<p class="muted">None yet. ${hasCredentials() ? "This browser uses a token." : "The daemon trusts this machine."}</p>`}
        ${devices && html`<ul class="plain-list">${devices.map((one) => html`<li key=${one.id} class="line admitted device">
          <span class="device-name"><span class="strong">${oneLine(one.name, 60)}</span>${one.id === own && html` <span class="tag">this one</span>`}</span>
          <${Twice} class="small deny" question=${one.id === own ? "Sign this browser out?" : "Really revoke?"} onConfirm=${() => void revoke(one.id)}>Revoke<//>
          <span class="device-seen">${one.seen_at ? html`Last seen <${Age} at=${one.seen_at} />` : "Not seen yet"} <span class="muted">· let in ${clock(one.created_at)}</span></span>
          <span class="muted device-scopes">May ${inWords(one.scopes)}</span></li>`)}</ul>`}
      </section>
      <${Notices} />
      <section><h2>What this browser keeps</h2><p>The page itself, the lists that it showed last, and what you wrote that was not sent yet. It works without a network, and sends your answers once when there is one.</p>
        <${Twice} class="deny" question="Really forget everything here?" onConfirm=${() => void clear()}>Forget everything here<//></section>
      <section><h2>Use it as an app</h2><p>Open this page on the phone and choose “Add to Home Screen”. That needs HTTPS, for instance by <code>tailscale serve</code> or a reverse proxy.</p></section>
    </div></div>`;
}
