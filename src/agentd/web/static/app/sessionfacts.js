/** What the page calls a session, and the state that it shows. */

import { sessionOf } from "./reading.js";
import { requests, status, work } from "./state.js";
import { cleanCode, oneLine } from "./text.js";

/** @import { Request, Session } from "./types.js" */

/**
 * Return the titles of a session and of those above it, the topmost first.
 *
 * @param {string} id
 */
export function pathOf(id) {
  const path = [];
  for (let session = sessionOf(id); session && path.length < 12; session = sessionOf(session.parent_session_id))
    path.unshift({ id: session.id, title: titleOf(session) });
  return path.length ? path : [{ id, title: id }];
}

/** @param {Session} session */
export const titleOf = (session) => oneLine(session.title || `Session ${session.id.slice(-6)}`, 80);

/**
 * Return the state of a session, as a key of `STATES`.
 *
 * @param {Session} session
 */
export function stateOf(session) {
  for (const request of requests.value.values()) if (request.session_id === session.id) return "needs";
  const found = work.value.get(session.id)?.status;
  if (found === "running" || found === "waiting" || found === "queued") return found;
  if (session.status === "closed") return "closed";
  return found ?? "idle";
}

/** The machine that a session's agents work on; empty if it is not told. @param {Session} session */
export const hostOf = (session) => session.host ?? work.value.get(session.id)?.host ?? "";

/** @param {Session} session */
export const providerOf = (session) =>
  session.provider ?? work.value.get(session.id)?.provider ?? status.value?.providers.find((one) => one.default)?.name ?? "";

/** What the page calls the sandbox of an agent that may do anything. */
const UNCONFINED = "danger-full-access";

/**
 * Return where a request takes effect: directory, machine, sandbox and user, as far as the daemon knows.
 *
 * @param {Request} request
 * @returns {{ label: string, value: string, isRisk?: boolean }[]}
 */
export function whereOf(request) {
  const session = sessionOf(request.session_id);
  const run = work.value.get(request.session_id);
  const asked = request.detail?.type === "command" && typeof request.detail.cwd === "string" ? request.detail.cwd : "";
  const cwd = asked || session?.cwd || "";
  const own = status.value?.host ?? "local";
  const host = run?.host ?? own;
  const isOwn = host === own;
  const machine = (isOwn && status.value?.machine) || (host === "local" ? "" : host);
  const provider = status.value?.providers.find((one) => one.name === (run?.provider ?? session?.provider));
  const usual = provider && (provider.capabilities.confine ? provider.capabilities.sandbox : UNCONFINED);
  const sandbox = run?.sandbox ?? session?.sandbox ?? usual;
  const place = cwd ? [{ label: "in", value: cleanCode(oneLine(cwd, 400)) }] : [];
  if (!status.value) return place;
  return [
    ...place,
    machine ? { label: "on", value: cleanCode(machine) } : { label: "on the daemon's machine", value: "" },
    sandbox === UNCONFINED ? { label: "no sandbox", value: "", isRisk: true } : sandbox ? { label: "sandbox", value: cleanCode(sandbox) } : { label: "sandbox not set", value: "", isRisk: true },
    ...(isOwn && status.value?.user ? [{ label: "as", value: cleanCode(status.value.user), isRisk: status.value.user === "root" }] : []),
  ];
}
