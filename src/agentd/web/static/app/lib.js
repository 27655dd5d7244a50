/** The libraries that the page is made with, under the names that it uses. */

import { h, render } from "../vendor/preact.mjs";
import htm from "../vendor/htm.mjs";

export { h, render };
export { Fragment } from "../vendor/preact.mjs";
export { useEffect, useErrorBoundary, useLayoutEffect, useMemo, useRef, useState } from "../vendor/hooks.mjs";
export { batch, computed, effect, signal } from "../vendor/signals.mjs";

/**
 * A template for elements: text in it is always text, never markup.
 *
 * @type {(strings: TemplateStringsArray, ...values: any[]) => any}
 */
export const html = htm.bind(h);
