/** How “Read on” goes to what was not seen of a request. */

import { SLACK, foldOf, viewOf } from "./coverage.js";

/**
 * @typedef {"" | "down" | "up"} Unread where the first line is that was not seen; empty if there is none
 * @typedef {{ width: number, height: number, ranges: [number, number][] }} Seen what was seen of a part, in pixels from its top
 * @typedef {{ part: Element, top: number, bottom: number, isFolded: boolean }} Gap what was not, in pixels of the window
 * @typedef {{ at: number, from: number, to: number }} View what is in view from a time on, in pixels from the article's top
 */

/** Pixels that stay in view when the user reads on, as a line to find the place again. */
const OVERLAP = 56;
/** Pixels of the least movement, and between the end and the bar. */
const EDGE = 8;

/**
 * Scroll to the first gap, or unfold it. Return whether there was something to do: a gap in view is about to be seen.
 *
 * @param {Element} article @param {Element} scroller @param {Gap[]} gaps not empty
 */
export function goOn(article, scroller, gaps) {
  const view = viewOf(article, scroller);
  const [{ part, top, isFolded }] = gaps;
  const isBelow = top >= view.top - SLACK;
  if (isFolded && top <= view.bottom + SLACK) {
    const fold = foldOf(part);
    if (fold instanceof HTMLDetailsElement) fold.open = true;
    else /** @type {HTMLElement} */ (fold).click();
    if (isBelow) return true;
  } else if (isBelow && top < view.bottom - SLACK) return false;
  const overlap = Math.min(OVERLAP, Math.max(view.bottom - view.top - OVERLAP, 0));
  const far = gaps[gaps.length - 1].bottom - view.bottom + EDGE;
  const distance = isBelow ? Math.max(Math.min(top - view.top - overlap, far), EDGE) : top - view.top - EDGE;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  scroller.scrollBy({ top: distance, behavior: isCalm ? "auto" : "smooth" });
  return true;
}
