/** What there is to know and to do about a session, beside its story. */

import { base, change, get, hasCredentials, list } from "./api.js";
import { Handover, SessionNotices } from "./lazy.js";
import { html, useEffect, useState } from "./lib.js";
import { outbox, post, discard } from "./outbox.js";
import { Age, Diff, State, Twice, usageText } from "./parts.js";
import { go, to } from "./route.js";
import { hostOf, providerOf, titleOf } from "./sessionfacts.js";
import { connection, isReader, sessions, work } from "./state.js";
import { Plan } from "./story.js";
import { keepAccess } from "./sync.js";
import { clean, cleanCode, clock } from "./text.js";

/** @import { Log } from "./log.js" */
/** @import { Run, Session } from "./types.js" */

/** @param {{ session: Session, log: Log }} props */
export function Details({ session, log }) {
  void log.changes.value;
  const [runs, setRuns] = useState(/** @type {Run[] | null} */ (null));
  const state = work.value.get(session.id)?.status;
  useEffect(() => {
    let isCurrent = true;
    get("runs", { session_id: session.id, order: "newest", limit: 50 }).then(
      ({ runs: found }) => isCurrent && setRuns(found),
      () => {},
    );
    return () => {
      isCurrent = false;
    };
  }, [session.id, state, connection.value === "live"]);
  const children = [...sessions.value.values()].filter((one) => one.parent_session_id === session.id);
  const facts = [
    ["Provider", providerOf(session)],
    ["Model", session.model],
    ["Directory", session.cwd],
    ["Host", hostOf(session)],
    ["Sandbox", session.sandbox],
    ["Asks", session.approval_policy],
    ["Who decides", session.approvals],
    ["Owner", session.owner],
  ].filter(([, value]) => value);
  const refused = outbox.value.filter((entry) => entry.about === session.id && entry.state === "refused" && !entry.path.endsWith("/messages"));
  return html`<div class="details">
    ${!isReader.value && html`<${Actions} session=${session} />`}
    ${refused.map((entry) => html`<div class="failed-note" role="alert"><p>${clean(entry.error)}</p><button type="button" class="small quiet" onClick=${() => discard(entry.key)}>Dismiss</button></div>`)}
    <section><h2>About</h2><dl>${facts.map(([name, value]) => html`<dt>${name}</dt><dd>${cleanCode(value)}</dd>`)}
      <dt>Begun</dt><dd><${Age} at=${session.created_at} /></dd><dt>Id</dt><dd><code>${session.id}</code></dd></dl></section>
    ${log.plan && html`<${Plan} steps=${log.plan.steps} />`}
    ${!isReader.value && html`<${Changes} session=${session} />`}
    ${children.length > 0 && html`<section><h2>Helpers</h2><ul class="plain-list">${children.map((child) => html`<li><a class="line" href=${to(`s/${child.id}`)}><${State} state=${work.value.get(child.id)?.status ?? "idle"} /><span>${titleOf(child)}</span></a></li>`)}</ul></section>`}
    <section><h2>Runs</h2>${!runs ? html`<p class="muted">${connection.value === "live" ? "Reading…" : "They need a connection."}</p>` : runs.length ? html`<ul class="plain-list">${runs.map((run) => html`<li><a class="line" href=${to(`run/${run.id}`)}>
      <${State} state=${run.status} /><span class="muted"><${Age} at=${run.created_at} /></span><span class="muted">${usageText(run.usage)}</span></a></li>`)}</ul>` : html`<p class="muted">None yet.</p>`}</section>
    ${!isReader.value && html`<${SessionNotices} session=${session} />`}
  </div>`;
}

/** What differs in the session's directory from when the session began. @param {{ session: Session }} props */
function Changes({ session }) {
  const [diff, setDiff] = useState(/** @type {any} */ (null));
  const [error, setError] = useState("");
  const isOver = !["running", "queued"].includes(work.value.get(session.id)?.status ?? "");
  useEffect(() => {
    let isCurrent = true;
    get(`sessions/${session.id}/diff`).then(
      (found) => isCurrent && (setDiff(found), setError("")),
      (reason) => isCurrent && setError(reason.message),
    );
    return () => {
      isCurrent = false;
    };
  }, [session.id, isOver]);
  return html`<section><h2>Changed files${diff?.changes.length > 0 && html` <span class="muted">${diff.changes.length}</span>`}</h2>
    ${error ? html`<p class="muted">${clean(error)}</p>` : !diff ? html`<p class="muted">Reading…</p>` : !diff.changes.length && html`<p class="muted">None.</p>`}
    ${diff?.source === "events" && diff.changes.length > 0 && html`<p class="muted">As the agent reported them.</p>`}
    ${(diff?.changes ?? []).slice(0, 200).map((/** @type {any} */ one, /** @type {number} */ index) => html`<${Diff} key=${index} change=${one} isOpen=${false} base=${session.cwd} />`)}
    ${diff?.is_truncated && html`<p class="warn">There is more than is shown.</p>`}</section>`;
}

/** Links that let others read the session. @param {{ session: Session }} props */
function Share({ session }) {
  const [links, setLinks] = useState(/** @type {any[]} */ ([]));
  const [address, setAddress] = useState("");
  const [error, setError] = useState("");
  const path = `sessions/${session.id}/links`;
  const attempt = async (/** @type {() => Promise<void>} */ task) => {
    setError("");
    await task().catch((reason) => setError(reason.message));
    const found = await list(path, "tokens", {}).catch(() => []);
    setLinks(found.filter((one) => !one.revoked_at));
  };
  useEffect(() => void attempt(async () => {}), [session.id]);
  const create = (/** @type {number} */ days) =>
    attempt(async () => {
      await keepAccess();
      const { secret } = await change("POST", path, { expires_in_s: days * 86400 });
      setAddress(new URL(`#link=${secret}`, base).href);
    });
  return html`<div class="share">
    ${error && html`<p class="failed-note" role="alert">${clean(error)}</p>`}
    ${!hasCredentials() && html`<p class="muted">From then on every browser and program needs to be let in, this one included.</p>`}
    ${address && html`<p>Whoever has this link can read the session:</p><${Handover} link=${address} />`}
    <div class="row-buttons"><button type="button" onClick=${() => void create(1)}>Link for a day</button><button type="button" onClick=${() => void create(7)}>Link for a week</button></div>
    <ul class="plain-list">${links.map((one) => html`<li key=${one.id} class="line"><span>Until ${clock(one.expires_at)}</span>
      <${Twice} class="small deny" question="Really?" onConfirm=${() => void attempt(() => change("POST", `${path}/${one.id}/revoke`, {}))}>Revoke<//></li>`)}</ul>
  </div>`;
}

/** @param {{ session: Session }} props */
function Actions({ session }) {
  const [form, setForm] = useState("");
  const patch = (/** @type {object} */ body) => void post("PATCH", `sessions/${session.id}`, /** @type {any} */ (body), session.id);
  const toggle = (/** @type {string} */ name) => setForm(form === name ? "" : name);
  const close = (/** @type {boolean} */ cascade) => void post("POST", `sessions/${session.id}/close`, { cascade }, session.id);
  const spawn = async (/** @type {string} */ task) => {
    const answer = await post("POST", `sessions/${session.id}/spawn`, { task }, session.id);
    if (answer) go(`s/${answer.session.id}`);
  };
  return html`<section><h2>Do</h2><div class="deeds">
    <button type="button" aria-expanded=${form === "rename"} onClick=${() => toggle("rename")}>Rename</button>
    ${form === "rename" && html`<${OneField} label="Title" value=${session.title ?? ""} button="Rename" onSubmit=${(/** @type {string} */ title) => { patch({ title }); setForm(""); }} />`}
    <button type="button" aria-expanded=${form === "cwd"} onClick=${() => toggle("cwd")}>Change the directory</button>
    ${form === "cwd" && html`<${OneField} label="Absolute path" value=${session.cwd} button="Change" onSubmit=${(/** @type {string} */ cwd) => { patch({ cwd }); setForm(""); }} />`}
    <button type="button" aria-expanded=${form === "spawn"} onClick=${() => toggle("spawn")}>Start a helper</button>
    ${form === "spawn" && html`<${OneField} label="Its task" value="" isLong=${true} button="Start" onSubmit=${spawn} />`}
    <button type="button" aria-expanded=${form === "share"} onClick=${() => toggle("share")}>Share</button>
    ${form === "share" && html`<${Share} session=${session} />`}
    ${session.status === "open"
      ? html`<${Twice} question="Really close it?" onConfirm=${() => close(false)}>Close the session<//>
          <${Twice} class="deny" question="Really close all, and stop every run?" onConfirm=${() => close(true)}>Close with all helpers<//>`
      : html`<button type="button" onClick=${() => patch({ status: "open" })}>Open it again</button>`}
  </div></section>`;
}

/** @param {{ label: string, value: string, button: string, isLong?: boolean, onSubmit: (value: string) => void }} props */
function OneField({ label, value, button, isLong = false, onSubmit }) {
  const [text, setText] = useState(value);
  const onInput = (/** @type {any} */ event) => setText(event.target.value);
  return html`<form class="answer" onSubmit=${(/** @type {SubmitEvent} */ event) => { event.preventDefault(); if (text.trim()) onSubmit(text.trim()); }}>
    <label>${label}${isLong ? html`<textarea rows="4" value=${text} onInput=${onInput}></textarea>` : html`<input type="text" value=${text} onInput=${onInput} />`}</label>
    <button type="submit" class="primary" disabled=${!text.trim()}>${button}</button></form>`;
}
