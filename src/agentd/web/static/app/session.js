/** A session: its story, what came since the last visit, and the composer. */

import { Composer } from "./composer.js";
import { Details } from "./details.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { discard, outbox, post, retry } from "./outbox.js";
import { Empty, Header, Icon, State, Twice } from "./parts.js";
import { to } from "./route.js";
import { connection, isFresh, logOf, markSeen, seen, sessionOf, work } from "./store.js";
import { pathOf, stateOf, titleOf } from "./sessionfacts.js";
import { Entry } from "./story.js";
import { clean, shortPath } from "./text.js";

/** @import { Log } from "./log.js" */
/** @import { Session } from "./types.js" */

/** Entries that are added to the window at once, and the most that it has. */
const STEP = 120;
const MOST = 360;
/** Pixels from an edge of the window at which more entries are added. */
const NEAR = 600;

/** @param {{ id: string, view: string }} props */
export function SessionScreen({ id, view }) {
  const session = sessionOf(id);
  const log = logOf(id);
  useEffect(() => {
    if (session && connection.value === "live") void log.open(session.last_seq);
  }, [id, session === undefined, connection.value]);
  if (!session)
    return html`<${Header} title="Session" back=${to("sessions")} /><${Empty} title=${isFresh.value ? "There is no such session" : "Reading…"} />`;
  const isAtWork = ["running", "waiting", "queued"].includes(work.value.get(id)?.status ?? "");
  const stop = () => void post("POST", `runs/${work.value.get(id)?.run}/cancel`, {}, id);
  const parents = pathOf(id).slice(0, -1);
  return html`
    <${Header} title=${titleOf(session)} back=${view ? to(`s/${id}`) : to("sessions")} actions=${html`
      ${isAtWork && html`<${Twice} class="small stop" question="Stop it?" onConfirm=${stop}>Stop<//>`}
      ${!view && html`<a class="button quiet details-link" href=${to(`s/${id}/details`)} aria-label="Details"><${Icon} name="info" /></a>`}
    `}>
      <p class="muted sub"><${State} state=${stateOf(session)} />
        ${parents.map(({ id: above, title }) => html`<a href=${to(`s/${above}`)}>${title}</a><span> › </span>`)}
        <span class="cwd">${shortPath(session.cwd, 40)}</span></p>
    <//>
    ${view === "details"
      ? html`<div class="scroll" data-screen="details"><${Details} session=${session} log=${log} /></div>`
      : html`<${Story} key=${id} log=${log} session=${session} /><${Composer} key=${`composer ${id}`} session=${session} log=${log} />`}
  `;
}

/** @param {{ log: Log, session: Session }} props */
function Story({ log, session }) {
  void log.changes.value;
  const { items } = log;
  const scroller = useRef(/** @type {HTMLDivElement | null} */ (null));
  const content = useRef(/** @type {HTMLDivElement | null} */ (null));
  const atEnd = useRef(true);
  const anchor = useRef(/** @type {{ key: string, top: number } | null} */ (null));
  const since = useRef(seen.peek()[session.id] ?? 0);
  const begun = useRef(false);
  const renders = useRef(0);
  const render = ++renders.current;
  /** The `seq` of the last entry that is shown; null follows the end. */
  const [end, setEnd] = useState(/** @type {number | null} */ (null));
  const [count, setCount] = useState(STEP);
  const [isAway, setAway] = useState(false);

  const last = end === null ? items.length : 1 + items.findLastIndex((item) => item.seq <= end);
  const first = Math.max(0, last - count);
  const divider = since.current && since.current < session.last_seq ? items.findIndex((item) => item.seq > since.current) : -1;

  /** Remember where an entry is, so that it stays there while others are added above. */
  const hold = () => {
    const top = scroller.current?.getBoundingClientRect().top ?? 0;
    const elements = content.current?.querySelectorAll("[data-key]") ?? [];
    for (const element of elements) {
      const box = element.getBoundingClientRect();
      if (box.bottom > top) {
        anchor.current = { key: /** @type {HTMLElement} */ (element).dataset.key ?? "", top: box.top };
        return;
      }
    }
  };

  useLayoutEffect(() => {
    const box = scroller.current;
    if (!box) return;
    if (anchor.current) {
      const element = content.current?.querySelector(`[data-key="${CSS.escape(anchor.current.key)}"]`);
      if (element) box.scrollTop += element.getBoundingClientRect().top - anchor.current.top;
      anchor.current = null;
    } else if (log.isOpen.value && !begun.current && items.length) {
      begun.current = true;
      const line = content.current?.querySelector(".since");
      if (line && box.scrollHeight - /** @type {HTMLElement} */ (line).offsetTop > box.clientHeight) {
        box.scrollTop = /** @type {HTMLElement} */ (line).offsetTop - 24;
        atEnd.current = false;
        setAway(true);
      } else box.scrollTop = box.scrollHeight;
    }
    // More entries may be needed above, without a further movement of the reader.
    if (begun.current && box.scrollTop < NEAR && (first > 0 || log.before > 0))
      requestAnimationFrame(() => renders.current === render && onScroll());
  });

  useEffect(() => {
    const box = scroller.current;
    if (!box || !content.current) return undefined;
    const observer = new ResizeObserver(() => {
      if (atEnd.current) box.scrollTop = box.scrollHeight;
    });
    observer.observe(content.current);
    observer.observe(box);
    return () => observer.disconnect();
  }, []);

  useEffect(() => {
    if (atEnd.current && log.isOpen.value && !document.hidden) markSeen(session.id, log.last);
  });

  const onScroll = () => {
    const box = scroller.current;
    if (!box) return;
    const below = box.scrollHeight - box.scrollTop - box.clientHeight;
    const isEnd = below < 80 && end === null;
    if (isEnd !== atEnd.current) {
      atEnd.current = isEnd;
      setAway(!isEnd);
      if (isEnd) markSeen(session.id, log.last);
    }
    if (anchor.current) return;
    if (box.scrollTop < NEAR && first > 0) {
      hold();
      if (count + STEP <= MOST) setCount(count + STEP);
      else setEnd(items[last - STEP - 1].seq);
    } else if (box.scrollTop < NEAR && log.before > 0) void log.loadEarlier();
    else if (below < NEAR && end !== null) {
      hold();
      setEnd(last + STEP >= items.length ? null : items[last + STEP - 1].seq);
    }
  };

  const jump = () => {
    setEnd(null);
    setCount(STEP);
    atEnd.current = true;
    setAway(false);
    requestAnimationFrame(() => scroller.current && (scroller.current.scrollTop = scroller.current.scrollHeight));
  };

  const pending = outbox.value.filter((entry) => entry.about === session.id && entry.path.endsWith("/messages"));
  return html`<div class="story-box">
    <div class="scroll story" ref=${scroller} onScroll=${onScroll} data-screen="session" tabindex="0" role="region" aria-label="Story">
      <div class="entries" ref=${content}>
        ${(first > 0 || log.before > 0) && html`<button type="button" class="quiet small earlier" onClick=${onScroll}>${log.loading.value ? "Reading earlier entries…" : "Show earlier entries"}</button>`}
        ${log.isOpen.value && !items.length && html`<${Empty} title="Nothing has been said yet"><p class="muted">Write the first message below.</p><//>`}
        ${!log.isOpen.value && html`<${Empty} title=${log.error.value || (connection.value === "live" ? "Reading…" : "The story needs a connection")} />`}
        ${items.slice(first, last).map((item, index) => html`
          ${first + index === divider && html`<div key="since" class="since" role="separator"><span>Since you left</span></div>`}
          <div key=${item.key} data-key=${item.key} class="entry"><${Entry} item=${item} log=${log} /></div>
        `)}
        ${end === null && pending.map((entry) => html`<div key=${entry.key} class="mine"><div class="bubble pending"><p class="plain">${clean(entry.body.text)}</p></div>
          <p class="receipt muted">${entry.state === "refused" ? html`<span class="receipt-failed">refused: ${clean(entry.error)}</span> <button type="button" class="quiet small" onClick=${() => retry(entry.key)}>Try again</button> <button type="button" class="quiet small" onClick=${() => discard(entry.key)}>Drop</button>` : entry.state === "sending" ? "sending…" : "waits for the network"}</p></div>`)}
      </div>
    </div>
    ${isAway && html`<button type="button" class="jump" onClick=${jump} aria-label="Jump to the end"><${Icon} name="end" /></button>`}
  </div>`;
}
