/** The entries of a session's story. */

import { Asked, Card, Closed } from "./card.js";
import { html, useEffect, useMemo, useRef, useState } from "./lib.js";
import { Markdown } from "./markdown.js";
import { Block, Copy, Diff, Elapsed, Icon, State, usageText } from "./parts.js";
import { to } from "./route.js";
import { requests, sessions } from "./state.js";
import { asJson, clean, cleanCode, clock, counted, duration, oneLine, table } from "./text.js";

/** @import { Log } from "./log.js" */
/** @import { Item } from "./types.js" */

/** @param {{ item: Item, log: Log }} props */
export function Entry({ item, log }) {
  // Reading it subscribes to the item's changes. The parts get it, because the item remains the same object: a part
  // that reads signals is only drawn again when a signal or a property changes.
  const rev = item.rev.value;
  switch (item.kind) {
    case "message":
      return item.role === "user" || item.source ? html`<${Message} item=${item} log=${log} rev=${rev} />` : null;
    case "agent":
      return html`<div class="agent">
        <${Growing} text=${item.text} isWhole=${item.whole} />
        ${item.whole ? item.text.length > 160 && html`<div class="entry-tools"><${Copy} text=${item.text} /></div>` : html`<span class="typing" role="img" aria-label="The agent is writing"></span>`}
      </div>`;
    case "subagent":
      return html`<details class="fold"><summary>Sub-agent: <bdi>${oneLine(item.text, 90)}</bdi></summary><${Markdown} text=${item.text} /></details>`;
    case "reasoning":
      return html`<details class="fold reasoning"><summary>Reasoning: <bdi>${oneLine(item.text, 90)}</bdi></summary><${Markdown} text=${item.text} /></details>`;
    case "tool":
      return html`<${Tool} item=${item} rev=${rev} />`;
    case "files":
      return html`<div class="files">${item.status && item.status !== "completed" && html`<p class="warn">The change was ${clean(item.status)}.</p>`}${item.changes.map((/** @type {any} */ change) => html`<${Diff} change=${change} isOpen=${false} base=${sessions.value.get(log.sessionId)?.cwd} />`)}</div>`;
    case "plan":
      return html`<${Plan} steps=${item.steps} />`;
    case "request":
      return html`<${Question} item=${item} rev=${rev} />`;
    case "child":
      return html`<p class="note">Started a helper: <a href=${to(`s/${item.child.session_id}`)}>${oneLine(item.child.title || item.child.task, 100)}</a></p>`;
    case "childEnd":
      return html`<details class="fold"><summary><${State} state=${item.child.status} /> helper <a href=${to(`s/${item.child.session_id}`)}>${item.child.session_id.slice(-6)}</a></summary>
        <${Markdown} text=${item.child.result?.text ?? item.child.error?.message ?? ""} /></details>`;
    case "end":
      return html`<${End} item=${item} rev=${rev} />`;
    default:
      return html`<p class=${item.isProblem ? "note warn" : "note"}>${item.isProblem && html`<${Icon} name="warning" />`}${clean(item.text)}</p>`;
  }
}

/**
 * Text that streams in. A long one is drawn less often, so that drawing takes a quarter of the time at most.
 *
 * @param {{ text: string, isWhole: boolean }} props
 */
function Growing({ text, isWhole }) {
  const began = performance.now();
  const shown = useRef(text);
  const due = useRef(0);
  const [, redraw] = useState(0);
  if (isWhole || began >= due.current) shown.current = text;
  useEffect(() => {
    if (shown.current === text) {
      if (began >= due.current) due.current = performance.now() + 3 * (performance.now() - began);
      return undefined;
    }
    const timer = setTimeout(() => redraw(Math.random()), due.current - performance.now());
    return () => clearTimeout(timer);
  });
  return useMemo(() => html`<${Markdown} text=${shown.current} isGrowing=${!isWhole} />`, [shown.current, isWhole]);
}

/** @type {{ [status: string]: string }} */
const RECEIPTS = table({ queued: "queued", running: "delivered", waiting: "delivered", completed: "done", failed: "failed", canceled: "canceled" });

/**
 * Return how far a message has got, as a state of its run. One that steers has the run of others, until that run ends without having taken it.
 *
 * @param {Item} item @param {Log} log
 */
function progressOf(item, log) {
  if (item.runId) return log.runs.get(item.runId)?.status;
  if (!item.isSteering) return undefined;
  return log.taken.get(item.id) ? log.runs.get(String(item.run))?.status : "queued";
}

/** @param {{ item: Item, log: Log, rev: number }} props */
function Message({ item, log }) {
  const progress = progressOf(item, log);
  const kind = item.source?.kind;
  const owner = sessions.value.get(log.sessionId)?.owner;
  const from =
    kind === "parent" ? "from the agent above"
    : kind === "child" ? "from a helper"
    : kind === "session" ? "from another agent"
    : item.role === "system" ? "from the daemon"
    : item.role === "assistant" ? "recorded"
    : item.source?.principal === owner ? ""
    : oneLine(item.source?.principal, 40);
  return html`<div class=${item.role === "user" && (kind === "client" || !kind) ? "mine" : "other"}>
    <div class="bubble"><${Markdown} text=${item.text} />
      ${item.images.length > 0 && html`<p class="muted">${counted(item.images.length, "image")}</p>`}</div>
    <p class="receipt muted">${from && html`${from} · `}${clock(item.at)}${progress && html` · <span class=${`receipt-${progress}`}>${RECEIPTS[progress] ?? progress}</span>`}</p>
  </div>`;
}

/** @param {{ item: Item, rev: number }} props */
function Tool({ item }) {
  const isRunning = item.status === "running";
  const [isOpen, setOpen] = useState(/** @type {boolean | null} */ (null));
  const isFailed = item.status === "failed" || item.status === "declined" || Boolean(item.error);
  const open = isOpen ?? isRunning;
  const command = item.tool === "command" && typeof item.input?.command === "string" ? item.input.command : "";
  const input = command || (item.input && Object.keys(item.input).length ? asJson(item.input) : "");
  // A short command is readable in the head of the card already.
  const isShownAbove = input === command && command.length <= 32 && !command.includes("\n");
  const summary = command || (typeof item.input === "object" && item.input ? Object.values(item.input).find((value) => typeof value === "string") ?? "" : "");
  const seconds = item.ended ? (Date.parse(item.ended) - Date.parse(item.at)) / 1000 : 0;
  return html`<div class=${`tool ${isFailed ? "tool-failed" : ""}`}>
    <button type="button" class="tool-head" aria-expanded=${open} onClick=${() => setOpen(!open)}>
      <${State} state=${isRunning ? "running" : isFailed ? "failed" : "completed"} label=${item.status === "declined" ? "declined" : undefined} />
      <span class="tool-name">${command ? "" : cleanCode(oneLine(item.name || item.tool || "tool", 60))}</span>
      <code class="tool-summary">${cleanCode(oneLine(summary, 200))}</code>
      ${isRunning ? html`<span class="muted"><${Elapsed} since=${item.at} /></span>` : seconds >= 1 && html`<span class="muted">${duration(seconds)}</span>`}
    </button>
    ${open && html`<div class="tool-body">
      ${input && !isShownAbove && html`<${Block} text=${input} name="Input" lines=${20} />`}
      ${item.output && html`<${Block} text=${isRunning ? tail(item.output) : item.output} name="Output" />`}
      ${item.result != null && !item.output && html`<${Block} text=${asJson(item.result)} name="Result" lines=${20} />`}
      ${item.error && html`<p class="warn"><${Icon} name="warning" />${clean(asJson(item.error))}</p>`}
      ${typeof item.exitCode === "number" && item.exitCode !== 0 && html`<p class="muted">Exit code ${item.exitCode}</p>`}
    </div>`}
  </div>`;
}

/** @param {string} output of a tool that still runs: its last lines */
const tail = (output) => output.slice(-20_000).split("\n").slice(-30).join("\n");

/** @param {{ steps: { text: string, status: string }[] }} props */
export function Plan({ steps }) {
  const done = steps.filter((step) => step.status === "completed").length;
  return html`<div class="plan" role="group" aria-label="Plan"><h2>Plan <span class="muted">${done} of ${steps.length} done</span></h2>
    <ul>${steps.map((step) => html`<li class=${`step step-${step.status}`}>
      <${State} state=${step.status === "completed" ? "completed" : step.status === "in_progress" ? "running" : "queued"} label=${step.status === "completed" ? "done" : step.status === "in_progress" ? "now" : "next"} />
      <span>${clean(step.text)}</span></li>`)}</ul></div>`;
}

/** @param {{ item: Item, rev: number }} props */
function Question({ item }) {
  const open = requests.value.get(item.request.id);
  if (open) return html`<${Card} requests=${[open]} />`;
  if (item.request.status === "pending")
    return html`<p class="note"><${State} state="waiting" label=${item.request.audience === "parent" ? "asks the agent above" : "asks"} /> <bdi>${oneLine(item.request.text, 200)}</bdi></p>`;
  return html`<details class="fold"><summary><${Closed} request=${item.request} /></summary><${Asked} request=${item.request} /></details>`;
}

/** @param {{ item: Item, rev: number }} props */
function End({ item }) {
  const usage = usageText(item.usage);
  return html`<div class=${`end end-${item.status}`}>
    ${item.result?.text && html`<div class="agent"><${Markdown} text=${item.result.text} /><div class="entry-tools"><${Copy} text=${item.result.text} /></div></div>`}
    ${item.error && html`<div class="failed-note"><p><strong>${clean(item.error.code)}</strong> ${clean(item.error.message)}</p></div>`}
    <p class="note"><${State} state=${item.status} />${item.reason && html` <span>${clean(item.reason)}</span>`}${usage && html` <span class="muted">· ${usage}</span>`} <a class="muted" href=${to(`run/${item.run}`)}>${item.status === "completed" ? "run" : "why?"}</a></p>
  </div>`;
}
