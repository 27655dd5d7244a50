/** The answers to a request that are not the usual ones: they are loaded when somebody opens them. */

import { choices, usualFirst } from "./asking.js";
import { DOUBLE_MS, listed } from "./card.js";
import { html, useRef, useState } from "./lib.js";
import { post } from "./outbox.js";
import { Icon, Twice } from "./parts.js";
import { clean, cleanCode } from "./text.js";

/** @import { Choice } from "./asking.js" */
/** @import { Request } from "./types.js" */

/** Pixels between two taps of a double tap, at most. */
const FINGER = 40;

/**
 * @typedef {{ requests: Request[], warnings: string[], isUnread: boolean, openedBy: MouseEvent | null,
 *   onDecide: (choice: Choice, words?: string) => void, onPanel: (name: string) => void }} Props `openedBy`: the press that opened them
 */

/** @param {Request} request @param {number} seconds */
const extend = (request, seconds) => post("POST", `requests/${request.id}/extend`, { expires_in_s: seconds }, request.id);

/** @param {Props & { isDenying: boolean }} props */
export const OtherAnswers = ({ isDenying, ...props }) => (isDenying ? html`<${DenyWords} ...${props} />` : html`<${More} ...${props} />`);

/** @param {Props} props */
function More({ requests, warnings, isUnread, openedBy, onDecide, onPanel }) {
  const [request] = requests;
  const { yes, no } = choices(request);
  const more = usualFirst(yes).slice(1);
  const isQuestion = request.kind === "input_request";
  const isDangerous = warnings.length > 0;
  const openedAt = useRef(Date.now());
  return html`<div class="more-answers panel" onClickCapture=${(/** @type {MouseEvent} */ event) => {
    // A double tap may end on a button that was not there.
    if (event.detail > 0 && openedBy && Date.now() - openedAt.current < DOUBLE_MS && Math.hypot(event.clientX - openedBy.clientX, event.clientY - openedBy.clientY) < FINGER) event.stopPropagation();
  }}>
    ${more.length > 0 && isUnread && html`<p class="muted">Read to the end first: then you can approve.</p>`}
    ${more.length > 0 && isDangerous && html`<p class="warn"><${Icon} name="warning" />It ${listed(warnings)}.</p>`}
    ${more.map((choice) => html`<${Way} choice=${choice} isAskedTwice=${isDangerous || choice.lasting} isDisabled=${isUnread} onChoose=${() => onDecide(choice)} />`)}
    <button type="button" onClick=${() => onPanel("words")}>${isQuestion ? "Don't answer, and say why" : "Deny with words"}…</button>
    ${usualFirst(no).slice(1).map((choice) => html`<${Way} choice=${choice} onChoose=${() => onDecide(choice)} />`)}
    <button type="button" onClick=${() => requests.forEach((one) => void extend(one, 3600))}>Give it an hour</button>
    <button type="button" onClick=${() => requests.forEach((one) => void extend(one, 86400))}>Give it a day</button>
  </div>`;
}

/** @param {{ choice: Choice, isAskedTwice?: boolean, isDisabled?: boolean, onChoose: () => void }} props */
function Way({ choice, isAskedTwice = false, isDisabled = false, onChoose }) {
  const label = clean(choice.label);
  const button = isAskedTwice
    ? html`<${Twice} class="harmful" disabled=${isDisabled} question=${`Really? ${label}`} onConfirm=${onChoose}>${label}…<//>`
    : html`<button type="button" disabled=${isDisabled} onClick=${onChoose}>${label}</button>`;
  return choice.reaches ? html`<div class="way">${button}<p class="muted">Allows: <bdi>${cleanCode(choice.reaches)}</bdi></p></div>` : button;
}

/** @param {Props} props */
function DenyWords({ requests: [request], onDecide, onPanel }) {
  const [deny] = usualFirst(choices(request).no);
  const [words, setWords] = useState("");
  const form = `deny-${request.id}`;
  return html`<form class="answer panel" id=${form} onSubmit=${(/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      onDecide(deny, words);
    }}><label>${deny.label}, and say to the agent<textarea rows="3" value=${words} onInput=${(/** @type {any} */ event) => setWords(event.target.value)}></textarea></label></form>
    <button type="button" class="quiet" onClick=${() => onPanel("")}>Back</button>
    <button type="submit" form=${form} class="deny send" disabled=${!words.trim()}>${request.kind === "input_request" ? "Don't answer, say this" : "Deny with these words"}</button>`;
}
