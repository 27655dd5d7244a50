/** What a request asks, in words; what is dangerous about it; and the answers that it can get. */

import { asJson } from "./text.js";

/** @import { Change, Question, Request } from "./types.js" */

/**
 * @typedef {{ label: string, decision: "approve" | "deny" | "answer", option?: string,
 *   scope?: "once" | "session", reaches?: string | null, primary?: boolean, lasting?: boolean }} Choice
 */

const HEADLINES = /** @type {{ [type: string]: string }} */ ({
  command: "Run a command",
  file_change: "Change files",
  permission: "More access",
  tool: "Use a tool",
  question: "A question",
  plan: "Approve the plan",
});

const KINDS = /** @type {{ [kind: string]: string }} */ ({
  approval_request: "Asks for approval",
  permission_request: "Asks for access",
  input_request: "Asks a question",
});

const KNOWN = /** @type {{ [type: string]: string[] }} */ ({
  command: ["command", "cwd", "reason"],
  file_change: ["changes", "reason"],
  permission: ["permissions", "reason"],
  tool: ["name", "server", "input"],
  question: ["questions"],
  plan: ["text"],
});

/** @param {Request} request */
export function headline(request) {
  return HEADLINES[request.detail?.type] ?? KINDS[request.kind] ?? "Asks";
}

/**
 * Return the parts of a request that are shown, each as the detail's type has it.
 *
 * @param {Request} request
 */
export function asked(request) {
  const detail = request.detail ?? {};
  const type = typeof detail.type === "string" ? detail.type : "";
  const known = KNOWN[type] ?? [];
  /** @param {string} name */
  const text = (name) =>
    known.includes(name) && typeof detail[name] === "string" ? /** @type {string} */ (detail[name]) : "";
  const rest = Object.entries(detail).filter(
    ([name, value]) =>
      !(known.length && ["type", "cut", ...known].includes(name)) &&
      !(name === "agent" && (value == null || !Object.keys(value).length)),
  );
  const command = text("command");
  const plan = type === "plan" ? text("text") : "";
  const tool = type === "tool" ? [detail.server, detail.name].filter(Boolean).join(" · ") : "";
  // The text of an agent's request repeats what its detail has; once is enough.
  const repeats = type === "question" || type === "plan" || (command && request.text.includes(command));
  return {
    text: repeats ? "" : known.length ? request.text.split("\n", 1)[0] : request.text,
    command,
    plan,
    tool,
    input: type === "tool" && detail.input != null ? asJson(detail.input) : "",
    permissions: type === "permission" && detail.permissions != null ? asJson(detail.permissions) : "",
    cwd: text("cwd"),
    reason: text("reason"),
    changes: /** @type {Change[]} */ (
      type === "file_change" && Array.isArray(detail.changes) ? detail.changes.filter(isObject) : []
    ),
    questions: questionsOf(request),
    rest: rest.length ? asJson(Object.fromEntries(rest)) : "",
    cut: Array.isArray(detail.cut) ? detail.cut.map(String) : [],
  };
}

/** @param {unknown} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * @param {Request} request
 * @returns {Question[]}
 */
export function questionsOf(request) {
  const questions = request.detail?.type === "question" ? request.detail.questions : null;
  return Array.isArray(questions)
    ? questions.filter(isObject).map((question, index) => ({
        id: String(question.id ?? index),
        text: String(question.text ?? ""),
        choices: Array.isArray(question.choices) ? question.choices.filter(isObject) : [],
        multiple: question.multiple === true,
        free_text: question.free_text !== false,
      }))
    : [];
}

const PATTERNS = /** @type {[RegExp, string][]} */ ([
  [/\brm\s+(?:-\S*\s+)*-\S*[rRf]/, "It deletes files without asking."],
  [/\bsudo\b|\bdoas\b|\bsu\s+-/, "It runs as another user."],
  [/\bgit\b[^\n;|&]*\bpush\b[^\n;|&]*(?:\s--force|\s-\w*f\b|\s\+\S)/, "It overwrites history on a server."],
  [/\bgit\b[^\n;|&]*\b(?:reset\s+--hard|clean\s+-\S*f|checkout\s+--\s)/, "It throws away changes."],
  [/\b(?:curl|wget)\b[^\n]*\|\s*(?:sudo\s+)?(?:\S*\/)?(?:ba|z|da|k)?sh\b/, "It runs a program from the network."],
  [/\b(?:ba|z)?sh\b[^\n]*<\(\s*(?:curl|wget)\b/, "It runs a program from the network."],
  [/\bdd\b[^\n]*\bof=|\bmkfs|\bwipefs\b|>\s*\/dev\/(?!null|stderr|stdout|tty)/, "It writes to a device."],
  [/\bchmod\b[^\n]*\b0?777\b|\bchown\b\s+-R/, "It changes who may use files."],
  [/\b(?:DROP|TRUNCATE)\s+(?:TABLE|DATABASE|SCHEMA)\b/i, "It deletes data of a database."],
  [/\bkubectl\b[^\n]*\bdelete\b|\bterraform\b[^\n]*\bdestroy\b/, "It deletes resources elsewhere."],
  [/\bfind\b[^\n]*\s-delete\b|\bshred\b/, "It deletes files without asking."],
  [/:\(\)\s*\{.*\};\s*:/, "It starts processes without end."],
]);

/**
 * Return why a request deserves a second look; empty if nothing is known against it.
 *
 * @param {Request} request
 * @param {string} cwd the directory of its session
 * @returns {string[]}
 */
export function dangers(request, cwd) {
  const parts = asked(request);
  const command = parts.command || (request.kind === "input_request" ? "" : request.text);
  const found = PATTERNS.filter(([pattern]) => pattern.test(command)).map(([, words]) => words);
  if (parts.cwd && cwd && !isWithin(parts.cwd, cwd)) found.push("It works outside the session's directory.");
  if (parts.changes.some((change) => typeof change.path === "string" && cwd && !isWithin(change.path, cwd)))
    found.push("It changes files outside the session's directory.");
  if (/danger-full-access/.test(parts.permissions)) found.push("It asks for full access.");
  return [...new Set(found)];
}

/** @param {string} path @param {string} directory */
function isWithin(path, directory) {
  if (!path.startsWith("/")) return !path.split("/").includes("..");
  const base = directory.replace(/\/+$/, "");
  return (path === base || path.startsWith(`${base}/`)) && !path.split("/").includes("..");
}

/**
 * Return the answers that a request offers: first the one that goes ahead, then the others that do,
 * then the refusals.
 *
 * @param {Request} request
 * @returns {{ yes: Choice[], no: Choice[], answers: Choice[] }}
 */
export function choices(request) {
  /** @type {Choice[]} */ const yes = [];
  /** @type {Choice[]} */ const no = [];
  /** @type {Choice[]} */ const answers = [];
  for (const option of request.options ?? []) {
    const { id, label, kind, reaches } = option;
    if (kind === "allow_once") yes.push({ label: "Approve", decision: "approve", option: id, primary: true });
    else if (kind === "allow_session")
      yes.push({ label: "Approve for this session", decision: "approve", option: id, reaches });
    else if (kind === "allow_always")
      yes.push({ label: `Always: ${label}`, decision: "approve", option: id, reaches, lasting: true });
    else if (kind === "deny") no.push({ label: "Deny", decision: "deny", option: id, primary: true });
    else if (kind === "deny_and_stop") no.push({ label: "Deny and stop the agent", decision: "deny", option: id });
    else answers.push({ label, decision: "answer", option: id });
  }
  const isQuestion = request.kind === "input_request";
  if (!isQuestion && !yes.length && !answers.length) {
    yes.push({ label: "Approve", decision: "approve", scope: "once", primary: true });
    yes.push({ label: "Approve for this session", decision: "approve", scope: "session" });
  }
  if (yes.length && !yes.some((choice) => choice.primary)) yes[0].primary = true;
  if (!no.length) no.push({ label: "Deny", decision: "deny", primary: true });
  if (!no.some((choice) => choice.primary)) no[0].primary = true;
  return { yes, no, answers };
}

/**
 * Return the text that answers questions, or null if one has no answer yet.
 *
 * @param {Question[]} questions
 * @param {{ [id: string]: { chosen: string[], text: string } }} given
 */
export function answerText(questions, given) {
  /** @type {{ [id: string]: string }} */ const answers = {};
  for (const question of questions) {
    const { chosen = [], text = "" } = given[question.id] ?? {};
    const all = [...chosen, ...(text.trim() ? [text.trim()] : [])];
    if (!all.length) return null;
    answers[question.id] = all.join(", ");
  }
  return questions.length === 1 ? Object.values(answers)[0] : JSON.stringify(answers);
}

/** @type {{ [status: string]: string }} */
const OUTCOMES = {
  approved: "Approved",
  denied: "Denied",
  answered: "Answered",
  expired: "Expired",
  canceled: "Withdrawn: its run ended",
};

/** @param {Request} request */
export function outcome(request) {
  const by =
    request.decided_by === null || request.status === "expired" || request.status === "canceled"
      ? ""
      : ` by ${request.decided_by}`;
  return `${OUTCOMES[request.status] ?? request.status}${by}`;
}

/**
 * Return the key by which requests are identical: they ask the same in the same place.
 *
 * @param {Request} request
 */
export function sameness(request) {
  return JSON.stringify([request.kind, request.text, request.detail, request.options?.map((one) => one.kind)]);
}
