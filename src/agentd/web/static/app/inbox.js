/** The inbox: everything that waits for the user, the earliest deadline first. */

import { get } from "./api.js";
import { sameness } from "./asking.js";
import { Asked, Card, Closed } from "./card.js";
import { computed, html, useEffect, useState } from "./lib.js";
import { Age, Empty, Header, Part, State } from "./parts.js";
import { to } from "./route.js";
import { pathOf } from "./sessionfacts.js";
import { decided, inbox, isFresh, now, requests, sessions, work } from "./state.js";
import { counted, plainLine } from "./text.js";

/** @import { Request } from "./types.js" */

/** Requests that ask the same are one card. */
const groups = computed(() => {
  /** @type {Map<string, Request[]>} */ const found = new Map();
  for (const request of inbox.value) {
    const key = sameness(request);
    const known = found.get(key);
    if (known) known.push(request);
    else found.set(key, [request]);
  }
  return [...found.values()];
});

/** Milliseconds that a decision stays in the inbox. */
const SHOWN_MS = 10 * 60_000;

/** The sessions at work. */
const atWork = computed(() =>
  [...work.value].filter(([, { status }]) => status === "running" || status === "waiting" || status === "queued"),
);

export function Inbox() {
  useEffect(() => {
    // For measurements: from here on the user can answer.
    if (isFresh.value && !performance.getEntriesByName("usable").length) performance.mark("usable");
  }, [isFresh.value]);
  const recent = decided.value.filter(({ at }) => now.value && Date.now() - at < SHOWN_MS).slice(0, 5);
  return html`
    <${Header} title="Inbox"><p class="muted">${inbox.value.length ? `${counted(inbox.value.length, "request")} for you` : "\u00a0"}</p><//>
    <div class="scroll" data-screen="inbox">
      <div class="cards">${groups.value.map((group) => html`<${Part} key=${group[0].id}><${Card} requests=${group} /><//>`)}</div>
      ${!inbox.value.length && isFresh.value && html`<${Nothing} />`}
      ${!inbox.value.length && !isFresh.value && html`<${Empty} title="Reading your inbox…" />`}
      ${recent.length > 0 && html`<section class="recent" aria-label="Just decided"><h2>Just decided</h2>
        ${recent.map(({ request, mine }) => html`<${Closed} key=${request.id} request=${request} mine=${mine} />`)}</section>`}
    </div>
  `;
}

function Nothing() {
  if (!sessions.value.size)
    return html`<${Empty} title="Nothing waits for you">
      <p class="muted">What your agents ask you appears here: to approve, to deny, or to answer.</p>
      <div class="row-buttons"><a class="button primary" href=${to("new")}>Start an agent</a><a class="button" href=${to("devices")}>Let a phone in</a></div>
    <//>`;
  return html`<${Empty} title="Nothing waits for you">
    ${atWork.value.length ? html`<p class="muted">${counted(atWork.value.length, "session")} at work:</p>` : null}
    <${AtWork} />
  <//>`;
}

/** @param {string} id of a session */
const needsUser = (id) => inbox.value.some((request) => request.session_id === id);

/** The sessions at work, with the last line of each. */
function AtWork() {
  if (!atWork.value.length) return html`<p class="muted">No agent is at work.</p><a class="button" href=${to("new")}>New session</a>`;
  return html`<ul class="plain-list">${atWork.value.slice(0, 30).map(([id, { status, at }]) => html`<li key=${id}><a class="line" href=${to(`s/${id}`)}>
    <${State} state=${needsUser(id) ? "needs" : status} /><span class="muted age"><${Age} at=${at} /></span>
    <span class="strong last">${pathOf(id).map(({ title }) => title).join(" › ")}</span>
    ${sessions.value.get(id)?.last_line && html`<span class="muted last">${plainLine(sessions.value.get(id)?.last_line, 200)}</span>`}
  </a></li>`)}</ul>`;
}

/** An open request, or one that was decided while the page was open. @param {string} id */
export const requestOf = (id) => requests.value.get(id) ?? decided.value.find(({ request }) => request.id === id)?.request;

/**
 * One request alone, as a notice links to it.
 *
 * @param {{ id: string }} props
 */
export function RequestScreen({ id }) {
  const [found, setFound] = useState(/** @type {Request | null} */ (null));
  const [error, setError] = useState("");
  const open = requests.value.get(id);
  const closed = decided.value.find(({ request }) => request.id === id);
  useEffect(() => {
    setFound(null);
    setError("");
    get(`requests/${encodeURIComponent(id)}`).then(
      (answer) => setFound(answer.request),
      (reason) => setError(reason.message),
    );
  }, [id, open === undefined]);
  const request = open ?? closed?.request ?? found;
  return html`
    <${Header} title="Request" back=${to("inbox")} />
    <div class="scroll" data-screen="request">
      ${open && html`<${Part} key=${id}><${Card} requests=${[open]} isAlone=${true} /><//>`}
      ${!open && request && html`<article class="card">
        <${Closed} request=${request} mine=${closed?.mine} />
        <${Asked} request=${request} />
        <p><a class="button" href=${to(`s/${request.session_id}`)}>Open its session</a></p>
      </article>`}
      ${!request && html`<${Empty} title=${error ? "This request cannot be shown" : "Reading…"}>${error && html`<p class="muted sentence">${error}</p><a class="button" href=${to("inbox")}>Inbox</a>`}<//>`}
    </div>
  `;
}
