/** The page: its frame, and which screen is shown where. */

import { base, keepToken } from "./api.js";
import { AtWork, Inbox, RequestScreen } from "./inbox.js";
import { effect, html, render, signal, useEffect, useState } from "./lib.js";
import { Audit, Devices, More, Status } from "./more.js";
import { outbox } from "./outbox.js";
import { Empty, Icon } from "./parts.js";
import { route, tab, to } from "./route.js";
import { RunScreen } from "./run.js";
import { SessionScreen } from "./session.js";
import { NewSession, Sessions } from "./sessions.js";
import { Details } from "./details.js";
import { connection, inbox, isFresh, logOf, lostAt, now, refusal, sessions, start, toasts } from "./store.js";
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

function Refused() {
  const [token, setToken] = useState("");
  const [remember, setRemember] = useState(true);
  const error = refusal.value;
  useEffect(() => document.querySelector("input")?.focus(), []);
  const submit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    keepToken(token.trim(), remember);
    start();
  };
  return html`<main class="sign-in" data-screen="sign-in"><h1>Agents</h1>
    <p>${error?.status === 401 ? "This daemon needs a token." : "The daemon refused this page."}</p>
    <p class="muted">${clean(error?.message)}</p>
    <form class="form" onSubmit=${submit}>
      <label>Token<input type="password" autocomplete="current-password" value=${token} onInput=${(/** @type {any} */ event) => setToken(event.target.value)} /></label>
      <label class="choice"><input type="checkbox" checked=${remember} onChange=${() => setRemember(!remember)} /><span>Keep it on this device</span></label>
      <button type="submit" class="primary" disabled=${!token.trim()}>Open</button>
    </form>
    <p class="muted">Make one on the daemon's machine: <code>agentctl token create --name phone</code></p></main>`;
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

const root = document.getElementById("page");
if (root) render(html`<${Page} />`, root);
start();
void keepOffline().catch(() => {});
