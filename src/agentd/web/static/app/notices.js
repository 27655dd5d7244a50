/** Notices of this browser: Web Push, which the service worker shows. */

import { base, change, credentials, get, list, send } from "./api.js";
import { html, useEffect, useState } from "./lib.js";
import { Twice } from "./parts.js";
import { ago, clean, oneLine } from "./text.js";
import { now } from "./store.js";

/** The cache from which the worker has the headers of its reports; `sw.js` has the same name. */
const CREDENTIALS = "credentials-of-agentd";

/** Why this browser cannot be sent notices; empty if it can. */
function obstacle() {
  if (!isSecureContext) return "Notices need HTTPS, such as by tailscale serve or a reverse proxy.";
  if (!("PushManager" in window)) return "This browser has no notices here. On an iPhone, add the page to the Home Screen first.";
  return "Notification" in window && Notification.permission === "denied" ? "The browser's settings forbid notices of this page." : "";
}

/** @param {string} text base64url */
const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (one) => one.charCodeAt(0));

/** @param {string[]} events what to be notified of */
async function subscribe(events) {
  if ((await Notification.requestPermission()) !== "granted") throw new Error("The browser was not allowed to show notices.");
  const worker = await navigator.serviceWorker.ready;
  const { key } = await get("push/key");
  const subscription = await worker.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: bytes(key) });
  const { endpoint, keys } = subscription.toJSON();
  await keepCredentials();
  await change("POST", "push/subscriptions", { endpoint, p256dh: keys?.p256dh, auth: keys?.auth, events });
}

/** Let the worker report in the name of this browser. */
async function keepCredentials() {
  const cache = await caches.open(CREDENTIALS);
  await cache.put(new URL("credentials", base), new Response(JSON.stringify(credentials())));
}

/** @param {string} id */
const remove = (id) => send(`push/subscriptions/${encodeURIComponent(id)}`, { method: "DELETE" });

/** Which browsers are notified, and of what. */
export function Notices() {
  const [found, setFound] = useState(/** @type {any[]} */ ([]));
  const [isAll, setAll] = useState(false);
  const [problem, setProblem] = useState("");
  const read = () => list("push/subscriptions", "subscriptions", {}).then(setFound, (error) => setProblem(error.message));
  useEffect(() => void read(), []);
  const attempt = async (/** @type {() => Promise<unknown>} */ task) => {
    setProblem("");
    await task().catch((error) => setProblem(error.message));
    await read();
  };
  const why = obstacle();
  return html`<section><h2>Notices</h2>
    ${problem && html`<p class="failed-note" role="alert">${clean(problem)}</p>`}
    <ul class="plain-list">${found.map((one) => html`<li key=${one.id} class="line device"><span class="strong">${oneLine(one.name, 60)}</span>
      <span class="muted">${clean(one.events.join(", "))} · used ${ago(one.seen_at, now.value)}</span>
      <${Twice} class="small deny" question="Really?" onConfirm=${() => void attempt(() => remove(one.id))}>Remove<//></li>`)}</ul>
    ${why
      ? html`<p class="muted">${why}</p>`
      : html`<label class="choice"><input type="checkbox" checked=${isAll} onChange=${() => setAll(!isAll)} /><span>Also when work has finished or failed</span></label>
          <button type="button" onClick=${() => void attempt(() => subscribe(isAll ? ["request", "finished", "failed"] : ["request"]))}>Notify this browser</button>`}
  </section>`;
}
