/** A request as a card: who asks for what, where, why, how long it waits, and the answers. */

import { answerText, asked, choices, dangers, headline, outcome } from "./asking.js";
import { html, useState } from "./lib.js";
import { Markdown } from "./markdown.js";
import { discard, outbox, retry } from "./outbox.js";
import { Block, Diff, Icon, TimeLeft, Twice } from "./parts.js";
import { pathOf } from "./sessionfacts.js";
import { to } from "./route.js";
import { extend, resolve, sessions, work } from "./store.js";
import { clean, cleanCode, counted, oneLine, shortPath } from "./text.js";

/** @import { Choice } from "./asking.js" */
/** @import { Question, Request } from "./types.js" */

/** @param {{ request: Request, isAlone?: boolean }} props */
function Who({ request, isAlone }) {
  const path = pathOf(request.session_id);
  const session = sessions.value.get(request.session_id);
  return html`<p class="who">
    ${path.map(({ id, title }, index) => html`${index > 0 && html`<span class="muted"> › </span>`}<a href=${to(`s/${id}`)} class=${index === path.length - 1 ? "strong" : ""}>${title}</a>`)}
    <span class="muted"> · ${oneLine(work.value.get(request.session_id)?.provider ?? session?.provider, 30)}</span>
    ${!isAlone && html`<a class="muted permalink" href=${to(`r/${request.id}`)} aria-label="Open this request alone">#</a>`}
  </p>`;
}

/** @param {{ request: Request }} props */
export function Asked({ request }) {
  const parts = asked(request);
  const session = sessions.value.get(request.session_id);
  const host = work.value.get(request.session_id)?.host ?? "local";
  const where = [
    ["in", shortPath(parts.cwd || session?.cwd || "")],
    ["on", host === "local" ? "" : host],
    ["sandbox", session?.sandbox ?? ""],
  ].filter(([, value]) => value);
  return html`
    ${parts.text && html`<div class="question"><${Markdown} text=${parts.text} /></div>`}
    ${parts.command && html`<${Block} text=${parts.command} name="Command" lines=${60} />`}
    ${parts.tool && html`<p><span class="muted">Tool </span><code>${cleanCode(parts.tool)}</code></p>`}
    ${parts.input && html`<${Block} text=${parts.input} name="Input" />`}
    ${parts.permissions && html`<${Block} text=${parts.permissions} name="Permissions" />`}
    ${parts.plan && html`<div class="plan-text"><${Markdown} text=${parts.plan} /></div>`}
    ${parts.changes.map((change) => html`<${Diff} change=${change} />`)}
    ${parts.rest && html`<${Block} text=${parts.rest} name="Details" lines=${12} />`}
    ${parts.cut.length > 0 && html`<p class="warn"><${Icon} name="warning" />Too long, and cut: ${clean(parts.cut.join(", "))}</p>`}
    ${parts.reason && html`<p class="why"><span class="muted">Why </span>${clean(parts.reason)}</p>`}
    ${where.length > 0 && html`<p class="where muted">${where.map(([label, value], index) => html`${index > 0 && " · "}${label} <code>${value}</code>`)}</p>`}
  `;
}

/**
 * A card for one request, or for several that ask the same.
 *
 * @param {{ requests: Request[], isAlone?: boolean }} props
 */
export function Card({ requests, isAlone = false }) {
  const [request] = requests;
  const session = sessions.value.get(request.session_id);
  const warnings = dangers(request, session?.cwd ?? "");
  const pending = outbox.value.filter((entry) => requests.some(({ id }) => id === entry.about));
  const refused = pending.find((entry) => entry.state === "refused");
  const isSending = pending.some((entry) => entry.state !== "refused");
  return html`<article class=${`card request ${warnings.length ? "danger" : ""}`} aria-label=${`${headline(request)}: ${oneLine(request.text, 80)}`} data-request=${request.id}>
    <div class="card-head">
      <h2><svg class="mark" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 3l9 9-9 9-9-9z" /></svg>${headline(request)}${requests.length > 1 && html` <span class="count">× ${requests.length}</span>`}</h2>
      <${TimeLeft} until=${request.expires_at} />
    </div>
    ${requests.slice(0, 8).map((one) => html`<${Who} request=${one} isAlone=${isAlone} />`)}
    ${requests.length > 8 && html`<p class="muted">and ${requests.length - 8} more</p>`}
    <${Asked} request=${request} />
    ${warnings.map((words) => html`<p class="warn"><${Icon} name="warning" />${words}</p>`)}
    ${refused &&
    html`<div class="failed-note" role="alert"><p>The daemon refused the answer: ${clean(refused.error)}</p>
      <div class="row"><button type="button" class="small" onClick=${() => retry(refused.key)}>Try again</button>
      <button type="button" class="small quiet" onClick=${() => discard(refused.key)}>Drop it</button></div></div>`}
    <${Answers} requests=${requests} isDangerous=${warnings.length > 0} isSending=${isSending} />
  </article>`;
}

/** @param {{ requests: Request[], isDangerous: boolean, isSending: boolean }} props */
function Answers({ requests, isDangerous, isSending }) {
  const [request] = requests;
  const [panel, setPanel] = useState("");
  const [words, setWords] = useState("");
  const { yes, no, answers } = choices(request);
  const { questions } = asked(request);
  const isQuestion = request.kind === "input_request";

  /** @param {Choice} choice @param {string} [text] */
  const decide = (choice, text) => {
    for (const one of requests) {
      void resolve(one, {
        decision: choice.decision,
        ...(choice.option ? { option: choice.option } : {}),
        ...(choice.scope ? { scope: choice.scope } : {}),
        ...(text?.trim() ? { text: text.trim() } : {}),
      });
    }
  };

  if (isSending)
    return html`<div class="actions"><p class="sending" role="status">
      ${navigator.onLine ? "Sending your answer…" : "Your answer waits for the network."}
    </p></div>`;

  const [approve, ...more] = [...yes].sort((a, b) => Number(b.primary ?? 0) - Number(a.primary ?? 0));
  const [deny, ...otherNo] = [...no].sort((a, b) => Number(b.primary ?? 0) - Number(a.primary ?? 0));
  const toggle = (/** @type {string} */ name) => setPanel(panel === name ? "" : name);
  const several = requests.length > 1 ? " all" : "";

  return html`
    ${isQuestion && questions.length > 0 && html`<${Questions} questions=${questions} onAnswer=${(/** @type {string} */ text) => decide({ label: "", decision: "answer" }, text)} />`}
    ${!questions.length && answers.length > 0 && html`<div class="options">${answers.map((choice) => html`<button type="button" onClick=${() => decide(choice)}>${clean(choice.label)}</button>`)}</div>`}
    ${isQuestion && !questions.length && html`<form class="answer" onSubmit=${(/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      if (words.trim()) decide({ label: "", decision: "answer" }, words);
    }}>
      <label>Your answer<textarea rows="3" value=${words} onInput=${(/** @type {any} */ event) => setWords(event.target.value)}></textarea></label>
      <button type="submit" class="primary" disabled=${!words.trim()}>Answer</button>
    </form>`}
    ${panel === "words" && html`<form class="answer" onSubmit=${(/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      decide(deny, words);
    }}>
      <label>Deny, and say to the agent<textarea rows="3" value=${words} onInput=${(/** @type {any} */ event) => setWords(event.target.value)}></textarea></label>
      <button type="submit" class="deny" disabled=${!words.trim()}>Deny with these words</button>
    </form>`}
    ${panel === "more" && html`<div class="more-answers">
      ${more.map((choice) => html`<${Way} choice=${choice} isAskedTwice=${isDangerous || choice.lasting} onChoose=${() => decide(choice)} />`)}
      <button type="button" onClick=${() => toggle("words")}>Deny with words…</button>
      ${otherNo.map((choice) => html`<${Way} choice=${choice} onChoose=${() => decide(choice)} />`)}
      <button type="button" onClick=${() => requests.forEach((one) => void extend(one, 3600))}>Give it an hour</button>
      <button type="button" onClick=${() => requests.forEach((one) => void extend(one, 86400))}>Give it a day</button>
    </div>`}
    <div class="actions">
      <button type="button" class="deny" onClick=${() => decide(deny)}>Deny${several}</button>
      <button type="button" class="quiet" aria-expanded=${panel !== ""} onClick=${() => setPanel(panel ? "" : "more")}>More</button>
      ${approve
        ? isDangerous
          ? html`<${Twice} class="approve careful" question=${`Really approve${requests.length > 1 ? ` all ${requests.length}` : ""}?`} onConfirm=${() => decide(approve)}>Approve${several}…<//>`
          : html`<button type="button" class="approve" onClick=${() => decide(approve)}>Approve${several}</button>`
        : html`<span class="spacer"></span>`}
    </div>
  `;
}

/** @param {{ choice: Choice, isAskedTwice?: boolean, onChoose: () => void }} props */
function Way({ choice, isAskedTwice = false, onChoose }) {
  const label = clean(choice.label);
  const button = isAskedTwice
    ? html`<${Twice} question=${`Really? ${label}`} onConfirm=${onChoose}>${label}…<//>`
    : html`<button type="button" onClick=${onChoose}>${label}</button>`;
  return choice.reaches ? html`<div class="way">${button}<p class="muted">Allows: ${cleanCode(choice.reaches)}</p></div>` : button;
}

/** @param {{ questions: Question[], onAnswer: (text: string) => void }} props */
function Questions({ questions, onAnswer }) {
  const [given, setGiven] = useState(/** @type {{ [id: string]: { chosen: string[], text: string } }} */ ({}));
  const of = (/** @type {string} */ id) => given[id] ?? { chosen: [], text: "" };
  /** @param {Question} question @param {string} label */
  const toggle = (question, label) => {
    const { chosen, text } = of(question.id);
    const without = chosen.filter((one) => one !== label);
    const next = question.multiple ? (without.length < chosen.length ? without : [...chosen, label]) : [label];
    setGiven({ ...given, [question.id]: { chosen: next, text: question.multiple ? text : "" } });
  };
  /** @param {Question} question @param {string} text */
  const write = (question, text) =>
    setGiven({ ...given, [question.id]: { chosen: question.multiple ? of(question.id).chosen : [], text } });
  const text = answerText(questions, given);
  return html`<form class="answer" onSubmit=${(/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    if (text !== null) onAnswer(text);
  }}>
    ${questions.map((question) => html`<fieldset>
      <legend>${clean(question.text)}</legend>
      ${(question.choices ?? []).map((choice) => {
        const label = String(choice.label ?? "");
        return html`<label class="choice">
          <input type=${question.multiple ? "checkbox" : "radio"} name=${question.id} checked=${of(question.id).chosen.includes(label)} onChange=${() => toggle(question, label)} />
          <span>${clean(label)}${choice.description && html`<span class="muted"> ${clean(choice.description)}</span>`}</span>
        </label>`;
      })}
      ${(question.free_text || !question.choices?.length) && html`<label class="free">${question.choices?.length ? "Other" : "Answer"}
        <input type="text" value=${of(question.id).text} onInput=${(/** @type {any} */ event) => write(question, event.target.value)} /></label>`}
    </fieldset>`)}
    <button type="submit" class="primary" disabled=${text === null}>${questions.length > 1 ? `Send ${counted(questions.length, "answer")}` : "Send the answer"}</button>
  </form>`;
}

/** @param {{ request: Request, mine?: boolean }} props */
export const Closed = ({ request, mine = false }) => html`
  <article class="closed-request" data-request=${request.id}>
    <p><strong>${outcome(request)}${mine ? ", here" : ""}</strong> · <span>${oneLine(asked(request).command || request.text, 120)}</span></p>
    ${request.answer && html`<p class="muted">“${oneLine(request.answer, 200)}”</p>`}
  </article>
`;
