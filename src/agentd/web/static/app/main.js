/** The page: its frame, and which screen is shown where. */

import { base, claimDevice, keepToken } from "./api.js";
import { AtWork, Inbox, RequestScreen } from "./inbox.js";
import { effect, html, render, signal, useEffect, useState } from "./lib.js";
import { Audit, Devices, More, Status } from "./more.js";
import { outbox } from "./outbox.js";
import { Empty, Icon } from "./parts.js";
import { go, route, tab, to } from "./route.js";
import { RunScreen } from "./run.js";
import { SessionScreen } from "./session.js";
import { NewSession, Sessions } from "./sessions.js";
import { Details } from "./details.js";
import { connection, inbox, isFresh, isReader, logOf, lostAt, now, refusal, sessions, start, toasts } from "./store.js";
import { ago, clean, counted } from "./text.js";

const isNewVersion = signal(false);
const width = signal(innerWidth);
addEventListener("resize", () => (width.value = innerWidth));

/** The screens with a tab of their own. A wide window has the sessions beside all but the last. */
const TAB_SCREENS = /** @type {{ [name: string]: () => any }} */ ({ inbox: Inbox, sessions: Sessions, more: More });

function Page() {
  if (refusal.value) return html`<${Refused} />`;
  const { name, id, view } = route.value;
  const isWide = width.value >= 900;
  const isThree = width.value >= 1300;
  const session = name === "s" ? sessions.value.get(id) : undefined;
  const screen = html`<${Screen} name=${name} id=${id} view=${isThree ? "" : view} />`;
  if (!isWide) return html`<div class="frame narrow"><${Banner} /><main class="pane main-pane">${screen}</main><${Tabs} /><${Toasts} /></div>`;
  const isBeside = name === "sessions" || name === "more";
  return html`<div class=${`frame wide ${isThree ? "three" : ""}`}>
    <${Banner} />
    <section class="pane list-pane" aria-label="List"><${Tabs} />${tab.value === "more" ? html`<${More} />` : html`<${Sessions} />`}</section>
    <main class="pane main-pane">${isBeside ? html`<${Welcome} />` : screen}</main>
    ${isThree && html`<aside class="pane side-pane" aria-label=${session ? "Details" : "At work"}>
      <header class="bar"><div class="bar-title"><h2>${session ? "Details" : "At work"}</h2></div></header>
      <div class="scroll">${session ? html`<${Details} session=${session} log=${logOf(id)} />` : html`<${AtWork} />`}</div>
    </aside>`}
    <${Toasts} />
  </div>`;
}

/** @param {{ name: string, id: string, view: string }} props */
function Screen({ name, id, view }) {
  if (name in TAB_SCREENS) return html`<${TAB_SCREENS[name]} />`;
  switch (name) {
    case "r":
      return html`<${RequestScreen} id=${id} />`;
    case "s":
      return html`<${SessionScreen} key=${id} id=${id} view=${view} />`;
    case "run":
      return html`<${RunScreen} id=${id} />`;
    case "new":
      return html`<${NewSession} />`;
    case "status":
      return html`<${Status} />`;
    case "audit":
      return html`<${Audit} />`;
    case "devices":
      return html`<${Devices} />`;
    default:
      return null;
  }
}

const Welcome = () =>
  tab.value === "more"
    ? html`<${Status} />`
    : html`<${Empty} title="Choose a session"><p class="muted">Its story appears here.</p><a class="button" href=${to("new")}>New session</a><//>`;

const TABS = /** @type {["inbox" | "sessions" | "more", string][]} */ ([["inbox", "Inbox"], ["sessions", "Sessions"], ["more", "More"]]);

function Tabs() {
  const count = inbox.value.length;
  return html`<nav class="tabs" aria-label="Main">
    ${TABS.map(([name, label]) => html`<a href=${to(name)} class=${tab.value === name ? "current" : ""} aria-current=${tab.value === name ? "page" : undefined}>
      <span class="tab-icon"><${Icon} name=${name} />${name === "inbox" && count > 0 && html`<span class="badge" aria-hidden="true">${count > 99 ? "99+" : count}</span>`}</span>
      <span>${label}</span>${name === "inbox" && count > 0 && html`<span class="visually-hidden">, ${counted(count, "request")}</span>`}</a>`)}
  </nav>`;
}

/** What the user must know on every screen: no connection, unsent changes, a new version. */
function Banner() {
  const unsent = outbox.value.filter((entry) => entry.state !== "refused").length;
  const isLost = lostAt.value > 0 && now.value - lostAt.value > 2500 && connection.value !== "live";
  return html`<div class="banner"><div role="status" aria-live="polite">
      ${isLost && html`<p class="offline"><strong>${navigator.onLine ? "No connection to the daemon" : "Offline"}</strong>${isFresh.value ? ` · as of ${ago(new Date(lostAt.value).toISOString(), now.value)}` : " · from your last visit"}${unsent > 0 ? ` · ${counted(unsent, "change")} will be sent` : ""}</p>`}
      ${connection.value === "draining" && html`<p>The daemon is about to stop.</p>`}
    </div>
    ${isNewVersion.value && html`<p>There is a new version of this page. <button type="button" class="small" onClick=${() => location.reload()}>Reload</button></p>`}
  </div>`;
}

const Toasts = () => html`<div class="toasts" role="status" aria-live="polite">${toasts.value.map(({ id, text }) => html`<p key=${id} class="toast">${clean(text)}</p>`)}</div>`;

/** Why the code of an invitation did not let this browser in. */
const claimError = signal("");

/** @param {string} code */
async function claim(code) {
  claimError.value = "";
  try {
    await claimDevice(code);
  } catch (error) {
    claimError.value = error instanceof Error ? error.message : String(error);
  }
  start();
}

function Refused() {
  const [code, setCode] = useState("");
  const [token, setToken] = useState("");
  const [remember, setRemember] = useState(true);
  const error = refusal.value;
  useEffect(() => document.querySelector("input")?.focus(), []);
  return html`<main class="sign-in" data-screen="sign-in"><h1>Agents</h1>
    <p>${error?.status === 401 ? "This daemon does not know this browser yet." : "The daemon refused this page."}</p>
    ${error?.status !== 401 && html`<p class="muted">${clean(error?.message)}</p>`}
    <form class="form" onSubmit=${(/** @type {SubmitEvent} */ event) => (event.preventDefault(), void claim(code.trim()))}>
      <label>Code<input type="text" autocomplete="one-time-code" autocapitalize="characters" autocorrect="off" spellcheck=${false} value=${code} onInput=${(/** @type {any} */ event) => setCode(event.target.value)} /></label>
      ${claimError.value && html`<p class="failed-note" role="alert">${clean(claimError.value)}</p>`}
      <button type="submit" class="primary" disabled=${!code.trim()}>Let this browser in</button>
      <p class="muted">Get a code on the daemon's machine: <code>agentctl device add</code></p>
    </form>
    <details class="fold"><summary>Use a token instead</summary>
      <form class="form" onSubmit=${(/** @type {SubmitEvent} */ event) => (event.preventDefault(), keepToken(token.trim(), remember), start())}>
        <label>Token<input type="password" autocomplete="current-password" value=${token} onInput=${(/** @type {any} */ event) => setToken(event.target.value)} /></label>
        <label class="choice"><input type="checkbox" checked=${remember} onChange=${() => setRemember(!remember)} /><span>Keep it on this device</span></label>
        <button type="submit" class="primary" disabled=${!token.trim()}>Open</button>
      </form></details></main>`;
}

effect(() => {
  const count = inbox.value.length;
  document.title = count ? `(${count}) Agents` : "Agents";
  if ("setAppBadge" in navigator) void navigator.setAppBadge(count).catch(() => {});
});

async function keepOffline() {
  if (!("serviceWorker" in navigator)) return;
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

/** Use what an invitation or a share link has in its address, and take it out of the address. */
async function begin() {
  const [kind, secret] = location.hash.slice(1).split("=");
  if ((kind === "device" || kind === "link") && secret) {
    history.replaceState(null, "", to("inbox"));
    dispatchEvent(new HashChangeEvent("hashchange"));
    if (kind === "device") return claim(decodeURIComponent(secret));
    keepToken(decodeURIComponent(secret), false);
    sessionStorage.setItem("agentd.reader", "yes");
    isReader.value = true;
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

const root = document.getElementById("page");
if (root) render(html`<${Page} />`, root);
addEventListener("hashchange", () => /^#(device|link)=/.test(location.hash) && void begin());
void begin();
void keepOffline().catch(() => {});
