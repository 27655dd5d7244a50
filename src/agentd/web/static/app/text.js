/**
 * Text for people. Whatever an agent says is untrusted: its terminal escapes are removed, and
 * characters that would reorder or hide text become visible.
 */

/* eslint-disable no-control-regex -- these are the characters that must not reach the screen */
const SEQUENCES =
  /(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?/g;
const CONTROLS = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]/g;
/* eslint-enable no-control-regex */
const NEWLINES = /\r\n?|\u2028|\u2029/g;
/** Characters that change the order of the text around them, and tags that are never drawn. */
const REORDERING = /[\u061c\u202a-\u202e\u2066-\u2069]|[\u{e0000}-\u{e007f}]/gu;
/** Characters that are not drawn; text in commands and paths must show them all, but for joiners inside an emoji. */
const HIDDEN = /[\u00ad\u115f\u1160\u180e\u200b\u200c\u200e\u200f\u2060-\u2064\u3164\ufeff\uffa0]|(?<!\p{Extended_Pictographic}(?:\ufe0f|[\u{1f3fb}-\u{1f3ff}])?)\u200d|\u200d(?!\p{Extended_Pictographic})/gu;

/**
 * Return a table that has no keys but its own: an agent may say that something is a `constructor`.
 *
 * @template T
 * @param {{ [key: string]: T }} entries
 * @returns {{ [key: string]: T }}
 */
export const table = (entries) => Object.assign(Object.create(null), entries);

/** @param {string} character */
const named = (character) =>
  `⟦U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}⟧`;

/**
 * Return prose with no character that controls a terminal or reorders the text around it.
 *
 * @param {unknown} value
 */
export function clean(value) {
  const text = typeof value === "string" ? value : value == null ? "" : String(value);
  return text
    .replace(SEQUENCES, "")
    .replace(NEWLINES, "\n")
    .replace(CONTROLS, "�")
    .replace(REORDERING, named);
}

/**
 * Return a command, path or address in which also characters that are not drawn are visible.
 *
 * @param {unknown} value
 */
export const cleanCode = (value) => clean(value).replace(HIDDEN, named);

/**
 * Return text on one line, at most `length` characters.
 *
 * @param {unknown} value
 */
export function oneLine(value, length = 160) {
  const text = clean(typeof value === "string" ? value.slice(0, length * 4) : value);
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > length ? `${line.slice(0, length - 1)}…` : line;
}

/**
 * Return a line of Markdown without its marks, such as the last line of an agent.
 *
 * @param {unknown} value
 */
export function plainLine(value, length = 160) {
  return oneLine(value, length)
    .replace(/^(?:[-*+>]|#{1,6}|\d{1,3}[.)])\s+/, "")
    .replace(/^\|\s*|\s*\|$/g, "")
    .replace(/\s*\|\s*/g, " · ")
    .replace(/\*\*|__|`+/g, "");
}

/** @param {string} code such as `provider_error` */
export const inWords = (code) => oneLine(code, 140).replaceAll("_", " ");

/** @param {unknown} value */
export function asJson(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

/**
 * Return a duration in words, rounded down to its largest unit.
 *
 * @param {number} seconds
 */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 48 * 3600) {
    const minutes = Math.floor((whole % 3600) / 60);
    return `${Math.floor(whole / 3600)} h${minutes && whole < 10 * 3600 ? ` ${minutes} min` : ""}`;
  }
  return `${Math.floor(whole / 86400)} days`;
}

/**
 * Return a short age such as "4 min ago".
 *
 * @param {string} at
 * @param {number} now milliseconds
 */
export function ago(at, now) {
  const seconds = (now - Date.parse(at)) / 1000;
  return seconds < 10 ? "now" : `${duration(seconds)} ago`;
}

/** @param {string} at */
export function clock(at) {
  const date = new Date(at);
  const today = new Date().toDateString() === date.toDateString();
  return date.toLocaleString(undefined, {
    hour: "2-digit",
    minute: "2-digit",
    ...(today ? {} : { day: "numeric", month: "short" }),
  });
}

/** @param {number} count @param {string} noun */
export const counted = (count, noun) =>
  `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;

/**
 * Return a path with the end that tells it apart, at most `length` characters.
 *
 * @param {string} path
 */
export function shortPath(path, length = 44) {
  const text = cleanCode(path);
  return text.length > length ? `…${text.slice(1 - length)}` : text;
}
