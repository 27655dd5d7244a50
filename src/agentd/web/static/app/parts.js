/** Small parts of which the screens are made. */

import { html, useEffect, useErrorBoundary, useRef, useState } from "./lib.js";
import { now, toast } from "./state.js";
import { ago, clean, cleanCode, clock, counted, duration, table } from "./text.js";

/** @import { Change } from "./types.js" */
/** @typedef {import("../vendor/preact.mjs").ComponentChildren} Children */

/** Paths of icons in a square of 24. */
const ICONS = /** @type {{ [name: string]: string }} */ ({
  inbox: "M4 13h4l1.5 3h5L16 13h4M5 5h14l2 8v6H3v-6z",
  sessions: "M4 5h16v11H9l-5 4z",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  back: "M15 5l-7 7 7 7",
  plus: "M12 5v14M5 12h14",
  down: "M6 9l6 6 6-6",
  end: "M12 5v14M6 13l6 6 6-6",
  check: "M5 13l4 4L19 7",
  copy: "M9 9h10v11H9zM5 15V4h10",
  search: "M11 4a7 7 0 100 14 7 7 0 000-14zM20 20l-4-4",
  info: "M12 4a8 8 0 100 16 8 8 0 000-16zM12 11v5M12 8h.01",
  send: "M5 12h14M13 6l6 6-6 6",
  clock: "M12 4a8 8 0 100 16 8 8 0 000-16zM12 8v4l3 2",
  warning: "M12 4l9 16H3zM12 10v4M12 17h.01",
});

/** @param {{ name: string }} props */
export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${ICONS[name]} /></svg>
`;

/** A state's word and shape; its colour is the style sheet's. */
export const STATES = /** @type {{ [state: string]: [string, string] }} */ (table({
  needs: ["needs you", "M12 3l9 9-9 9-9-9z"],
  running: ["at work", "M7 4l13 8-13 8z"],
  waiting: ["waits", "M8 5h3v14H8zM14 5h3v14h-3z"],
  queued: ["queued", "M12 4a8 8 0 100 16 8 8 0 000-16zm0 4a4 4 0 110 8 4 4 0 010-8z"],
  completed: ["done", "M9 19l-6-6 2.5-2.5L9 14 18.500 4.500 21 7z"],
  failed: ["failed", "M12 3l10 18H2zM11 10v5h2v-5zm0 6.500v2h2v-2z"],
  canceled: ["canceled", "M5 5h14v14H5z"],
  idle: ["idle", "M5 11h14v2H5z"],
  closed: ["closed", "M5 11h14v2H5z"],
}));

/** @param {{ state: string, label?: string }} props */
export function State({ state, label }) {
  const [word, shape] = STATES[state] ?? [state, STATES.idle[1]];
  return html`<span class=${`state state-${state}`}>
    <svg viewBox="0 0 24 24" aria-hidden="true"><path fill-rule="evenodd" d=${shape} /></svg>${label ?? word}
  </span>`;
}

/** @param {{ at: string }} props */
export const Age = ({ at }) => html`<time datetime=${at} title=${new Date(at).toLocaleString()}>${ago(at, now.value)}</time>`;

/** How long something has gone on. @param {{ since: string }} props */
export const Elapsed = ({ since }) => html`<span class="elapsed">${duration((now.value - Date.parse(since)) / 1000)}</span>`;

/** @param {{ until: string }} props */
export function TimeLeft({ until }) {
  const seconds = (Date.parse(until) - now.value) / 1000;
  const urgency = seconds < 60 ? "soon" : seconds < 600 ? "near" : "";
  return html`<span class=${`left ${urgency}`} title=${`Expires at ${clock(until)}`}>
    <${Icon} name="clock" />${seconds > 0 ? `${duration(seconds)} left` : "expired"}
  </span>`;
}

/** @param {{ text: string, label?: string }} props */
export function Copy({ text, label = "Copy" }) {
  const [isDone, setDone] = useState(false);
  useEffect(() => {
    if (!isDone) return undefined;
    const timer = setTimeout(() => setDone(false), 2000);
    return () => clearTimeout(timer);
  }, [isDone]);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone(true);
    } catch {
      toast("The browser does not allow to copy here.");
    }
  };
  return html`<button type="button" class="quiet small copy" onClick=${copy} aria-label=${isDone ? "Copied" : label}>
    <${Icon} name=${isDone ? "check" : "copy"} /><span>${isDone ? "Copied" : label}</span>
  </button>`;
}

/**
 * Unfold a part so that what is above it stays where it is, and what was hidden appears below.
 *
 * @param {Event} event of a button in the part
 * @param {() => void} unfold
 */
function openBelow(event, unfold) {
  const scroller = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.currentTarget).closest(".scroll"));
  if (scroller) {
    // A story would follow its end, and a browser what is in view below the part.
    scroller.dispatchEvent(new Event("stay"));
    scroller.style.overflowAnchor = "none";
    requestAnimationFrame(() => requestAnimationFrame(() => (scroller.style.overflowAnchor = "")));
  }
  unfold();
}

/**
 * Text in lines, folded if it has many.
 *
 * @param {{ text: string, lines?: number, name?: string, copy?: boolean, isCommand?: boolean }} props
 */
export function Block({ text, lines = 40, name = "text", copy = true, isCommand = false }) {
  const [isOpen, setOpen] = useState(false);
  const shown = cleanCode(text).replace(/\n+$/, "");
  const all = shown.split("\n");
  const isLong = all.length > lines;
  const part = isLong && !isOpen ? all.slice(0, lines).join("\n") : shown;
  return html`<div class="block">
    <pre tabindex="0" role="group" aria-label=${name}>${isCommand ? wholeWords(part) : part}</pre>
    ${(isLong || copy) && html`<div class="block-tools">
      ${isLong && html`<button type="button" class="quiet small unfold" aria-expanded=${isOpen} onClick=${(/** @type {Event} */ event) => openBelow(event, () => setOpen(!isOpen))}>
        ${isOpen ? "Show less" : `Show all ${all.length.toLocaleString()} lines`}
      </button>`}
      ${copy && html`<${Copy} text=${text} />`}
    </div>`}
  </div>`;
}

/** Words of a command that are kept whole; a longer one takes too many elements. */
const MOST_WORDS = 2000;

/**
 * A command whose lines break between words only: "du -sh" that breaks after its hyphen reads as "sh".
 *
 * @param {string} command
 */
function wholeWords(command) {
  const pieces = command.split(/(\s+)/);
  if (pieces.length > MOST_WORDS) return command;
  return pieces.map((piece) => (/^\s*$/.test(piece) ? piece : html`<span class="word">${piece}</span>`));
}

/** What happened to a file, and what is to happen to it. */
const KINDS = /** @type {{ [kind: string]: [string, string] }} */ (table({ add: ["new", "create"], update: ["changed", "change"], delete: ["deleted", "delete"] }));

/**
 * A change of a file, with the lines of its diff in colours.
 *
 * @param {{ change: Change, isOpen?: boolean, base?: string, isAsked?: boolean }} props
 *   isAsked: whether it is not made yet. base: a directory; paths below it are shown from there on
 */
export function Diff({ change, isOpen = true, base = "", isAsked = false }) {
  const path = String(change.path ?? "a file");
  const below = base && path.startsWith(`${base.replace(/\/+$/, "")}/`) ? path.slice(base.replace(/\/+$/, "").length + 1) : path;
  const text = clean(change.diff ?? "").replace(/\n$/, "");
  const lines = text ? text.split("\n") : [];
  const isPatch = change.kind === "update" || /^(@@|diff |--- )/m.test(text);
  const count = (/** @type {string} */ sign) => lines.filter((line) => line.startsWith(sign) && !line.startsWith(sign.repeat(3))).length;
  const [added, removed] = isPatch ? [count("+"), count("-")] : change.kind === "delete" ? [0, lines.length] : [lines.length, 0];
  const [isWhole, setWhole] = useState(false);
  const most = isWhole ? lines.length : 40;
  return html`<details class="diff" open=${isOpen && lines.length > 0}>
    <summary>
      <span class="path">${cleanCode(below)}</span>
      <span class="muted">${KINDS[change.kind ?? ""]?.[isAsked ? 1 : 0] ?? clean(change.kind)}</span>
      ${added > 0 && html`<span class="added">+${added.toLocaleString()}</span>`}
      ${removed > 0 && html`<span class="removed">−${removed.toLocaleString()}</span>`}
    </summary>
    ${lines.length > 0 && html`<pre tabindex="0" role="group" aria-label="Changes">${lines.slice(0, most).map(
      (line) => html`<span class=${isPatch ? lineClass(line) : change.kind === "delete" ? "minus" : "plus"}>${line || " "}</span>`,
    )}</pre>`}
    ${isAsked && !lines.length && change.kind !== "delete" && html`<p class="muted">The agent does not say what it changes.</p>`}
    ${lines.length > most && html`<button type="button" class="quiet small unfold" onClick=${(/** @type {Event} */ event) => openBelow(event, () => setWhole(true))}>Show all ${lines.length.toLocaleString()} lines</button>`}
  </details>`;
}

/** @param {string} line */
function lineClass(line) {
  if (/^(\+\+\+|---|diff |index )/.test(line)) return "meta";
  if (line.startsWith("@@")) return "hunk";
  if (line.startsWith("+")) return "plus";
  return line.startsWith("-") ? "minus" : "same";
}

/**
 * A button that asks again: the second press carries it out. A double tap counts once.
 *
 * @param {{ children: Children, onConfirm: () => void, question: string, class?: string, disabled?: boolean }} props
 */
export function Twice({ children, onConfirm, question, class: name = "", disabled = false }) {
  const [askedAt, setAskedAt] = useState(0);
  const button = useRef(/** @type {HTMLButtonElement | null} */ (null));
  useEffect(() => {
    if (!askedAt) return undefined;
    const timer = setTimeout(() => setAskedAt(0), 8000);
    return () => clearTimeout(timer);
  }, [askedAt]);
  const press = () => {
    if (!askedAt) setAskedAt(Date.now());
    else if (Date.now() - askedAt > 500) {
      setAskedAt(0);
      onConfirm();
    }
  };
  // A key that is held down is one press.
  const onKeyDown = (/** @type {KeyboardEvent} */ event) => event.repeat && event.preventDefault();
  return html`<button ref=${button} type="button" disabled=${disabled} class=${`${name} ${askedAt ? "asking" : ""}`} onClick=${press} onKeyDown=${onKeyDown}>
    ${askedAt ? question : children}
  </button>`;
}

/**
 * A part of a screen that an agent fills: a mistake in it spoils nothing else.
 *
 * @param {{ children: Children }} props
 */
export function Part({ children }) {
  const [error] = useErrorBoundary();
  return error ? html`<p class="note warn"><${Icon} name="warning" />This part cannot be shown: ${clean(error.message)}</p>` : children;
}

/** @param {{ title: string, back?: string, children?: Children, actions?: Children }} props */
export const Header = ({ title, back, children, actions }) => html`
  <header class="bar">
    ${back && html`<a class="button quiet back" href=${back} aria-label="Back"><${Icon} name="back" /></a>`}
    <div class="bar-title"><h1>${title}</h1>${children}</div>
    ${actions}
  </header>
`;

/**
 * Rows of a list that is read, so that what is below them stays where it is.
 *
 * @param {{ count: number, class?: string }} props
 */
export const Reserved = ({ count, class: name = "" }) =>
  html`<ul class="plain-list" aria-hidden="true">${Array.from({ length: count }, (_, index) => html`<li key=${index} class=${`line reserved ${name}`}><span class="muted">Reading…</span></li>`)}</ul>`;

/** @param {{ title: string, children?: Children }} props */
export const Empty = ({ title, children }) => html`<div class="empty"><h2>${title}</h2>${children}</div>`;

/** @param {import("./types.js").Usage | null | undefined} usage */
export function usageText(usage) {
  if (!usage) return "";
  const parts = [];
  if (usage.input_tokens || usage.output_tokens)
    parts.push(`${counted(usage.input_tokens ?? 0, "token")} in, ${(usage.output_tokens ?? 0).toLocaleString()} out`);
  if (typeof usage.cost_usd === "number") parts.push(`$${usage.cost_usd.toFixed(usage.cost_usd < 1 ? 4 : 2)}`);
  return parts.join(" · ");
}
