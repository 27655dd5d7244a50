/** Where the user is: the part of the address after `#`, such as `#/s/ses_1`. */

import { computed, signal } from "./lib.js";
import { table } from "./text.js";

/**
 * @typedef {{ name: string, id: string, view: string }} Route
 */

const hash = signal(location.hash);
addEventListener("hashchange", () => (hash.value = location.hash));

/** @type {{ [name: string]: "inbox" | "sessions" | "more" }} */
const TABS = table({
  inbox: "inbox", r: "inbox", sessions: "sessions", s: "sessions", new: "sessions", run: "sessions",
  more: "more", status: "more", audit: "more", devices: "more",
});

/** @param {string} text @returns {Route} */
function parse(text) {
  const [name = "", id = "", view = ""] = text.replace(/^#\/?/, "").split("/").map(decoded);
  return name in TABS ? { name, id, view } : { name: "inbox", id: "", view: "" };
}

/** @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

export const route = computed(() => parse(hash.value));

/** The tab that the route belongs to. */
export const tab = computed(() => TABS[route.value.name]);

/** @param {string} path such as `s/ses_1` */
export const to = (path) => `#/${path}`;

/** @param {string} path */
export function go(path) {
  location.hash = to(path);
}
