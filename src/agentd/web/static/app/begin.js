/**
 * What the page does first: it lets itself in and reads what it will show. The index loads this with what it needs
 * before all that draws, so that the daemon answers while the rest is loaded.
 */

import { keepToken } from "./api.js";
import { effect, signal } from "./lib.js";
import { go, to } from "./route.js";
import { isFresh, sessions, setReader } from "./state.js";
import { start } from "./sync.js";

/** Why the code of an invitation did not let this browser in. */
export const claimError = signal("");

/** @param {string} code */
export async function claim(code) {
  claimError.value = "";
  setReader(false);
  try {
    await (await import("./claim.js")).claimDevice(code);
  } catch (error) {
    claimError.value = error instanceof Error ? error.message : String(error);
  }
  start();
}

/** Use what an invitation or a share link has in its address, and take it out of the address. */
async function begin() {
  const [kind, secret] = location.hash.slice(1).split("=");
  if ((kind === "device" || kind === "link") && secret) {
    history.replaceState(null, "", to("inbox"));
    dispatchEvent(new HashChangeEvent("hashchange"));
    if (kind === "device") return claim(decodeURIComponent(secret));
    keepToken(decodeURIComponent(secret), false);
    setReader(true);
    isLink.value = true;
  }
  start();
}

/** A share link shows one session: it is opened when it is known. */
const isLink = signal(false);
effect(() => {
  if (!isLink.value || !isFresh.value) return;
  const [first] = [...sessions.value.values()].sort((a, b) => a.id.localeCompare(b.id));
  isLink.value = false;
  if (first) go(`s/${first.id}`);
});

addEventListener("hashchange", () => /^#(device|link)=/.test(location.hash) && void begin());
void begin();
