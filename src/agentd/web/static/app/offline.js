/** The service worker, which keeps the page's files and shows notices. */

import { base } from "./api.js";
import { answerWorker } from "./foreground.js";
import { effect } from "./lib.js";
import { connection, isNewVersion } from "./state.js";

/** Let the service worker keep the page's files, and ask it for those of a new version. */
export async function keepOffline() {
  answerWorker();
  const address = new URL("sw.js", base).href;
  const policy = /** @type {any} */ (window).trustedTypes?.createPolicy("agentd", {
    createScriptURL: (/** @type {string} */ url) => {
      if (url !== address) throw new TypeError("not the page's worker");
      return url;
    },
  });
  // The first worker of a first visit has the files of this page.
  let isControlled = navigator.serviceWorker.controller !== null;
  navigator.serviceWorker.addEventListener("controllerchange", () => {
    isNewVersion.value = isControlled;
    isControlled = true;
  });
  const worker = await navigator.serviceWorker.register(policy ? policy.createScriptURL(address) : address);
  // A page that was asleep asks for the version of the daemon that it wakes up with.
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && void worker.update().catch(() => {}));
  effect(() => {
    if (connection.value === "live") void worker.update().catch(() => {});
  });
}
