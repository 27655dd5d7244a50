/**
 * Markdown of agents as elements. The library only divides the text into tokens; the page makes the
 * elements, so that no markup of an agent ever exists: HTML is shown as the text that it is, images are
 * not loaded, and links show where they lead.
 */

import { html, useRef } from "./lib.js";
import { Block, Copy } from "./parts.js";
import { clean, cleanCode, table } from "./text.js";
import { Lexer } from "../vendor/marked.mjs";

/** @typedef {import("../vendor/marked.mjs").Token & { [name: string]: any }} Token */

const ENTITIES = /** @type {{ [name: string]: string }} */ (table({ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" }));

/** @param {string} text */
const decoded = (text) =>
  clean(
    text.replace(/&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w{1,8}));/g, (whole, decimal, hex, name) => {
      if (name) return ENTITIES[name] ?? whole;
      const code = decimal ? Number(decimal) : parseInt(hex, 16);
      return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
    }),
  );

/** A longer text is shown as it is: to divide it would take too long. */
const MOST = 200_000;

/**
 * Text of an agent. While it grows, the blocks at its beginning stay the same elements, which costs nothing.
 *
 * @param {{ text: string, isGrowing?: boolean }} props
 */
export function Markdown({ text, isGrowing = false }) {
  const drawn = useRef(/** @type {{ raw: string, element: any }[]} */ ([]));
  const source = clean(text);
  if (source.length > MOST) return html`<${Block} text=${source} />`;
  let tokens;
  try {
    tokens = new Lexer({ gfm: true, breaks: true }).lex(source);
  } catch {
    return html`<p class="plain">${source}</p>`;
  }
  const before = isGrowing ? drawn.current : [];
  drawn.current = tokens.map((token, index) => (before[index]?.raw === token.raw ? before[index] : { raw: token.raw, element: block(token, 0) }));
  return html`<div class="markdown">${drawn.current.map(({ element }) => element)}</div>`;
}

/** @param {Token[]} tokens @param {number} depth @returns {any[]} */
const blocks = (tokens, depth) => tokens.map((token) => block(token, depth));

/** @param {Token} token @param {number} depth @returns {any} */
function block(token, depth) {
  if (depth > 30) return clean(token.raw);
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      return html`<p class=${`heading heading-${Math.min(token.depth, 4)}`}>${inline(token.tokens, depth)}</p>`;
    case "code":
      return html`<div class="code">
        <div class="code-head"><span>${clean(token.lang ?? "")}</span><${Copy} text=${token.text} /></div>
        <pre tabindex="0" role="group" aria-label="Code">${cleanCode(token.text)}</pre>
      </div>`;
    case "blockquote":
      return html`<blockquote dir="auto">${blocks(token.tokens ?? [], depth + 1)}</blockquote>`;
    case "list":
      return token.ordered
        ? html`<ol dir="auto" start=${Number(token.start) || 1}>${token.items.map((/** @type {Token} */ one) => item(one, depth))}</ol>`
        : html`<ul dir="auto">${token.items.map((/** @type {Token} */ one) => item(one, depth))}</ul>`;
    case "table":
      return html`<div class="table" dir="auto" tabindex="0" role="group" aria-label="Table"><table>
        <thead><tr>${token.header.map((/** @type {Token} */ cell) => html`<th>${inline(cell.tokens, depth)}</th>`)}</tr></thead>
        <tbody>${token.rows.map((/** @type {Token[]} */ row) => html`<tr>${row.map((cell) => html`<td>${inline(cell.tokens, depth)}</td>`)}</tr>`)}</tbody>
      </table></div>`;
    case "hr":
      return html`<hr />`;
    case "paragraph":
      return html`<p>${inline(token.tokens, depth)}</p>`;
    case "text":
      return token.tokens ? html`<span>${inline(token.tokens, depth)}</span>` : decoded(token.text);
    case "checkbox":
      return token.checked ? "☑ " : "☐ ";
    default:
      return html`<p>${clean(token.raw)}</p>`;
  }
}

/** @param {Token} token @param {number} depth */
const item = (token, depth) => html`<li>${token.task && token.tokens[0]?.type !== "checkbox" ? (token.checked ? "☑ " : "☐ ") : ""}${blocks(token.tokens, depth + 1)}</li>`;

/** @param {Token[] | undefined} tokens @param {number} depth @returns {any[]} */
const inline = (tokens, depth) => (tokens ?? []).map((token) => span(token, depth + 1));

/** @param {Token} token @param {number} depth @returns {any} */
function span(token, depth) {
  if (depth > 30) return clean(token.raw);
  switch (token.type) {
    case "strong":
      return html`<strong>${inline(token.tokens, depth)}</strong>`;
    case "em":
      return html`<em>${inline(token.tokens, depth)}</em>`;
    case "del":
      return html`<del>${inline(token.tokens, depth)}</del>`;
    case "codespan":
      return html`<code>${cleanCode(token.text)}</code>`;
    case "br":
      return html`<br />`;
    case "link":
      return html`<${Link} href=${token.href} text=${token.text}>${inline(token.tokens, depth)}<//>`;
    case "image":
      // An image of another server would tell it that somebody reads this.
      return html`<${Link} href=${token.href} text=${token.text}>[image${token.text ? `: ${clean(token.text)}` : ""}]<//>`;
    case "text":
    case "escape":
      return token.tokens ? inline(token.tokens, depth) : decoded(token.text);
    case "checkbox":
      return token.checked ? "☑ " : "☐ ";
    default:
      return clean(token.raw);
  }
}

/**
 * A link with the host that it leads to. Only addresses of the web and of mail are links.
 *
 * @param {{ href: string, text: string, children: any }} props
 */
function Link({ href, text, children }) {
  let url;
  try {
    url = new URL(href);
  } catch {
    return html`<span>${children} <code>${cleanCode(href)}</code></span>`;
  }
  if (!["https:", "http:", "mailto:"].includes(url.protocol)) return html`<span>${children} <code>${cleanCode(href)}</code></span>`;
  const host = url.protocol === "mailto:" ? url.pathname : url.host;
  // An address may have the name of a user, which looks like a host.
  const isPlain = !url.username && text.includes(host) && (text === href || text === href.replace(/^https?:\/\//, ""));
  return html`<a href=${url.href} target="_blank" rel="noopener noreferrer nofollow" title=${cleanCode(url.href)}>${children}</a>${!isPlain && html`<span class="host"> (${cleanCode(host)})</span>`}`;
}
