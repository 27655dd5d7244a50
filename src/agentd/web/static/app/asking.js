/** What a request asks, in words; what is dangerous about it; and the answers that it can get. */

import { deviceId } from "./api.js";
import { asJson, oneLine, table } from "./text.js";

/** @import { Change, Question, Request } from "./types.js" */

/**
 * @typedef {{ label: string, short: string, decision: "approve" | "deny" | "answer", option?: string,
 *   scope?: "once" | "session", reaches?: string | null, primary?: boolean, lasting?: boolean }} Choice
 */

const HEADLINES = /** @type {{ [type: string]: string }} */ (table({
  command: "Run a command",
  file_change: "Change files",
  permission: "More access",
  tool: "Use a tool",
  question: "A question",
  plan: "Approve the plan",
}));

const KINDS = /** @type {{ [kind: string]: string }} */ (table({
  approval_request: "Asks for approval",
  permission_request: "Asks for access",
  input_request: "Asks a question",
}));

const KNOWN = /** @type {{ [type: string]: string[] }} */ (table({
  command: ["command", "cwd", "reason"],
  file_change: ["changes", "reason"],
  permission: ["permissions", "reason"],
  tool: ["name", "server", "input"],
  question: ["questions"],
  plan: ["text"],
}));

/** @param {Request} request */
export function headline(request) {
  return HEADLINES[request.detail?.type] ?? KINDS[request.kind] ?? "Asks";
}

/**
 * Return the parts of a request to show, as the detail's type has them.
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
  const rest = Object.entries(detail).filter(([name]) => !(known.length && ["type", "cut", "agent", ...known].includes(name)));
  const plan = type === "plan" ? text("text") : "";
  const tool = type === "tool" ? [detail.server, detail.name].filter(Boolean).join(" · ") : "";
  const parts = {
    command: text("command"),
    plan,
    tool,
    input: type === "tool" && detail.input != null ? asJson(detail.input) : "",
    permissions: type === "permission" && detail.permissions != null ? asJson(detail.permissions) : "",
    cwd: text("cwd"),
    reason: text("reason"),
    changes: /** @type {Change[]} */ (type === "file_change" ? objectsOf(detail.changes) : []),
    questions: questionsOf(request),
    rest: rest.length ? asJson(Object.fromEntries(rest)) : "",
    // Changes nothing, so it need not be read.
    more: known.length && detail.agent != null && asJson(detail.agent) !== "{}" ? asJson(detail.agent) : "",
    cut: Array.isArray(detail.cut) ? detail.cut.map(String) : [],
  };
  return { ...parts, text: ownWords(request, parts) };
}

/**
 * Return what the text of a request says beyond its detail.
 *
 * @param {Request} request
 * @param {{ command: string, plan: string, tool: string, input: string, permissions: string, reason: string, changes: Change[], questions: Question[] }} parts
 */
function ownWords(request, parts) {
  let said = request.text.trim();
  for (const { label, reaches } of request.options ?? []) if (reaches) said = said.replace(`\n\n${label} allows ${reaches}.`, "");
  if (parts.reason) said = said.replace(`\n\nReason: ${parts.reason.trim()}`, "");
  said = said.trim();
  const [, first = "", rest = ""] = /^([^:\n]{1,40}):\s*([^]*)$/.exec(said) ?? [];
  const repeats =
    (parts.command && [said, rest].includes(parts.command.trim())) ||
    (parts.plan && said.endsWith(parts.plan.trim())) ||
    (parts.changes.length > 0 && first === "Change files" && rest === parts.changes.map(({ kind, path }) => `${kind} ${path}`).join(", ")) ||
    (parts.changes.length === 1 && first === "Change files" && rest === parts.changes[0].path) ||
    (parts.permissions && first === "Permissions" && isSameJson(rest, parts.permissions)) ||
    (parts.input && /^Use /.test(first) && isSameJson(rest, parts.input)) ||
    (parts.questions.length > 0 && parts.questions.every(({ text }) => said.includes(text)) && said.length < 2 * parts.questions.reduce((sum, { text }) => sum + text.length + 20, 0));
  return repeats ? "" : said;
}

/** @param {string} one @param {string} other */
function isSameJson(one, other) {
  try {
    return JSON.stringify(JSON.parse(one)) === JSON.stringify(JSON.parse(other));
  } catch {
    return one === other;
  }
}

/** @param {unknown} value @returns {any[]} */
const objectsOf = (value) => (Array.isArray(value) ? value.filter((one) => one && typeof one === "object" && !Array.isArray(one)) : []);

/** @param {Request} request @returns {Question[]} */
export function questionsOf(request) {
  const ids = new Set();
  return objectsOf(request.detail?.type === "question" && request.detail.questions).map((question, index) => {
    const own = String(question.id ?? question.text ?? index);
    let id = own;
    while (ids.has(id)) id = `${own} (${++index})`;
    ids.add(id);
    return {
      id,
      text: String(question.text ?? ""),
      choices: objectsOf(question.choices),
      multiple: question.multiple === true,
      free_text: question.free_text !== false,
    };
  });
}

const FETCHED = "runs a program from the network that is not shown here";
const UNSHOWN = "runs commands that are not shown here";

/**
 * Commands that do harm, and the harm, as in “It …”. Repetitions are bounded, so that no line takes minutes.
 */
const PATTERNS = /** @type {[RegExp, string][]} */ ([
  [/(?<![\w.-])(?<!\b(?:git|docker|podman|kubectl|npm|pnpm|yarn|helm|aws|gh|cargo)\s+(?:\w+\s+)?)(?:rm|unlink|shred)\s+\S|\bfind\b[^\n]{0,400}\s-delete\b/, "deletes files for good"],
  [/\b(?:sudo|doas|pkexec)\b|\bsu\s+-/, "runs as root, or as another user"],
  [/\bgit\s+(?:-\S{1,200}\s+(?:[^-\s]\S{0,200}\s+)?){0,4}push\b[^\n;|&]{0,400}(?:\s--force|\s-\w*f\b|\s\+\S|\s--mirror\b)/, "overwrites commits on a server"],
  [/\bgit\s+(?:-\S{1,200}\s+(?:[^-\s]\S{0,200}\s+)?){0,4}push\b[^\n;|&]{0,400}(?:\s--delete\b|\s-d\b|\s:\S)/, "deletes a branch or tag on a server"],
  [/\bgit\s+(?:-\S{1,200}\s+(?:[^-\s]\S{0,200}\s+)?){0,4}(?:reset\b[^\n;|&]{0,400}--hard|clean\s+-\S*f|checkout\s+(?:\S+\s+)?--\s|restore\s+\S|stash\s+(?:drop|clear))/, "throws away changes that are not committed"],
  [/\b(?:curl|wget)\b[^\n]{0,400}\|\s*(?:(?:[\w.~/-]{0,60}\/)?(?:sudo|env|exec)\s+(?:-\w+\s+)?)?(?:[\w.~/-]{0,60}\/)?(?:(?:ba|z|da|k)?sh|python3?|node|perl|ruby)\b|\b(?:ba|z)?sh\b[^\n]{0,400}<\(\s*(?:curl|wget)\b/, FETCHED],
  [/[^|]\|\s*(?:(?:[\w.~/-]{0,60}\/)?(?:sudo|env|exec)\s+(?:-\w+\s+)?)?(?:[\w.~/-]{0,60}\/)?(?:ba|z|da|k)?sh(?=\s|$|[;|&)])/, UNSHOWN],
  [/\bdd\b[^\n]{0,400}\bof=|\bmkfs|\bwipefs\b|>\s*\/dev\/(?!null|stderr|stdout|tty)/, "overwrites a disk or another device"],
  [/\bchmod\b[^\n]{0,400}\s(?:0?777|[ugo]{0,2}[ao][ugo]{0,2}\+[rxst]{0,4}w)/, "lets every user of the machine change files"],
  [/\bchown\b\s+(?:-\S+\s+)*-\w*R/, "gives all files of a directory to another user"],
  [/\b(?:DROP|TRUNCATE)\s+(?:TABLE|DATABASE|SCHEMA)\b|\bDELETE\s+FROM\s+[\w."`]+\s*(?:;|["']|$)/im, "deletes data of a database for good"],
  [/\bkubectl\b[^\n]{0,400}\bdelete\b|\bterraform\b[^\n]{0,400}\bdestroy\b|\bhelm\s+(?:uninstall|delete)\b/, "deletes what runs in a cluster or a cloud"],
  [/\b(?:npm|pnpm|yarn|cargo|poetry|uv)\s+publish\b|\btwine\s+upload\b|\bgem\s+push\b/, "publishes a package for everybody"],
  [/(?:^|[\s/~"'=])\.(?:ssh|gnupg)\/|\bid_(?:rsa|ed25519|ecdsa)\b|\.aws\/credentials|\.netrc\b/, "reads or changes keys or passwords"],
  [/(?:^|[;&|]\s*|\bsudo\s+)(?:shutdown|reboot|poweroff|halt)\b/m, "turns the machine off"],
  [/:\(\)\s*\{.{0,99}\};\s*:/, "starts processes until the machine stops answering"],
]);

/**
 * Return the harm that a request does, such as “deletes files for good”.
 *
 * @param {Request} request
 * @param {string} cwd the directory of its session
 * @returns {string[]}
 */
export function dangers(request, cwd) {
  const parts = asked(request);
  const said = parts.command || parts.input || (request.kind === "input_request" ? "" : request.text);
  const line = said.replace(/\\\n/g, " ").replace(/[^\S\n]+/g, " ");
  const found = PATTERNS.filter(([pattern]) => pattern.test(line))
    .map(([, words]) => words)
    .filter((words, _, all) => words !== UNSHOWN || !all.includes(FETCHED));
  if (parts.cwd && cwd && !isWithin(parts.cwd, cwd)) found.push("runs outside the session's directory");
  if (parts.changes.some((change) => typeof change.path === "string" && cwd && !isWithin(change.path, cwd)))
    found.push("changes files outside the session's directory");
  if (/danger-full-access/.test(parts.permissions)) found.push("lets the agent work without a sandbox");
  if (parts.cut.length) found.push(`has parts that are not shown here: it was too long (${oneLine(parts.cut.join(", "), 80)})`);
  return [...new Set(found)];
}

/** @param {string} path @param {string} directory */
function isWithin(path, directory) {
  if (!path.startsWith("/")) return !path.split("/").includes("..");
  const base = directory.replace(/\/+$/, "");
  return (path === base || path.startsWith(`${base}/`)) && !path.split("/").includes("..");
}

/**
 * Return the answers that a request offers. The first of those that go ahead is the usual one.
 *
 * @param {Request} request
 * @returns {{ yes: Choice[], no: Choice[], answers: Choice[] }}
 */
export function choices(request) {
  /** @type {Choice[]} */ const yes = [];
  /** @type {Choice[]} */ const no = [];
  /** @type {Choice[]} */ const answers = [];
  const isQuestion = request.kind === "input_request";
  const refuse = isQuestion ? "Don't answer" : "Deny";
  // A plan is carried out once, whatever is approved.
  const once = request.detail?.type === "plan" ? "Approve" : "Approve once";
  const options = request.options ?? [];
  for (const { id, label, kind, reaches } of options) {
    // One of several that do the same has the agent's word, too.
    const name = options.filter((one) => one.kind === kind).length > 1 ? `: ${oneLine(label, 60)}` : "";
    if (kind === "allow_once") yes.push({ label: once + name, short: "once", decision: "approve", option: id, reaches, primary: true });
    else if (kind === "allow_session")
      yes.push({ label: `Approve for this session${name}`, short: "for this session", decision: "approve", option: id, reaches });
    else if (kind === "allow_always")
      yes.push({ label: `Always: ${label}`, short: "always", decision: "approve", option: id, reaches, lasting: true });
    else if (kind === "deny") no.push({ label: refuse + name, short: "deny", decision: "deny", option: id, primary: true });
    else if (kind === "deny_and_stop") no.push({ label: `${refuse} and stop the agent${name}`, short: "stop the agent", decision: "deny", option: id });
    else answers.push({ label, short: label, decision: "answer", option: id });
  }
  if (!isQuestion && !yes.length && !answers.length) {
    yes.push({ label: once, short: "once", decision: "approve", scope: "once", primary: true });
    yes.push({ label: "Approve for this session", short: "for this session", decision: "approve", scope: "session" });
  }
  if (yes.length && !yes.some((choice) => choice.primary)) yes[0].primary = true;
  if (!no.length) no.push({ label: refuse, short: "deny", decision: "deny", primary: true });
  if (!no.some((choice) => choice.primary)) no[0].primary = true;
  return { yes, no, answers };
}

/** @param {Choice[]} ways */
export const usualFirst = (ways) => [...ways].sort((a, b) => Number(b.primary ?? 0) - Number(a.primary ?? 0));

/**
 * Return the text that answers questions; null if one has no answer.
 *
 * @param {Question[]} questions @param {{ [id: string]: { chosen: string[], text: string } }} given
 */
export function answerText(questions, given) {
  /** @type {[string, string][]} */ const answers = [];
  for (const question of questions) {
    const { chosen = [], text = "" } = Object.hasOwn(given, question.id) ? given[question.id] : {};
    const all = [...chosen, ...(text.trim() ? [text.trim()] : [])];
    if (!all.length) return null;
    answers.push([question.id, all.join(", ")]);
  }
  return answers.length === 1 ? answers[0][1] : JSON.stringify(Object.fromEntries(answers));
}

/** @type {{ [status: string]: string }} */
const OUTCOMES = table({
  approved: "Approved",
  denied: "Denied",
  answered: "Answered",
  expired: "Expired",
  canceled: "Withdrawn: its run ended",
});

/** @param {Request} request */
export function outcome(request) {
  const by =
    request.decided_by === null || request.status === "expired" || request.status === "canceled"
      ? ""
      : ` by ${request.decided_by}${request.decided_on && !isHere(request) ? ` on ${oneLine(request.decided_on, 60)}` : ""}`;
  const isDeclined = request.kind === "input_request" && request.status === "denied";
  return `${isDeclined ? "Declined" : OUTCOMES[request.status] ?? request.status}${by}`;
}

/**
 * Return whether a request was decided on this device.
 *
 * @param {Request} request
 */
export const isHere = (request) => Boolean(request.decided_on_id) && request.decided_on_id === deviceId();

/**
 * Return the key by which requests are identical: they ask the same, and their options allow the same.
 *
 * @param {Request} request
 */
export function sameness(request) {
  const options = request.options?.map(({ label, kind, reaches }) => [label, kind, reaches]);
  return JSON.stringify([request.kind, request.text, request.detail, options]);
}
