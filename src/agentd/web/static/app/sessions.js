/** The list of sessions by what they need, and the form for a new one. */

import { computed, html, signal, useState } from "./lib.js";
import { outbox, post, discard } from "./outbox.js";
import { Age, Empty, Header, Icon, State } from "./parts.js";
import { go, route, to } from "./route.js";
import { isFresh, requests, seen, sessions, status, work } from "./store.js";
import { providerOf, stateOf, titleOf } from "./sessionfacts.js";
import { clean, counted, oneLine } from "./text.js";

/** @import { Session } from "./types.js" */

const search = signal("");
const hidesHelpers = signal(localStorage.getItem("agentd.helpers") === "hide");
const unfolded = signal(/** @type {Set<string>} */ (new Set()));

const GROUPS = /** @type {[string, string[]][]} */ ([
  ["Needs you", ["needs"]],
  ["At work", ["running", "waiting"]],
  ["Queued", ["queued"]],
  ["Failed", ["failed"]],
  ["Done since you looked", ["unread"]],
  ["Earlier", ["completed", "canceled", "idle", "closed"]],
]);

/** @param {Session} session */
const isUnread = (session) => session.last_seq > (seen.value[session.id] ?? 0);

/** @param {Session} session */
function groupOf(session) {
  const state = stateOf(session);
  if (state === "failed" && !isUnread(session)) return "completed";
  return state === "completed" && isUnread(session) ? "unread" : state;
}

/** The sessions that are shown: those at the top of their tree, or all that match the search. */
const shown = computed(() => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const all = [...sessions.value.values()].sort((a, b) => b.updated_at.localeCompare(a.updated_at));
  if (!words.length) return all.filter((session) => !session.parent_session_id || !sessions.value.has(session.parent_session_id));
  return all.filter((session) => {
    const text = `${session.title ?? ""} ${session.cwd} ${session.provider ?? ""} ${session.id} ${session.last_line ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
});

const children = computed(() => {
  /** @type {Map<string, Session[]>} */ const found = new Map();
  for (const session of sessions.value.values()) {
    if (!session.parent_session_id) continue;
    const known = found.get(session.parent_session_id);
    if (known) known.push(session);
    else found.set(session.parent_session_id, [session]);
  }
  return found;
});

/** The most urgent state in the tree below a session: a folded helper that asks is not hidden. */
/** @param {Session} session @param {number} [depth] @returns {string} */
function urgent(session, depth = 0) {
  const own = groupOf(session);
  if (own === "needs" || depth > 20) return own;
  const below = (children.value.get(session.id) ?? []).map((child) => urgent(child, depth + 1));
  if (below.includes("needs")) return "needs";
  if (own === "running" || own === "waiting") return own;
  return below.includes("running") ? "running" : own;
}

export function Sessions() {
  /** @type {Map<string, Session[]>} */ const groups = new Map(GROUPS.map(([name]) => [name, []]));
  for (const session of shown.value) {
    const state = urgent(session);
    const name = GROUPS.find(([, states]) => states.includes(state))?.[0] ?? "Earlier";
    groups.get(name)?.push(session);
  }
  const toggle = () => {
    hidesHelpers.value = !hidesHelpers.value;
    localStorage.setItem("agentd.helpers", hidesHelpers.value ? "hide" : "show");
  };
  return html`
    <${Header} title="Sessions" actions=${html`<a class="button primary" href=${to("new")}><${Icon} name="plus" /><span>New</span></a>`} />
    <div class="scroll" data-screen="sessions">
      <div class="search"><label><span class="visually-hidden">Search sessions</span><${Icon} name="search" />
        <input type="search" placeholder="Search" value=${search.value} onInput=${(/** @type {any} */ event) => (search.value = event.target.value)} /></label>
        ${children.value.size > 0 && html`<button type="button" class="quiet small" aria-pressed=${hidesHelpers.value} onClick=${toggle}>${hidesHelpers.value ? "Show helpers" : "Hide helpers"}</button>`}
      </div>
      ${[...groups].map(([name, found]) => found.length > 0 && html`<section aria-label=${name} key=${name}><h2 class="group">${name} <span class="muted">${found.length}</span></h2>
        <ul class="rows">${found.slice(0, 200).map((session) => html`<${Row} key=${session.id} session=${session} depth=${0} />`)}</ul></section>`)}
      ${!shown.value.length && html`<${Empty} title=${search.value ? "No session matches" : isFresh.value ? "No sessions yet" : "Reading…"}>
        ${!search.value && isFresh.value && html`<a class="button primary" href=${to("new")}>Start the first</a>`}<//>`}
    </div>`;
}

/** @param {{ session: Session, depth: number }} props */
function Row({ session, depth }) {
  const below = hidesHelpers.value || search.value ? [] : (children.value.get(session.id) ?? []);
  const isOpen = unfolded.value.has(session.id);
  const toggle = () => {
    const next = new Set(unfolded.value);
    if (!next.delete(session.id)) next.add(session.id);
    unfolded.value = next;
  };
  const needy = below.filter((child) => urgent(child) === "needs").length;
  const isCurrent = route.value.name === "s" && route.value.id === session.id;
  const found = work.value.get(session.id);
  const asks = [...requests.value.values()].find((request) => request.session_id === session.id);
  const line = asks ? oneLine(asks.text, 140) : found?.status === "failed" ? oneLine(found.error, 140) : oneLine(session.last_line, 200);
  return html`<li>
    <div class=${`row depth-${Math.min(depth, 4)} ${isCurrent ? "current" : ""}`}>
      <a href=${to(`s/${session.id}`)} aria-current=${isCurrent ? "page" : undefined}>
        <span class="row-top"><span class="row-title">${isUnread(session) && html`<span class="unread" role="img" aria-label="Unread"></span>`}${titleOf(session)}</span>
          <span class="muted"><${Age} at=${session.updated_at} /></span></span>
        <span class="row-state"><${State} state=${stateOf(session)} /> <span class="muted">${[providerOf(session), found?.cost !== undefined && `$${found.cost.toFixed(2)}`].filter(Boolean).map(clean).join(" · ")}</span></span>
        ${line && html`<span class="row-line muted">${line}</span>`}
      </a>
      ${below.length > 0 && html`<button type="button" class="quiet small fold-helpers" aria-expanded=${isOpen} onClick=${toggle}>${counted(below.length, "helper")}${needy > 0 && html`<${State} state="needs" label=${below.length > 1 ? `${needy} need you` : "needs you"} />`}</button>`}
    </div>
    ${isOpen && depth < 12 && html`<ul class="rows below">${below.map((child) => html`<${Row} key=${child.id} session=${child} depth=${depth + 1} />`)}</ul>`}
  </li>`;
}

/** @param {string} name */
const draft = (name) => sessionStorage.getItem(`agentd.new.${name}`) ?? "";

export function NewSession() {
  const [values, setValues] = useState(() => ({
    text: draft("text"), provider: draft("provider"), cwd: draft("cwd"), title: "", model: "", sandbox: "", approval_policy: "", approvals: "",
  }));
  const set = (/** @type {keyof typeof values} */ name) => (/** @type {any} */ event) => {
    setValues({ ...values, [name]: event.target.value });
    if (["text", "provider", "cwd"].includes(name)) sessionStorage.setItem(`agentd.new.${name}`, event.target.value);
  };
  const providers = status.value?.providers ?? [];
  const chosen = providers.find((one) => (values.provider ? one.name === values.provider : one.default));
  const can = chosen?.capabilities ?? {};
  const recent = [...new Set([...sessions.value.values()].sort((a, b) => b.updated_at.localeCompare(a.updated_at)).map((one) => one.cwd))].slice(0, 6);
  const refused = outbox.value.filter((entry) => entry.about === "new" && entry.state === "refused");
  const waiting = outbox.value.filter((entry) => entry.about === "new" && entry.state !== "refused");
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const { model, sandbox, approval_policy, ...common } = values;
    const all = { ...common, ...(can.models ? { model } : {}), ...(can.confine ? { sandbox, approval_policy } : {}) };
    const body = Object.fromEntries(Object.entries(all).filter(([, value]) => value.trim()));
    refused.forEach((entry) => discard(entry.key));
    const answer = await post("POST", "sessions", body, "new");
    if (!answer) return;
    sessionStorage.removeItem("agentd.new.text");
    if (route.value.name === "new") go(`s/${answer.session.id}`);
  };
  /** @param {string} label @param {keyof typeof values} name @param {[string, string][]} options */
  const choice = (label, name, options) => html`<label>${label}<select value=${values[name]} onChange=${set(name)}>
    ${[["", "Default"], ...options].map(([value, text]) => html`<option value=${value} selected=${values[name] === value}>${text}</option>`)}</select></label>`;
  return html`
    <${Header} title="New session" back=${to("sessions")} />
    <div class="scroll" data-screen="new"><form class="form" onSubmit=${submit}>
      <label>What should the agent do?<textarea rows="5" value=${values.text} onInput=${set("text")}></textarea></label>
      <label>Provider<select value=${values.provider} onChange=${set("provider")}>
        <option value="" selected=${!values.provider}>Default${providers.find((one) => one.default) ? `: ${providers.find((one) => one.default)?.name}` : ""}</option>
        ${providers.map((one) => html`<option value=${one.name} selected=${values.provider === one.name} disabled=${!one.available}>${one.name}${one.available ? "" : " (not ready)"}</option>`)}</select></label>
      ${chosen && !chosen.available && html`<p class="warn"><${Icon} name="warning" />${clean(chosen.reason)}</p>`}
      <label>Directory<input type="text" list="recent" placeholder="The daemon's" autocapitalize="off" autocorrect="off" spellcheck=${false} value=${values.cwd} onInput=${set("cwd")} />
        <datalist id="recent">${recent.map((path) => html`<option value=${path}></option>`)}</datalist></label>
      <details class="fold"><summary>More settings</summary>
        <label>Title<input type="text" value=${values.title} onInput=${set("title")} /></label>
        ${can.models && html`<label>Model<input type="text" autocapitalize="off" value=${values.model} onInput=${set("model")} /></label>`}
        ${can.confine && choice("Sandbox", "sandbox", [["read-only", "Read only"], ["workspace-write", "May write in the directory"], ["danger-full-access", "Full access"]])}
        ${can.confine && choice("The agent asks", "approval_policy", [["untrusted", "Before most commands"], ["on-request", "When it needs more than the sandbox allows"], ["never", "Never"]])}
        ${choice("Who decides its requests", "approvals", [["ask-parent", "The agent above, then you"], ["ask-human", "You"], ["allow", "Allow all"], ["deny", "Deny all"]])}
      </details>
      ${refused.map((entry) => html`<div class="failed-note" role="alert"><p>${clean(entry.error)}</p></div>`)}
      ${waiting.length > 0 && html`<p class="muted" role="status">Waits for the network; the session begins once.</p>`}
      <button type="submit" class="primary" disabled=${!values.text.trim()}>Start</button>
    </form></div>`;
}
