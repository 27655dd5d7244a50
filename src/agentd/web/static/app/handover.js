/** A link for another device: as text to copy, and as a QR code for its camera. */

import { base } from "./api.js";
import { html, useMemo } from "./lib.js";
import { Block, Icon } from "./parts.js";
import { generate } from "../vendor/lean-qr.mjs";

/** Width of the margin in modules (ISO/IEC 18004, 5.3.8). */
const QUIET_ZONE = 4;

/**
 * Return the modules of a code as one path, and the number of modules in a row.
 *
 * @param {string} text
 */
function drawn(text) {
  const code = generate(text);
  let path = "";
  for (let y = 0; y < code.size; y++)
    for (let x = 0; x < code.size; x++) {
      const start = x;
      while (code.get(x, y)) x++;
      if (x > start) path += `M${start + QUIET_ZONE} ${y + QUIET_ZONE}h${x - start}v1h${start - x}z`;
    }
  return { path, width: code.size + 2 * QUIET_ZONE };
}

/** Whether only this machine can open the page's address. */
const isLoopback = /^(localhost|127\.[\d.]+|\[::1\])$/.test(base.hostname);

/** @param {{ link: string }} props */
export function Handover({ link }) {
  const { path, width } = useMemo(() => drawn(link), [link]);
  return html`<div class="handover">
    <svg class="qr" viewBox=${`0 0 ${width} ${width}`} role="img" aria-label="QR code of the link" shape-rendering="crispEdges"><path d=${path} /></svg>
    <${Block} text=${link} name="Link" />
    ${isLoopback && html`<p class="warn"><${Icon} name="warning" /><span>Other machines cannot open this address. Open this page by its HTTPS address first, such as by <code>tailscale serve</code> or a reverse proxy.</span></p>`}
  </div>`;
}
