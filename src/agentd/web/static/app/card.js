/** A request as a card: who asks for what, where, why, how long it waits, and the answers. */

import { answerText, asked, choices, dangers, headline, isHere, outcome, usualFirst } from "./asking.js";
import { useCoverage } from "./coverage.js";
import { resolve } from "./decisions.js";
import { OtherAnswers } from "./lazy.js";
import { html, useLayoutEffect, useMemo, useRef, useState } from "./lib.js";
import { Markdown } from "./markdown.js";
import { discard, outbox, retry } from "./outbox.js";
import { Block, Diff, Icon, TimeLeft } from "./parts.js";
import { to } from "./route.js";
import { pathOf, whereOf } from "./sessionfacts.js";
import { sessions, work } from "./state.js";
import { clean, cleanCode, oneLine } from "./text.js";

/** @import { Choice } from "./asking.js" */
/** @import { Question, Request } from "./types.js" */

/** @typedef {{ [id: string]: { chosen: string[], text: string } }} Given what was filled in, by question */

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

/**
 * Where a request takes effect.
 *
 * @param {{ request: Request }} props
 */
function Where({ request }) {
  const facts = whereOf(request);
  return html`<p class="where">${facts.map(({ label, value, isRisk }, index) => html`${index > 0 && html`<span class="muted"> · </span>`}<span class=${isRisk ? "risk" : "muted"}>${label}${value && html` <code>${value}</code>`}</span>`)}</p>`;
}

/**
 * What will happen, and then what the agent says about it, as a quotation.
 *
 * @param {{ request: Request, warnings?: string[] }} props
 */
export function Asked({ request, warnings = [] }) {
  const parts = asked(request);
  const session = sessions.value.get(request.session_id);
  const isQuestion = request.kind === "input_request";
  const once = isQuestion ? undefined : choices(request).yes.find((choice) => choice.primary);
  return html`
    ${parts.command && html`<${Block} text=${parts.command} name="Command" lines=${60} isCommand />`}
    ${parts.tool && html`<p><span class="muted">Tool </span><code>${cleanCode(parts.tool)}</code></p>`}
    ${parts.input && html`<${Block} text=${parts.input} name="Input" />`}
    ${parts.permissions && html`<${Block} text=${parts.permissions} name="Permissions" />`}
    ${parts.changes.map((change) => html`<${Diff} change=${change} base=${session?.cwd} isAsked=${true} />`)}
    ${once?.reaches && html`<p class="reaches"><span class="muted">${once.label} allows: </span><bdi>${cleanCode(once.reaches)}</bdi></p>`}
    ${warnings.map((harm) => html`<p class="warn"><${Icon} name="warning" />It ${harm}.</p>`)}
    ${parts.plan && html`<${Says} title="The agent's plan:"><${Markdown} text=${parts.plan} /><//>`}
    ${(parts.text || parts.reason) && html`<${Says} title=${isQuestion ? "The agent asks:" : "The agent says:"}>
      ${[parts.text, parts.reason].filter(Boolean).map((said) => html`<p class="plain">${clean(said).trim().replace(/\n{3,}/g, "\n\n")}</p>`)}<//>`}
    ${parts.rest && html`<${Says} title="The agent adds:"><${Block} text=${parts.rest} name="Details" lines=${12} /><//>`}
    ${parts.more && html`<details><summary class="muted">More from the agent</summary><pre>${cleanCode(parts.more)}</pre></details>`}
  `;
}

/** @param {{ title: string, children: any }} props */
const Says = ({ title, children }) => html`<section class="says"><h3>${title}</h3><blockquote>${children}</blockquote></section>`;

/**
 * A card for one request, or for several that ask the same.
 *
 * @param {{ requests: Request[], isAlone?: boolean }} props
 */
export function Card({ requests, isAlone = false }) {
  const [request] = requests;
  const places = requests.map((one) => sessions.value.get(one.session_id)?.cwd ?? "");
  const about = requests.map(({ id }) => id).join(" ");
  const warnings = useMemo(() => [...new Set(requests.flatMap((one, index) => dangers(one, places[index])))], [about, ...places.slice(0, 50)]);
  const coverage = useCoverage(about);
  const pending = outbox.value.filter((entry) => requests.some(({ id }) => id === entry.about));
  const refused = pending.find((entry) => entry.state === "refused");
  const isSending = pending.some((entry) => entry.state !== "refused");
  const isOnePlace = new Set(requests.map((one) => JSON.stringify(whereOf(one)))).size === 1;
  return html`<article ref=${coverage.article} class=${`card request ${warnings.length ? "danger" : ""}`} aria-label=${`${headline(request)}: ${oneLine(request.text, 80)}`} data-request=${request.id}>
    <div class="card-head">
      <h2><svg class="mark" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 3l9 9-9 9-9-9z" /></svg>${headline(request)}${requests.length > 1 && html` <span class="count">× ${requests.length}</span>`}</h2>
      <${TimeLeft} until=${request.expires_at} />
    </div>
    ${requests.map((one) => html`<div class="origin"><${Who} request=${one} isAlone=${isAlone} />${!isOnePlace && html`<${Where} request=${one} />`}</div>`)}
    ${isOnePlace && html`<${Where} request=${request} />`}
    <${Asked} request=${request} warnings=${warnings} />
    ${refused &&
    html`<div class="failed-note" role="alert"><p>The daemon refused the answer: ${clean(refused.error)}</p>
      <div class="row"><button type="button" class="small" onClick=${() => retry(refused.key)}>Try again</button>
      <button type="button" class="small quiet" onClick=${() => discard(refused.key)}>Drop it</button></div></div>`}
    <${Answers} requests=${requests} warnings=${warnings} coverage=${coverage} isSending=${isSending} />
  </article>`;
}

/** Milliseconds in which a second press is part of the first, and after which the first is forgotten. */
export const DOUBLE_MS = 500;
const FORGOTTEN_MS = 10_000;

/** @param {{ requests: Request[], warnings: string[], coverage: ReturnType<typeof useCoverage>, isSending: boolean }} props */
function Answers({ requests, warnings, coverage, isSending }) {
  const [request] = requests;
  const [panel, setPanel] = useState("");
  const [words, setWords] = useState("");
  const [given, setGiven] = useState(/** @type {Given} */ ({}));
  const [askedAt, setAskedAt] = useState(0);
  const opened = useRef(/** @type {MouseEvent | null} */ (null));
  const { yes, no, answers } = choices(request);
  const { questions } = asked(request);
  const isQuestion = request.kind === "input_request";
  const isUnread = coverage.unread !== "" && !isQuestion;

  useLayoutEffect(() => {
    if (!askedAt) return undefined;
    const timer = setTimeout(() => setAskedAt(0), FORGOTTEN_MS);
    return () => clearTimeout(timer);
  }, [askedAt]);
  // The first press did not mean what is new.
  useLayoutEffect(() => setAskedAt(0), [requests.length, isUnread]);

  /** @param {Choice} choice @param {string} [text] */
  const decide = (choice, text) => {
    // A press may be meant for what was here before. Words are not.
    if (coverage.isSettling && !text) return;
    for (const one of requests) {
      const option = optionOf(choice, request, one);
      void resolve(one, {
        decision: choice.decision,
        ...(option ? { option } : {}),
        ...(choice.scope ? { scope: choice.scope } : {}),
        ...(text?.trim() ? { text: text.trim() } : {}),
      });
    }
  };

  if (isSending)
    return html`<div class="actions"><p class="sending" role="status">
      ${navigator.onLine ? "Sending your answer…" : "Your answer waits for the network."}
    </p></div>`;

  const [approve, ...more] = usualFirst(yes);
  const [deny, ...otherNo] = usualFirst(no);
  const isDangerous = warnings.length > 0;
  const form = `answer-${request.id}`;
  const isDenying = panel === "words";
  const answer = questions.length ? answerText(questions, given) : words.trim() || null;
  const others = [...new Set([...more.map(({ short }) => short), isQuestion ? "say why not" : "deny with words", ...otherNo.map(({ short }) => short), "more time"])];
  const all = requests.length > 1 ? ` all ${requests.length}` : "";
  const onInput = (/** @type {any} */ event) => setWords(event.target.value);

  const press = () => {
    if (isUnread) coverage.readOn();
    else if (coverage.isSettling) return;
    else if (!isDangerous) decide(approve);
    else if (!askedAt) setAskedAt(Date.now());
    else if (Date.now() - askedAt > DOUBLE_MS) decide(approve);
  };
  // One element, which keeps the focus. A key that is held down is one press.
  const approving = () => {
    const verb = all ? approve.label.replace(/^Approve/, `Approve${all}`) : approve.label;
    const label = isUnread ? `Read on ${coverage.unread === "up" ? "↑" : "↓"}` : askedAt ? `Yes, ${verb[0].toLowerCase()}${verb.slice(1)}` : `${verb}${isDangerous ? "…" : ""}`;
    const look = isUnread ? "read-on" : isDangerous ? `approve harmful ${askedAt ? "asking" : ""}` : "approve";
    return html`<button type="button" class=${look} aria-disabled=${!isUnread && coverage.isSettling} aria-describedby=${isUnread ? `${form}-unread` : undefined}
      onClick=${press} onKeyDown=${(/** @type {KeyboardEvent} */ event) => event.repeat && event.preventDefault()}>${clean(label)}</button>`;
  };

  const fields = isQuestion && !isDenying && html`
    ${(questions.length > 0 || answers.length === 0) && html`<form class="answer" id=${form} onSubmit=${(/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      if (answer) decide({ label: "", short: "", decision: "answer" }, answer);
    }}>
      ${questions.length
        ? html`<${Questions} questions=${questions} given=${given} onChange=${setGiven} />`
        : html`<label>Your answer<textarea rows="3" placeholder="Answer" value=${words} onInput=${onInput}></textarea></label>`}
    </form>`}`;
  const offered = !questions.length && answers.length > 0 && html`<div class="options">${answers.map((choice) => html`<button type="button" disabled=${isUnread} aria-disabled=${coverage.isSettling} onClick=${() => decide(choice)}>${clean(choice.label)}</button>`)}</div>`;

  // The buttons are one bar, which stays in view, and so does what they open.
  const opening = panel && html`<${OtherAnswers} isDenying=${isDenying} requests=${requests} warnings=${warnings} isUnread=${isUnread} openedBy=${opened.current} onDecide=${decide} onPanel=${setPanel} />`;
  if (isDenying) return html`<div class="actions">${opening}</div>`;
  return html`
    ${fields}${offered}
    <div class="actions">
      ${opening}
      <p class="unread-note muted" id=${`${form}-unread`} role="status">${isQuestion ? "" : coverage.unread ? "You have not seen all of it yet." : coverage.wasUnread ? "You have seen all of it." : ""}</p>
      ${askedAt > 0 && !isUnread && html`<p class="warn asked-again" role="alert"><${Icon} name="warning" /><span>It ${listed(warnings)}. ${requests.length > 1 ? `Approve all ${requests.length}?` : "Approve it?"}</span></p>`}
      <button type="button" class="quiet more-options" aria-expanded=${panel !== ""} onClick=${(/** @type {MouseEvent} */ event) => {
        setAskedAt(0);
        opened.current = event;
        setPanel(panel ? "" : "more");
      }}><strong>More options</strong> <span>${clean(others.join(", "))}</span></button>
      <button type="button" class="deny" aria-disabled=${coverage.isSettling} onClick=${() => decide(deny)}>${deny.label}${all && deny.label === "Deny" ? all : ""}</button>
      ${approve
        ? approving()
        : isQuestion && (questions.length > 0 || answers.length === 0)
          ? html`<button type="submit" form=${form} class="approve" disabled=${answer === null}>Send</button>`
          : isUnread
            ? html`<button type="button" class="read-on" onClick=${coverage.readOn}>Read on ${coverage.unread === "up" ? "↑" : "↓"}</button>`
            : html`<span class="spacer"></span>`}
    </div>
  `;
}

/** @param {string[]} harms */
export const listed = (harms) => (harms.length > 1 ? `${harms.slice(0, -1).join(", ")} and ${harms[harms.length - 1]}` : harms[0]);

/**
 * Return the option of another request that is the same as a choice: ids may differ.
 *
 * @param {Choice} choice of `first`
 * @param {Request} first
 * @param {Request} other one that is identical, by `sameness`
 */
const optionOf = (choice, first, other) => (choice.option ? other.options?.[first.options?.findIndex(({ id }) => id === choice.option) ?? -1]?.id : undefined);

/** @param {{ questions: Question[], given: Given, onChange: (given: Given) => void }} props */
function Questions({ questions, given, onChange }) {
  const of = (/** @type {string} */ id) => (Object.hasOwn(given, id) ? given[id] : { chosen: [], text: "" });
  /** @param {Question} question @param {string} label */
  const toggle = (question, label) => {
    const { chosen, text } = of(question.id);
    const without = chosen.filter((one) => one !== label);
    const next = question.multiple ? (without.length < chosen.length ? without : [...chosen, label]) : [label];
    onChange({ ...given, [question.id]: { chosen: next, text: question.multiple ? text : "" } });
  };
  /** @param {Question} question @param {string} text */
  const write = (question, text) =>
    onChange({ ...given, [question.id]: { chosen: question.multiple ? of(question.id).chosen : [], text } });
  return questions.map((question) => html`<fieldset>
    <legend>${clean(question.text || question.id) || "?"}</legend>
    ${(question.choices ?? []).map((choice) => {
      const label = String(choice.label ?? "");
      return html`<label class="choice">
        <input type=${question.multiple ? "checkbox" : "radio"} name=${question.id} checked=${of(question.id).chosen.includes(label)} onChange=${() => toggle(question, label)} />
        <span class="choice-text"><span>${clean(label) || "(empty)"}</span>${choice.description && html`<span class="muted">${clean(choice.description)}</span>`}</span>
      </label>`;
    })}
    ${(question.free_text || !question.choices?.length) && html`<label class="free">${question.choices?.length ? "Other" : "Answer"}
      <input type="text" placeholder="Answer" value=${of(question.id).text} onInput=${(/** @type {any} */ event) => write(question, event.target.value)} /></label>`}
  </fieldset>`);
}

/** @param {{ request: Request, mine?: boolean }} props */
export const Closed = ({ request, mine = false }) => html`
  <article class="closed-request" data-request=${request.id}>
    <p><strong>${outcome(request)}${mine || isHere(request) ? ", here" : ""}</strong> · <bdi>${oneLine(asked(request).command || request.text, 120)}</bdi></p>
    ${request.answer && html`<p class="muted">“${oneLine(request.answer, 200)}”</p>`}
  </article>
`;
