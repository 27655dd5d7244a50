/** The form for a new session: what the agent is to do, where, and with which rights. */

import { html, useEffect, useRef, useState } from "./lib.js";
import { discard, outbox, post } from "./outbox.js";
import { Header, Icon } from "./parts.js";
import { refreshStatus } from "./reading.js";
import { go, route, to } from "./route.js";
import { connection, sessions, status } from "./state.js";
import { clean, cleanCode, oneLine, shortPath, table } from "./text.js";

/** @import { Provider } from "./types.js" */

/** Directories that are offered. */
const RECENT = 5;

/** Characters of a title that is made of the task. */
const TITLE = 60;

/** @typedef {{ [value: string]: [option: string, summary: string] }} Words of each value: as an option, and in the line of all settings */

const SANDBOXES = /** @type {Words} */ (table({
  "read-only": ["Reads only", "reads only"],
  "workspace-write": ["Writes in the directory", "writes in the directory"],
  "danger-full-access": ["Full access to the machine", "has full access to the machine"],
}));
const POLICIES = /** @type {Words} */ (table({
  untrusted: ["Before most commands", "asks before most commands"],
  "on-request": ["When it needs more than the sandbox allows", "asks when it needs more"],
  never: ["Never", "never asks"],
}));
/** From the loosest to the strictest: the stricter of session and provider holds. */
const DECIDERS = /** @type {Words} */ (table({
  allow: ["Nobody: all are allowed", "all requests are allowed"],
  "ask-parent": ["You; for helpers, the agent above them first", "you decide"],
  "ask-human": ["Always you", "you decide"],
  deny: ["Nobody: all are denied", "all requests are denied"],
}));

/** @param {(string | null | undefined)[]} given who decides by session and provider */
const strictest = (...given) => Object.keys(DECIDERS).findLast((one) => given.includes(one)) ?? "ask-parent";

/** @param {string} text */
const asSentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/**
 * Return what holds for the session, as the settings and the provider's defaults say.
 *
 * @param {{ [name: string]: string }} values
 * @param {Provider | undefined} provider
 */
function inForce(values, provider) {
  const can = provider?.capabilities ?? {};
  return {
    sandbox: can.confine ? values.sandbox || can.sandbox || "" : "",
    policy: can.confine ? values.approval_policy || can.approval_policy || "" : "",
    decider: strictest(values.approvals, provider?.approvals),
    model: (can.models && values.model.trim()) || provider?.model || "",
  };
}

/** @param {{ [name: string]: string }} values @param {Provider} provider */
function summary(values, provider) {
  const { sandbox, policy, decider, model } = inForce(values, provider);
  const { confine, ask } = provider.capabilities;
  const name = clean(provider.name);
  return [
    !confine ? `${name} sets its own limits` : SANDBOXES[sandbox]?.[1] ?? `sandbox as ${name} is configured`,
    !ask ? "never asks" : policy ? POLICIES[policy]?.[1] : "asks as its program does",
    ask && policy !== "never" && DECIDERS[decider][1],
    model ? `model ${oneLine(model, 40)}` : `${name}’s own model`,
  ].filter(Boolean);
}

/** @param {string} name */
const draft = (name) => sessionStorage.getItem(`agentd.new.${name}`) ?? "";

const FOCUS = matchMedia("(pointer: fine)");

export function NewSession() {
  const [values, setValues] = useState(() => ({
    text: draft("text"), provider: draft("provider"), cwd: draft("cwd"), title: "", model: "", sandbox: "", approval_policy: "", approvals: "",
  }));
  const field = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useEffect(() => {
    // On a phone it would bring up the keyboard, which hides the form.
    if (FOCUS.matches) field.current?.focus();
  }, []);
  // An agent may have been installed since.
  useEffect(() => void (connection.value === "live" && refreshStatus()), [connection.value]);
  const put = (/** @type {keyof typeof values} */ name, /** @type {string} */ value) => {
    setValues({ ...values, [name]: value });
    if (["text", "provider", "cwd"].includes(name)) sessionStorage.setItem(`agentd.new.${name}`, value);
  };
  const set = (/** @type {keyof typeof values} */ name) => (/** @type {any} */ event) => put(name, event.target.value);
  const providers = status.value?.providers ?? [];
  const first = providers.find((one) => one.default);
  const chosen = values.provider ? providers.find((one) => one.name === values.provider) : first;
  const can = chosen?.capabilities ?? {};
  const own = status.value?.cwd ?? "";
  const cwd = values.cwd || own;
  const used = [...sessions.value.values()].sort((a, b) => b.updated_at.localeCompare(a.updated_at)).map((one) => one.cwd);
  const recent = [...new Set([own, ...used])].filter((path) => path && path !== cwd).slice(0, RECENT);
  const refused = outbox.value.filter((entry) => entry.about === "new" && entry.state === "refused");
  const waiting = outbox.value.filter((entry) => entry.about === "new" && entry.state !== "refused");
  const submit = async (/** @type {Event | undefined} */ event) => {
    event?.preventDefault();
    if (!values.text.trim()) return;
    const { model, sandbox, approval_policy, ...common } = values;
    const all = { ...common, ...(can.models ? { model } : {}), ...(can.confine ? { sandbox, approval_policy } : {}) };
    // A list of sessions without titles tells none of them apart.
    const body = { title: oneLine(values.text, TITLE), ...Object.fromEntries(Object.entries(all).filter(([, value]) => value.trim())) };
    refused.forEach((entry) => discard(entry.key));
    const answer = await post("POST", "sessions", body, "new");
    if (!answer) return;
    sessionStorage.removeItem("agentd.new.text");
    if (route.value.name === "new") go(`s/${answer.session.id}`);
  };
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (event.key === "Enter" && !event.isComposing && (event.ctrlKey || event.metaKey)) void submit(event);
  };
  /** @param {string} label @param {"sandbox" | "approval_policy" | "approvals"} name @param {Words} words @param {string} usual value by default */
  const choice = (label, name, words, usual) => html`<label>${label}<select value=${values[name]} onChange=${set(name)}>
    <option value="" selected=${!values[name]}>Default${words[usual] ? `: ${words[usual][1]}` : ""}</option>
    ${Object.entries(words).map(([value, [text]]) => html`<option value=${value} selected=${values[name] === value}>${text}</option>`)}</select></label>`;
  const holds = inForce(values, chosen);
  const isFree = holds.sandbox === "danger-full-access" && holds.policy !== "untrusted";
  const isLoose = isFree || holds.decider === "allow";
  return html`
    <${Header} title="New session" back=${to("sessions")} />
    <div class="scroll" data-screen="new"><form class="form" id="new-session" onSubmit=${submit}>
      <label>What should the agent do?<textarea ref=${field} rows="5" value=${values.text} onInput=${set("text")} onKeyDown=${onKeyDown}></textarea></label>
      <label>Provider<select value=${values.provider} onChange=${set("provider")}>
        <option value="" selected=${!values.provider}>Default${first ? `: ${clean(first.name)}` : ""}</option>
        ${providers.map((one) => html`<option value=${one.name} selected=${values.provider === one.name} disabled=${!one.available}>${clean(one.name)}${one.available ? "" : " (not ready)"}</option>`)}</select></label>
      ${chosen && !chosen.available && html`<div class="failed-note"><p><strong>${clean(chosen.name)} is not ready.</strong> ${clean(chosen.reason)}</p>
        <p>${providers.some((one) => one.available) ? "Choose another provider, or mend it first." : "No agent is ready on the daemon’s machine."} <a href=${to("status")}>What doctor found</a></p></div>`}
      <div class="field"><label>Directory<input type="text" autocapitalize="off" autocorrect="off" spellcheck=${false} value=${cwd} onInput=${set("cwd")} onBlur=${(/** @type {any} */ event) => event.target.value.trim() || put("cwd", "")} /></label>
        ${recent.length > 0 && html`<div class="chips" role="group" aria-label="Directories used before">${recent.map((path) => html`<button type="button" key=${path} class="small chip" title=${cleanCode(path)} onClick=${() => put("cwd", path === own ? "" : path)}>${shortPath(path, 34)}</button>`)}</div>`}</div>
      <details class="fold rights"><summary><span class="visually-hidden">Settings: </span><span class="rights-line">${chosen ? asSentence(summary(values, chosen).join(" · ")) : "Settings"}</span></summary>
        ${can.confine && choice("Sandbox", "sandbox", SANDBOXES, can.sandbox)}
        ${can.confine && choice("The agent asks", "approval_policy", POLICIES, can.approval_policy)}
        ${choice("Who decides what it asks", "approvals", DECIDERS, strictest(chosen?.approvals))}
        ${can.models && html`<label>Model<input type="text" autocapitalize="off" autocorrect="off" spellcheck=${false} placeholder=${chosen?.model ?? `As ${clean(chosen?.name)} chooses`} value=${values.model} onInput=${set("model")} /></label>`}
        <label>Title<input type="text" placeholder="The first words of the task" maxlength="200" value=${values.title} onInput=${set("title")} /></label>
      </details>
    </form></div>
    <div class="composer">
      ${isLoose && html`<p class="warn"><${Icon} name="warning" />${isFree ? "The agent may change anything on the machine without asking." : "Nobody looks at what the agent asks for."}</p>`}
      ${refused.map((entry) => html`<div class="failed-note" role="alert"><p>${clean(entry.error)}</p></div>`)}
      ${waiting.length > 0 && html`<p class="muted" role="status">Waits for the network; the session begins once.</p>`}
      <button type="submit" form="new-session" class="primary" disabled=${!values.text.trim()}>Start</button>
    </div>`;
}
