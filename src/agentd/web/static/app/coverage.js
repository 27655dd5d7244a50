/** Whether all of a request was on the screen: nothing is approved before. */

import { useEffect, useLayoutEffect, useRef, useState } from "./lib.js";

/** Milliseconds that a line is in view until it was seen: what flies past was not. */
const SEEN_MS = 200;
/** Milliseconds in which a press may be meant for what was there before. */
const SETTLE_MS = 700;
/** Milliseconds from a press of “Read on” to the end of its scrolling, at most. */
const SCROLL_MS = 2500;
/** Pixels that may be missing at an edge: heights are rounded. */
export const SLACK = 2;
/** Pixels by which a card moves until it is elsewhere. */
const MOVED = 20;

/** @import { Gap, Seen, Unread, View } from "./readon.js" */

/**
 * Return what hides the end of a part: the button that unfolds it, or the part itself if it is closed.
 *
 * @param {Element} part
 */
export const foldOf = (part) =>
  part.matches("details.diff:not([open])") && part.querySelector("pre") ? part : /** @type {HTMLElement | null} */ (part.querySelector(".unfold:not([aria-expanded=true])"));

/**
 * Return where an article is read: above its bar, and inside the zoomed window.
 *
 * @param {Element} article @param {Element} scroller
 */
export function viewOf(article, scroller) {
  const box = scroller.getBoundingClientRect();
  const bar = article.querySelector(":scope > .actions");
  const zoomed = window.visualViewport;
  const isSticky = bar !== null && getComputedStyle(bar).position === "sticky";
  return {
    top: Math.max(box.top, zoomed?.offsetTop ?? 0),
    bottom: Math.min(box.bottom, isSticky ? bar.getBoundingClientRect().top : Infinity, zoomed ? zoomed.offsetTop + zoomed.height : innerHeight),
  };
}

/**
 * Note what is seen of an article now, and return what was not seen yet, the uppermost first.
 *
 * @param {Element} article @param {WeakMap<Element, Seen>} seen
 * @param {number} from in pixels of the window @param {number} to
 */
function gapsOf(article, seen, from, to) {
  /** @type {Gap[]} */ const gaps = [];
  for (const part of article.querySelectorAll(":scope > :not(.failed-note, form, .options, .actions)")) {
    const { top, bottom, width, height } = part.getBoundingClientRect();
    const fold = foldOf(part);
    const end = fold && fold !== part ? fold.getBoundingClientRect().top - top : height;
    const known = seen.get(part);
    // Another width breaks lines elsewhere. At the same width, lines are only added at the end.
    const scale = known && known.width !== width && known.height ? height / known.height : 1;
    /** @type {[number, number][]} */ const ranges = [];
    for (const [start, stop] of [...(known?.ranges ?? []).map(([a, b]) => [a * scale, b * scale]), [Math.max(from - top, 0), Math.min(to - top, end)]].sort(([a], [b]) => a - b)) {
      const last = ranges[ranges.length - 1];
      if (last && start <= last[1] + SLACK) last[1] = Math.max(last[1], stop);
      else if (stop > start) ranges.push([start, stop]);
    }
    seen.set(part, { width, height, ranges });
    let at = 0;
    for (const [start, stop] of [...ranges, [end, end]]) {
      if (start > at + SLACK) gaps.push({ part, top: top + at, bottom: top + start, isFolded: false });
      at = Math.max(at, stop);
    }
    if (fold) gaps.push({ part, top: top + end, bottom, isFolded: true });
  }
  return gaps;
}

/**
 * Follow what of an article was seen.
 *
 * @param {string} about names what the article shows
 * @returns {{ article: { current: HTMLElement | null }, unread: Unread | null, isSettling: boolean, wasUnread: boolean, readOn: () => void }}
 *   `unread` is null before the first look. While `isSettling`, a press may be meant for something else.
 */
export function useCoverage(about) {
  const article = useRef(/** @type {HTMLElement | null} */ (null));
  const begin = () => ({ about, isNew: true, parts: /** @type {WeakMap<Element, Seen>} */ (new WeakMap()), views: /** @type {View[]} */ ([]), pressedAt: 0, isPressed: false, wasUnread: false });
  const state = useRef(begin());
  const timer = useRef(0);
  const place = useRef({ about, top: NaN, own: NaN, scrolled: NaN, height: NaN, total: NaN });
  const [unread, setUnread] = useState(/** @type {Unread | null} */ (null));
  /** When it appeared or moved last; 0 if a press is meant for it. */
  const [movedAt, setMovedAt] = useState(() => performance.now());
  const before = useRef(unread);
  if (state.current.about !== about) state.current = begin();

  const look = useRef(() => /** @type {Gap[]} */ ([]));
  look.current = () => {
    const now = state.current;
    const scroller = article.current?.closest(".scroll");
    clearTimeout(timer.current);
    if (!article.current || !scroller || document.hidden) {
      now.views = [];
      return [];
    }
    const bar = /** @type {HTMLElement | null} */ (article.current.querySelector(":scope > .actions"));
    // A bar that takes most of the window leaves nothing to read in.
    const panel = /** @type {HTMLElement | null} */ (bar?.querySelector(":scope > .panel") ?? null);
    bar?.classList.toggle("loose", bar.offsetHeight - (panel?.offsetHeight ?? 0) > 0.6 * scroller.clientHeight);
    const view = viewOf(article.current, scroller);
    const { top, height: own } = article.current.getBoundingClientRect();
    const { scrollTop: scrolled, clientHeight: height, scrollHeight: total } = scroller;
    const was = place.current;
    place.current = { about, top, own, scrolled, height, total };
    const at = performance.now();
    const by = top - was.top;
    // Only a scroll by hand is meant. The end of the window moves buttons, too.
    if (was.about !== about || Math.abs(height - was.height) > MOVED || (Math.abs(by) > MOVED && Math.max(Math.abs(by + scrolled - was.scrolled), was.total - total) > MOVED)) setMovedAt(at);
    if (was.own !== own || was.height !== height) now.views = []; // its lines are elsewhere
    const [from, to] = [view.top - top, view.bottom - top];
    const last = now.views[now.views.length - 1];
    if (last?.from !== from || last.to !== to) now.views.push({ at, from, to });
    while (now.views.length > 1 && now.views[1].at <= at - SEEN_MS) now.views.shift();
    const isSeen = now.isNew || now.views[0].at <= at - SEEN_MS;
    const gaps = isSeen
      ? gapsOf(article.current, now.parts, top + Math.max(...now.views.map((one) => one.from)), top + Math.min(...now.views.map((one) => one.to)))
      : gapsOf(article.current, now.parts, Infinity, -Infinity);
    const next = !gaps.length ? "" : gaps[0].top < view.top - SLACK ? "up" : "down";
    if (!next && before.current && Date.now() - now.pressedAt < SCROLL_MS) setMovedAt(at);
    before.current = next;
    if (next) now.wasUnread = true;
    setUnread(next);
    const isStill = isSeen && now.views.length === 1;
    if (next && !isStill) timer.current = setTimeout(() => look.current(), SEEN_MS + 20);
    if (now.isPressed && isStill) void readOn();
    return gaps;
  };

  useLayoutEffect(() => {
    // A story scrolls to its end first.
    if (state.current.isNew) queueMicrotask(() => look.current());
    else look.current();
  });
  useEffect(() => {
    if (!movedAt) return undefined;
    const timeout = setTimeout(() => setMovedAt((last) => (last === movedAt ? 0 : last)), SETTLE_MS);
    return () => clearTimeout(timeout);
  }, [movedAt]);
  useLayoutEffect(() => {
    const onScroll = () => {
      state.current.isNew = false;
      look.current();
    };
    const observer = new ResizeObserver(() => look.current());
    const scroller = article.current?.closest(".scroll");
    // What is above the card changes the height of the list.
    for (const one of [article.current, scroller, scroller?.firstElementChild]) if (one) observer.observe(one);
    const targets = [scroller, window.visualViewport];
    for (const target of targets) target?.addEventListener("scroll", onScroll, { passive: true });
    window.visualViewport?.addEventListener("resize", onScroll);
    document.addEventListener("visibilitychange", onScroll);
    return () => {
      clearTimeout(timer.current);
      observer.disconnect();
      for (const target of targets) target?.removeEventListener("scroll", onScroll);
      window.visualViewport?.removeEventListener("resize", onScroll);
      document.removeEventListener("visibilitychange", onScroll);
    };
  }, []);

  /** Go to what was not seen. While it is in view already, and was not seen yet, the press waits. */
  const readOn = async () => {
    const now = state.current;
    now.isPressed = false;
    now.pressedAt = Date.now();
    const { goOn } = await import("./readon.js");
    const scroller = article.current?.closest(".scroll");
    const gaps = look.current();
    if (article.current && scroller && gaps.length) now.isPressed = !goOn(article.current, scroller, gaps);
  };

  return { article, unread, isSettling: movedAt > 0, wasUnread: state.current.wasUnread, readOn: () => void readOn() };
}
