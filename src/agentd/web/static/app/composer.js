/** The composer: it says what a message will do now. */

import { html, useEffect, useRef, useState } from "./lib.js";
import { outbox, post } from "./outbox.js";
import { Icon } from "./parts.js";
import { titleOf } from "./sessionfacts.js";
import { isReader, status, toast, work } from "./state.js";
import { table } from "./text.js";

/** @import { Log } from "./log.js" */
/** @import { Session } from "./types.js" */

const MODES = /** @type {{ [mode: string]: [string, string] }} */ (table({
  steer: ["Steer", "The agent gets it while it works."],
  queue: ["Queue", "The agent gets it when it has finished."],
  interrupt: ["Interrupt", "The agent is stopped, and begins with this."],
}));

/** @param {string} id */
const draftKey = (id) => `agentd.draft.${id}`;

/** @param {{ session: Session, log: Log }} props */
export function Composer({ session, log }) {
  const [text, setText] = useState(() => sessionStorage.getItem(draftKey(session.id)) ?? "");
  const [chosen, setChosen] = useState("");
  const field = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const run = work.value.get(session.id);
  const isBusy = run !== undefined && ["running", "waiting", "queued"].includes(run.status);
  const provider = status.value?.providers.find((one) => (session.provider ? one.name === session.provider : one.default));
  const canSteer = provider?.capabilities.steer === true && run?.status === "running";
  const modes = ["queue", ...(canSteer ? ["steer"] : []), "interrupt"];
  const mode = modes.includes(chosen) ? chosen : canSteer ? "steer" : "queue";
  const isClosed = session.status === "closed";
  const waiting = outbox.value.some((entry) => entry.about === session.id && entry.state === "waiting");

  useEffect(() => {
    sessionStorage.setItem(draftKey(session.id), text);
    const box = field.current;
    if (!box) return;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, innerHeight * 0.4)}px`;
  }, [text]);

  if (isReader.value) return html`<div class="composer"><p class="muted">You read this session by a link.</p></div>`;
  if (isClosed)
    return html`<div class="composer closed"><p class="muted">This session is closed.</p>
      <button type="button" onClick=${() => void post("PATCH", `sessions/${session.id}`, { status: "open" }, session.id)}>Open it again</button></div>`;

  const submit = async (/** @type {SubmitEvent | undefined} */ event) => {
    event?.preventDefault();
    const said = text.trim();
    if (!said) return;
    setText("");
    const body = { text: said, ...(isBusy ? { when_busy: mode } : {}) };
    const answer = await post("POST", `sessions/${session.id}/messages`, body, session.id);
    if (answer && isBusy && mode === "steer" && !answer.message.is_steering) toast("It is queued: the agent could not take it now.");
  };
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    const isDesk = matchMedia("(pointer: fine)").matches;
    if (event.key !== "Enter" || event.isComposing) return;
    if (event.ctrlKey || event.metaKey || (isDesk && !event.shiftKey)) {
      event.preventDefault();
      void submit(undefined);
    }
  };
  const label = isBusy ? MODES[mode][0] : "Start";
  return html`<form class="composer" onSubmit=${submit} data-runs=${log.runs.size}>
    ${isBusy && html`<div class="modes" role="group" aria-label="What the message does">
      ${modes.map((one) => html`<button type="button" class=${`small ${one === mode ? "chosen" : "quiet"}`} aria-pressed=${one === mode} onClick=${() => setChosen(one)}>${MODES[one][0]}</button>`)}
      <span class="muted">${MODES[mode][1]}</span>
    </div>`}
    <div class="compose-row">
      <textarea ref=${field} rows="1" aria-label="Message" placeholder=${`Message to ${titleOf(session)}`} value=${text} onInput=${(/** @type {any} */ event) => setText(event.target.value)} onKeyDown=${onKeyDown}></textarea>
      <button type="submit" class="primary" disabled=${!text.trim()}><${Icon} name="send" /><span>${label}</span></button>
    </div>
    ${waiting && html`<p class="muted" role="status">Waits for the network; it is sent once.</p>`}
  </form>`;
}
