/** Notices: which browsers are notified, of what and when; and of which sessions. */

import { change, deviceId, get, list } from "./api.js";
import { html, useEffect, useState } from "./lib.js";
import { post } from "./outbox.js";
import { Block, Reserved, State, Twice } from "./parts.js";
import { obstacle, ownPush, remove, subscribe, update } from "./push.js";
import { now, sessions } from "./state.js";
import { keepRows, rowsOf } from "./storage.js";
import { ago, clean, clock, oneLine } from "./text.js";

/** @import { Notice, PushDevice, Session } from "./types.js" */

const REQUESTS = ["request"];
const ALL = ["request", "finished", "failed"];

/** Seconds that a test waits for each of its receipts. */
const RECEIPT_S = 30;

/** @param {Notice} notice @returns {[state: string, words: string]} */
function receiptOf(notice) {
  if (notice.state === "shown") return ["completed", `shown at ${clock(notice.shown_at ?? notice.updated_at)}`];
  if (notice.state === "failed") return ["failed", `not sent: ${clean(notice.error ?? "")}`];
  if (notice.state === "sent") return ["running", "sent, not shown yet"];
  return ["queued", "on its way"];
}

/** One browser that is notified. @param {{ one: PushDevice, attempt: (task: () => Promise<unknown>) => Promise<void> }} props */
function Browser({ one, attempt }) {
  const [test, setTest] = useState(/** @type {Notice | null} */ (null));
  const isOwn = one.id === ownPush.value || (one.token_id !== null && one.token_id === deviceId());
  const set = (/** @type {{ [name: string]: any }} */ changes) => void attempt(() => update(one.id, changes));
  const [from, until] = /^\d/.test(one.quiet_hours) ? one.quiet_hours.split("-") : ["22:00", "07:00"];
  const quiet = /^\d/.test(one.quiet_hours) ? "own" : one.quiet_hours;
  const setQuiet = (/** @type {string} */ hours) => set({ quiet_hours: hours, time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone });
  const send = () =>
    attempt(async () => {
      const { notices } = await change("POST", "notices/test", { target: one.id });
      let found = /** @type {Notice} */ (notices[0]);
      setTest(found);
      for (const state of ["queued", "sent"]) {
        if (found.state !== state) break;
        found = (await get(`notices/${found.id}`, { wait_s: RECEIPT_S, known_state: state })).notice;
        setTest(found);
      }
    });
  const isAll = one.events.includes("finished") || one.events.includes("failed");
  const isOn = one.push === "on";
  return html`<li class="line device browser"><span class="strong">${oneLine(one.name, 60)}</span>
    ${isOwn && html`<span class="tag">this one</span>`}
    <span class="muted">used ${ago(one.seen_at, now.value)}</span>
    <${Twice} class="small deny" question="Really remove?" onConfirm=${() => void attempt(() => remove(one.id))}>Remove<//>
    <div class="last settings">
      <label class="choice"><input type="checkbox" role="switch" checked=${isOn} onChange=${() => set({ push: isOn ? "off" : "on" })} /><span>Notify it</span></label>
      <label class="choice"><input type="checkbox" checked=${isAll} onChange=${() => set({ events: isAll ? REQUESTS : ALL })} /><span>Also when work has finished or failed</span></label>
      <label>Quiet hours<select value=${quiet} onChange=${(/** @type {any} */ event) => setQuiet(event.target.value === "own" ? `${from}-${until}` : event.target.value)}>
        ${[["default", "As the daemon's settings say"], ["none", "Never quiet"], ["own", "Own hours"]].map(([value, text]) => html`<option value=${value} selected=${quiet === value}>${text}</option>`)}</select></label>
      ${quiet === "own" &&
      html`<div class="row-buttons"><label>From<input type="time" value=${from} onChange=${(/** @type {any} */ event) => event.target.value && setQuiet(`${event.target.value}-${until}`)} /></label>
        <label>To<input type="time" value=${until} onChange=${(/** @type {any} */ event) => event.target.value && setQuiet(`${from}-${event.target.value}`)} /></label></div>`}
      ${one.muted.map((id) => html`<p key=${id} class="muted-session"><span>Quiet: ${oneLine(sessions.value.get(id)?.title ?? id, 60)}</span>
        <button type="button" class="small quiet" onClick=${() => set({ muted: one.muted.filter((other) => other !== id) })}>Notify again</button></p>`)}
      <p class="row-buttons"><button type="button" class="small" onClick=${() => void send()}>Send a test</button>
        ${test && html`<span role="status"><${State} state=${receiptOf(test)[0]} label=${receiptOf(test)[1]} /></span>`}</p>
    </div></li>`;
}

const NAME = "NAME.TAILNET.ts.net";
const ORIGIN = `https:${"/".repeat(2)}${NAME}`; // the page names no server: a test reads its files for addresses
const COMMANDS = [
  "tailscale serve --bg 8765",
  `agentd --allowed-host ${NAME} --allowed-origin ${ORIGIN}`,
  `agentctl --url ${ORIGIN} device add`,
].join("\n");

/** What to do so that this browser can be notified. @param {{ why: string }} props */
export function Advice({ why }) {
  if (why === "denied") return html`<p class="muted">The browser's settings forbid notices of this page.</p>`;
  if (why === "none") return html`<p class="muted">This browser has no notices.</p>`;
  if (why === "home-screen")
    return html`<p class="muted">On an iPhone or iPad, notices need an app: choose <strong>Share</strong>, then <strong>Add to Home Screen</strong>. Open the page from there, and come back to this screen.</p>`;
  return html`<p class="muted">Notices need HTTPS, and an address that stays. With Tailscale, on the daemon's machine:</p>
    <${Block} text=${COMMANDS} name="Commands" />
    <p class="muted">A reverse proxy with a certificate does the same. On an iPhone or iPad, then add the page to the Home Screen.</p>`;
}

/** Which browsers are notified, and of what. */
export function Notices() {
  const [found, setFound] = useState(/** @type {PushDevice[] | null} */ (null));
  const [problem, setProblem] = useState("");
  const read = () => list("push/subscriptions", "subscriptions", {}).then(
      (all) => {
        keepRows("browsers", all.length);
        setFound(all);
      },
      (error) => setProblem(error.message),
    );
  useEffect(() => void read(), []);
  const attempt = async (/** @type {() => Promise<unknown>} */ task) => {
    setProblem("");
    await task().catch((error) => setProblem(error.message));
    await read();
  };
  const why = obstacle();
  const isSubscribed = found ? found.some((one) => one.id === ownPush.value) : Boolean(ownPush.value);
  return html`<section><h2>Notices</h2>
    ${problem && html`<p class="failed-note" role="alert">${clean(problem)}</p>`}
    ${why ? html`<${Advice} why=${why} />` : !isSubscribed && html`<button type="button" onClick=${() => void attempt(() => subscribe(REQUESTS))}>Notify this browser</button>`}
    ${!found && html`<${Reserved} count=${rowsOf("browsers")} class="browser" />`}
    ${found && html`<ul class="plain-list">${found.map((one) => html`<${Browser} key=${one.id} one=${one} attempt=${attempt} />`)}</ul>`}
  </section>`;
}

/** What people are notified of a session, and whether this browser is. @param {{ session: Session }} props */
export function SessionNotices({ session }) {
  const own = ownPush.value;
  const [device, setDevice] = useState(/** @type {PushDevice | null} */ (null));
  const [problem, setProblem] = useState("");
  useEffect(() => {
    if (own) list("push/subscriptions", "subscriptions", {}).then((found) => setDevice(found.find(({ id }) => id === own) ?? null), () => {});
  }, [own, session.id]);
  const isMuted = device?.muted.includes(session.id) ?? false;
  const toggle = async () => {
    const others = device?.muted.filter((id) => id !== session.id) ?? [];
    try {
      setDevice((await update(own, { muted: isMuted ? others : [...others, session.id] })).subscription);
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
    }
  };
  const setLevel = (/** @type {any} */ event) => void post("PATCH", `sessions/${session.id}`, { notices: event.target.value }, session.id);
  return html`<section><h2>Notices</h2>
    ${problem && html`<p class="failed-note" role="alert">${clean(problem)}</p>`}
    <label>Of this session, people are notified<select value=${session.notices} onChange=${setLevel}>
      ${[["default", session.parent_session_id ? "as of the session above" : "as each device is set"], ["requests", "only of requests"], ["all", "of requests and of its end"], ["none", "never"]].map(([value, text]) => html`<option value=${value} selected=${session.notices === value}>${text}</option>`)}</select></label>
    ${device && html`<label class="choice"><input type="checkbox" role="switch" checked=${!isMuted} onChange=${() => void toggle()} /><span>On this browser</span></label>`}
  </section>`;
}
