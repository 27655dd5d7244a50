/** What this page shows now. The service worker asks, because nobody needs a notice of what they look at. */

import { route } from "./route.js";
import { connection } from "./state.js";

/** @param {{ session_id?: string, request_id?: string }} subject of a notice */
function isShown({ session_id: session, request_id: request }) {
  // A page that lost its connection may not show what is new.
  if (document.visibilityState !== "visible" || connection.value !== "live") return false;
  const { name, id } = route.value;
  if (name === "inbox") return request !== undefined;
  if (name === "r") return id === request;
  return name === "s" && id === session;
}

/** Answer the service worker. */
export function answerWorker() {
  navigator.serviceWorker.addEventListener("message", ({ data, ports: [port] }) => {
    if (data?.type === "is-shown" && port) port.postMessage(isShown(data));
  });
}
