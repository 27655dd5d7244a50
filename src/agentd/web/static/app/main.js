/** The page: its frame, and which screen is shown where. */

import { Inbox, RequestScreen, requestOf } from "./inbox.js";
import { Audit, Details, Devices, LinkEnded, More, NewSession, Refused, RunScreen, SessionScreen, Status } from "./lazy.js";
import { effect, html, render } from "./lib.js";
import { logOf } from "./logs.js";
import { outbox } from "./outbox.js";
import { Empty, Icon } from "./parts.js";
import { route, tab, to } from "./route.js";
import { Sessions } from "./sessions.js";
import { connection, inbox, isFresh, isNewVersion, isReader, lostAt, now, refusal, sessions, toasts, warnings } from "./state.js";
import { clean, counted, duration } from "./text.js";
import { hasKeyboard, width } from "./viewport.js";

/** The screen of each route. */
const SCREENS = /** @type {{ [name: string]: any }} */ ({
  inbox: Inbox, sessions: Sessions, more: More, r: RequestScreen, s: SessionScreen, run: RunScreen, new: NewSession, status: Status, audit: Audit, devices: Devices,
});

function Page() {
  if (refusal.value) return isReader.value && refusal.value.status === 401 ? html`<${LinkEnded} />` : html`<${Refused} />`;
  const { name, id, view } = route.value;
  const isWide = width.value >= 900;
  const isThree = width.value >= 1300;
  // Beside a session and its requests are its details; nothing else has more to show than the list has.
  const session = sessions.value.get(name === "s" ? id : (name === "r" && requestOf(id)?.session_id) || "");
  const isDetailed = isThree && (name === "s" || session !== undefined);
  const screen = html`<${SCREENS[name]} key=${id} id=${id} view=${isThree ? "" : view} />`;
  if (!isWide) return html`<div class=${`frame narrow ${hasKeyboard.value ? "keyboard" : ""}`}><${Banner} /><main class="pane main-pane">${screen}</main>${name !== "s" && html`<${Tabs} />`}<${Toasts} /></div>`;
  const isBeside = name === "sessions" || name === "more";
  return html`<div class=${`frame wide ${isDetailed ? "three" : ""}`}>
    <${Banner} />
    <section class="pane list-pane" aria-label="List"><${Tabs} />${tab.value === "more" ? html`<${More} />` : html`<${Sessions} />`}</section>
    <main class="pane main-pane">${isBeside ? html`<${Welcome} />` : screen}</main>
    ${isDetailed && html`<aside class="pane side-pane" aria-label="Details">
      <header class="bar"><div class="bar-title"><h2>Details</h2></div></header>
      <div class="scroll">${session && html`<${Details} key=${session.id} session=${session} log=${logOf(session.id)} />`}</div>
    </aside>`}
    <${Toasts} />
  </div>`;
}

const Welcome = () =>
  tab.value === "more"
    ? html`<${Status} />`
    : html`<${Empty} title="Choose a session"><p class="muted">Its story appears here.</p><a class="button" href=${to("new")}>New session</a><//>`;

const TABS = /** @type {["inbox" | "sessions" | "more", string][]} */ ([["inbox", "Inbox"], ["sessions", "Sessions"], ["more", "More"]]);

function Tabs() {
  const count = inbox.value.length;
  const problems = warnings.value.length;
  return html`<nav class="tabs" aria-label="Main">
    ${TABS.map(([name, label]) => html`<a href=${to(name)} class=${tab.value === name ? "current" : ""} aria-current=${tab.value === name ? "page" : undefined}>
      <span class="tab-icon"><${Icon} name=${name} />${name === "inbox" && count > 0 && html`<span class="badge" aria-hidden="true">${count > 99 ? "99+" : count}</span>`}${name === "more" && problems > 0 && html`<span class="badge problem" aria-hidden="true">!</span>`}</span>
      <span>${label}</span>${name === "inbox" && count > 0 && html`<span class="visually-hidden">, ${counted(count, "request")}</span>`}${name === "more" && problems > 0 && html`<span class="visually-hidden">, ${counted(problems, "problem")}</span>`}</a>`)}
  </nav>`;
}

/** What the user must know on every screen: no connection, unsent changes, a new version. */
function Banner() {
  const unsent = outbox.value.filter((entry) => entry.state !== "refused").length;
  // By this device's clock, which may be wrong; the ticks of the other only say when to look again.
  const awayMs = now.value && Date.now() - lostAt.value;
  const isLost = lostAt.value > 0 && awayMs > 2500 && connection.value !== "live";
  return html`<div class="banner"><div role="status" aria-live="polite">
      ${isLost && html`<p class="offline"><strong>${navigator.onLine ? "No connection to the daemon" : "Offline"}</strong>${isFresh.value ? ` · as of ${awayMs < 10_000 ? "just now" : `${duration(awayMs / 1000)} ago`}` : " · from your last visit"}${unsent > 0 ? ` · ${counted(unsent, "change")} will be sent` : ""}</p>`}
      ${connection.value === "draining" && html`<p>The daemon is about to stop.</p>`}
    </div>
    ${isNewVersion.value && html`<p>There is a new version of this page. <button type="button" class="small" onClick=${() => location.reload()}>Reload</button></p>`}
  </div>`;
}

const Toasts = () => html`<div class="toasts" role="status" aria-live="polite">${toasts.value.map(({ id, text }) => html`<p key=${id} class="toast">${clean(text)}</p>`)}</div>`;

effect(() => {
  const count = inbox.value.length;
  document.title = count ? `(${count}) Agents` : "Agents";
  if ("setAppBadge" in navigator) void navigator.setAppBadge(count).catch(() => {});
});

const root = document.getElementById("page");
if (root) render(html`<${Page} />`, root);
/** Milliseconds that the page is shown before the browser keeps its files: the worker reads all of them again. */
const OFFLINE_AFTER_MS = 1000;
let isOffered = !("serviceWorker" in navigator);
effect(() => {
  if (isOffered || !(isFresh.value || refusal.value)) return;
  isOffered = true;
  setTimeout(() => void import("./offline.js").then(({ keepOffline }) => keepOffline()).catch(() => {}), OFFLINE_AFTER_MS);
});
