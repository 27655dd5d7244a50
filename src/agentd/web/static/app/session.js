/** A session: its story, what came since the last visit, and the composer. */

import { Composer } from "./composer.js";
import { Details } from "./lazy.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { logOf, readAhead } from "./logs.js";
import { discard, outbox, post, retry } from "./outbox.js";
import { Elapsed, Empty, Header, Icon, Part, State, Twice } from "./parts.js";
import { sessionOf } from "./reading.js";
import { to } from "./route.js";
import { markSeen, seen } from "./seen.js";
import { pathOf, stateOf, titleOf } from "./sessionfacts.js";
import { connection, isFresh, requests, work } from "./state.js";
import { Entry } from "./story.js";
import { clean, counted, shortPath } from "./text.js";

/** @import { Log } from "./log.js" */
/** @import { Session } from "./types.js" */

/** Entries that are added to the window at once, and the most that it has. */
const STEP = 120;
const MOST = 360;
/** Pixels from an edge of the window at which more entries are added. */
const NEAR = 600;
/** Pixels between a request and the edge of the window, when it is gone to. */
const EDGE = 12;
/** Milliseconds in which the story does not follow its end, because something is unfolded. */
const STAY_MS = 500;

/** @param {{ id: string, view: string }} props */
export function SessionScreen({ id, view }) {
  const session = sessionOf(id);
  const log = logOf(id);
  const isLive = connection.value === "live";
  const [isReading, setReading] = useState(true);
  useEffect(() => {
    let isCurrent = true;
    setReading(true);
    void readAhead(id).finally(() => isCurrent && setReading(false));
    return () => {
      isCurrent = false;
    };
  }, [id, isLive]);
  if (!session)
    return html`<${Header} title="Session" back=${to("sessions")} /><${Empty} title=${isReading ? "Reading…" : isFresh.value ? "There is no such session" : "The session needs a connection"}>${!isReading && isFresh.value && html`<p class="muted">It was deleted, or you may not read it.</p><a class="button" href=${to("sessions")}>All sessions</a>`}<//>`;
  const run = work.value.get(id);
  const isAtWork = ["running", "waiting", "queued"].includes(run?.status ?? "");
  const stop = () => void post("POST", `runs/${run?.run}/cancel`, {}, id);
  const parents = pathOf(id).slice(0, -1);
  return html`
    <${Header} title=${titleOf(session)} back=${view ? to(`s/${id}`) : to("sessions")} actions=${html`
      ${isAtWork && html`<${Twice} class="small stop" question="Stop it?" onConfirm=${stop}>Stop<//>`}
      ${!view && html`<a class="button quiet details-link" href=${to(`s/${id}/details`)} aria-label="Details"><${Icon} name="info" /></a>`}
    `}>
      <p class="muted sub"><${State} state=${stateOf(session)} />${run && isAtWork && html`<span>for <${Elapsed} since=${run.at} /></span>`}
        ${parents.map(({ id: above, title }) => html`<a href=${to(`s/${above}`)}>${title}</a><span> › </span>`)}
        <span class="cwd">${shortPath(session.cwd, 40)}</span></p>
    <//>
    ${view === "details"
      ? html`<div class="scroll" data-screen="details"><${Details} key=${id} session=${session} log=${log} /></div>`
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
  const stays = useRef(0);
  /** The requests that were in view. */
  const shown = useRef(/** @type {Set<string | undefined>} */ (new Set()));
  const sent = useRef(0);
  /** Where the story went by itself: a scroll event there says nothing of the reader. */
  const went = useRef(NaN);
  const renders = useRef(0);
  const render = ++renders.current;
  /** The `seq` of the last entry that is shown; null follows the end. */
  const [end, setEnd] = useState(/** @type {number | null} */ (null));
  const [count, setCount] = useState(STEP);
  const [isAway, setAway] = useState(false);
  const [, redraw] = useState(0);

  const pending = outbox.value.filter((entry) => entry.about === session.id && entry.path.endsWith("/messages"));
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

  /** Show the end, or the beginning of a request there that is higher than the window: it is read from its beginning. */
  const toEnd = () => {
    const box = scroller.current;
    const entry = content.current?.lastElementChild?.querySelector(".card.request");
    if (!box) return;
    if (entry && entry.clientHeight > box.clientHeight) box.scrollTop += entry.getBoundingClientRect().top - box.getBoundingClientRect().top - EDGE;
    else box.scrollTop = box.scrollHeight;
    went.current = box.scrollTop;
  };

  const cards = () => [.../** @type {NodeListOf<HTMLElement>} */ (content.current?.querySelectorAll(".card.request") ?? [])];
  /** @param {HTMLElement} card */
  const isNew = (card) => !shown.current.has(card.dataset.request);
  const inView = () => {
    const view = scroller.current?.getBoundingClientRect();
    return cards().filter((card) => {
      const { top, bottom } = card.getBoundingClientRect();
      return view && bottom > view.top && top < view.bottom - 5 * EDGE;
    });
  };

  /** Follow the end, unless the reader has a request in view: its buttons stay under the finger. */
  const follow = () => {
    if (inView().every(isNew)) toEnd();
    went.current = NaN;
    onScroll();
    went.current = scroller.current?.scrollTop ?? NaN;
  };

  useLayoutEffect(() => {
    const box = scroller.current;
    if (!box) return;
    if (pending.length > sent.current && begun.current) jump();
    sent.current = pending.length;
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
      } else toEnd();
    }
    // More entries may be needed above, without a further movement of the reader.
    if (begun.current && box.scrollTop < NEAR && (first > 0 || log.before > 0))
      requestAnimationFrame(() => renders.current === render && onScroll());
  });

  useEffect(() => {
    const box = scroller.current;
    if (!box || !content.current) return undefined;
    const observer = new ResizeObserver(() => {
      if (atEnd.current) follow();
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
    const isEnd = below < 80 && end === null && performance.now() > stays.current;
    if (isEnd !== atEnd.current && !(atEnd.current && box.scrollTop === went.current)) {
      atEnd.current = isEnd;
      setAway(!isEnd);
      if (isEnd) markSeen(session.id, log.last);
    }
    for (const card of inView().filter(isNew)) redraw(shown.current.add(card.dataset.request).size);
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

  /** Stay where the reader is while something is unfolded. */
  const stay = () => {
    stays.current = performance.now() + STAY_MS;
    atEnd.current = false;
    setAway(true);
  };

  const jump = () => {
    setEnd(null);
    setCount(STEP);
    atEnd.current = true;
    setAway(false);
    requestAnimationFrame(() => scroller.current && (scroller.current.scrollTop = scroller.current.scrollHeight));
  };

  /** Show the first new request. */
  const toNew = () => {
    setEnd(null);
    requestAnimationFrame(() => {
      const card = cards().find(isNew);
      if (card && scroller.current) scroller.current.scrollTop += card.getBoundingClientRect().top - scroller.current.getBoundingClientRect().top - EDGE;
    });
  };

  const asks = isAway && [...requests.value.keys()].filter((one) => log.byKey.has(`request/${one}`) && !shown.current.has(one)).length;
  return html`<div class="story-box">
    <div class="scroll story" ref=${scroller} onScroll=${onScroll} onstay=${stay} data-screen="session" tabindex="0" role="region" aria-label="Story">
      <div class="entries" ref=${content}>
        ${(first > 0 || log.before > 0) && html`<button type="button" class="quiet small earlier" onClick=${onScroll}>${log.loading.value ? "Reading earlier entries…" : "Show earlier entries"}</button>`}
        ${log.isOpen.value && log.oldest > 0 && first === 0 && !log.before && html`<p class="muted">Earlier entries are no longer kept</p>`}
        ${log.isOpen.value && !items.length && html`<${Empty} title="Nothing has been said yet"><p class="muted">Write the first message below.</p><//>`}
        ${!log.isOpen.value && html`<${Empty} title=${log.loading.value ? "Reading…" : connection.value === "live" ? log.error.value || "Reading…" : "The story needs a connection"} />`}
        ${items.slice(first, last).map((item, index) => html`
          ${first + index === divider && html`<div key="since" class="since" role="separator"><span>Since you left</span></div>`}
          <div key=${item.key} data-key=${item.key} class="entry"><${Part}><${Entry} item=${item} log=${log} /><//></div>
        `)}
        ${end === null && pending.map((entry) => html`<div key=${entry.key} class="mine"><div class="bubble pending"><p class="plain">${clean(entry.body.text)}</p></div>
          <p class="receipt muted">${entry.state === "refused" ? html`<span class="receipt-failed">refused: ${clean(entry.error)}</span> <button type="button" class="quiet small" onClick=${() => retry(entry.key)}>Try again</button> <button type="button" class="quiet small" onClick=${() => discard(entry.key)}>Drop</button>` : entry.state === "sending" ? "sending…" : "waits for the network"}</p></div>`)}
      </div>
    </div>
    ${isAway && (asks
      ? html`<button type="button" class="jump primary news" onClick=${toNew}>${counted(asks, "new request")}<${Icon} name="end" /></button>`
      : html`<button type="button" class="jump" onClick=${jump} aria-label="Jump to the end"><${Icon} name="end" /></button>`)}
  </div>`;
}
