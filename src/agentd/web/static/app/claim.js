/** How a browser becomes a device: loaded when one is let in. */

import { DEVICE, TOKEN, change } from "./api.js";

/**
 * Become a device of the daemon. The browser keeps the cookie, and the page the other secret.
 *
 * @param {string} code of the invitation
 */
export async function claimDevice(code) {
  const { device, secret } = await change("POST", "devices/claim", { code, name: browserName() });
  sessionStorage.removeItem(TOKEN);
  localStorage.removeItem(TOKEN);
  localStorage.setItem(DEVICE, `${device.id}.${secret}`);
}

/** Return what a person would call this browser. */
function browserName() {
  const agent = navigator.userAgent;
  const pick = (/** @type {[RegExp, string][]} */ names) => names.find(([pattern]) => pattern.test(agent))?.[1];
  const browser = pick([[/Edg/, "Edge"], [/Firefox|FxiOS/, "Firefox"], [/Chrom|CriOS/, "Chrome"], [/Safari/, "Safari"]]);
  const system = pick([[/Android/, "Android"], [/iPhone/, "iPhone"], [/iPad/, "iPad"], [/Mac/, "Mac"], [/Windows/, "Windows"], [/Linux/, "Linux"]]);
  return [browser ?? "Browser", system && `on ${system}`].filter(Boolean).join(" ");
}
