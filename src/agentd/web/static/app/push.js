/** Web Push in this browser: its subscription, and what the service worker needs to report. */

import { base, change, credentials, get, send } from "./api.js";
import { signal } from "./lib.js";

/** The cache from which the worker has the headers of its reports; `sw.js` has the same name. */
const CREDENTIALS = "credentials-of-agentd";
const OWN = "agentd.push";

/** The id of this browser's push subscription; empty without one. */
export const ownPush = signal(localStorage.getItem(OWN) ?? "");

/** @typedef {"" | "https" | "home-screen" | "none" | "denied"} Obstacle */

/**
 * Return why this browser cannot be sent notices; empty if it can.
 *
 * @returns {Obstacle}
 */
export function obstacle() {
  if (!isSecureContext) return "https";
  if (!("PushManager" in window)) return /iPhone|iPad|iPod/.test(navigator.userAgent) ? "home-screen" : "none";
  return "Notification" in window && Notification.permission === "denied" ? "denied" : "";
}

/** @param {string} text base64url */
const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (one) => one.charCodeAt(0));

/** @param {string[]} events what to be notified of */
export async function subscribe(events) {
  if ((await Notification.requestPermission()) !== "granted") throw new Error("The browser was not allowed to show notices.");
  const worker = await navigator.serviceWorker.ready;
  const { key } = await get("push/key");
  const options = { userVisibleOnly: true, applicationServerKey: bytes(key) };
  const made = await worker.pushManager.subscribe(options).catch(async (error) => {
    // The daemon has another key than at the last time: begin anew.
    const former = await worker.pushManager.getSubscription();
    if (!former) throw error;
    await former.unsubscribe();
    return worker.pushManager.subscribe(options);
  });
  const { endpoint, keys } = made.toJSON();
  await keepCredentials();
  const { subscription } = await change("POST", "push/subscriptions", { endpoint, p256dh: keys?.p256dh, auth: keys?.auth, events });
  localStorage.setItem(OWN, subscription.id);
  ownPush.value = subscription.id;
}

/** Let the worker report in the name of this browser. */
async function keepCredentials() {
  const cache = await caches.open(CREDENTIALS);
  await cache.put(new URL("credentials", base), new Response(JSON.stringify(credentials())));
}

/** @param {string} id @returns {string} */
const path = (id) => `push/subscriptions/${encodeURIComponent(id)}`;

/** @param {string} id of a subscription @param {{ [name: string]: any }} changes */
export const update = (id, changes) => change("PATCH", path(id), changes);

/** @param {string} id of a subscription */
export async function remove(id) {
  await send(path(id), { method: "DELETE" });
  if (id !== ownPush.value) return;
  localStorage.removeItem(OWN);
  ownPush.value = "";
  const worker = await navigator.serviceWorker.getRegistration();
  await (await worker?.pushManager.getSubscription())?.unsubscribe();
}
