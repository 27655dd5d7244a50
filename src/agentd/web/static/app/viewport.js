/** The size of the window, and what a keyboard on the screen leaves of it. */

import { signal } from "./lib.js";

export const width = signal(innerWidth);

/** Whether a keyboard on the screen takes a part of the window. */
export const hasKeyboard = signal(false);

/** Pixels that a keyboard takes at least; the bars of a browser take less. */
const KEYBOARD = 150;

/** The greatest height that was seen at each width: turning a phone is no keyboard. */
const tallest = /** @type {Map<number, number>} */ (new Map());

function measure() {
  const view = window.visualViewport;
  // Some browsers make the window smaller, others only what is visible of it. Zooming by hand is neither.
  const height = view && view.scale < 1.01 ? Math.min(view.height, innerHeight) : innerHeight;
  const most = Math.max(tallest.get(innerWidth) ?? 0, height);
  tallest.set(innerWidth, most);
  width.value = innerWidth;
  hasKeyboard.value = matchMedia("(pointer: coarse)").matches && height < most - KEYBOARD;
  const { style } = document.documentElement;
  if (hasKeyboard.value) style.setProperty("--visible", `${height}px`);
  else style.removeProperty("--visible");
}

measure();
addEventListener("resize", measure);
window.visualViewport?.addEventListener("resize", measure);
