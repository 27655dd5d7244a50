/**
 * The API's objects, as far as the page reads them.
 *
 * @typedef {{
 *   id: string, title: string | null, owner: string, provider: string | null, model: string | null,
 *   cwd: string, status: "open" | "closed", parent_session_id: string | null,
 *   root_session_id: string, last_seq: number, oldest_cursor: number, created_at: string, updated_at: string,
 *   sandbox: string | null, approval_policy: string | null, approvals: string | null,
 *   last_line: string | null, notices: string, host: string | null,
 * }} Session
 *
 * @typedef {{
 *   id: string, session_id: string, message_id: string | null, provider: string,
 *   model: string | null, status: RunStatus, waiting_on: string | null, attempt: number,
 *   worker_id: string | null, result: { text: string } | null,
 *   error: { code: string, message: string } | null, usage: Usage | null,
 *   exit_code: number | null, cancel_requested_at: string | null, cancel_reason: string | null,
 *   created_at: string, started_at: string | null, finished_at: string | null,
 *   sandbox: string | null, approval_policy: string | null, effort: string | null, kind: string,
 * }} Run
 *
 * @typedef {"queued" | "running" | "waiting" | "completed" | "failed" | "canceled"} RunStatus
 *
 * @typedef {{
 *   input_tokens?: number, cached_input_tokens?: number, output_tokens?: number,
 *   cost_usd?: number | null,
 * }} Usage
 *
 * @typedef {{
 *   id: string, kind: string, target: string, state: string, updated_at: string,
 *   shown_at: string | null, error: string | null,
 * }} Notice
 *
 * @typedef {{
 *   id: string, name: string, token_id: string | null, events: string[], push: "on" | "off",
 *   quiet_hours: string, time_zone: string | null, muted: string[], seen_at: string,
 * }} PushDevice
 *
 * @typedef {{ id: string, label: string, kind: string, reaches: string | null }} Option
 *
 * @typedef {{ path?: string, kind?: string, diff?: string }} Change
 *
 * @typedef {{
 *   id: string, text: string, choices?: { label: string, description?: string | null }[],
 *   multiple?: boolean, free_text?: boolean,
 * }} Question
 *
 * @typedef {{
 *   id: string, session_id: string, run_id: string, root_session_id: string,
 *   parent_session_id: string | null, kind: string, text: string,
 *   detail: { [name: string]: any } | null, options: Option[] | null,
 *   status: "pending" | "approved" | "denied" | "answered" | "expired" | "canceled",
 *   decision: string | null, answer: string | null, scope: string | null, option: string | null,
 *   decided_by: string | null, decided_on: string | null, decided_on_id: string | null, created_at: string, expires_at: string, resolved_at: string | null,
 *   audience: string | null, human_at: string | null, cut?: string[],
 * }} Request
 *
 * @typedef {{
 *   seq: number, session_id: string, run_id: string | null, attempt: number | null,
 *   event_type: string, data: { [name: string]: any }, created_at: string,
 * }} Event
 *
 * @typedef {{
 *   name: string, runner: string, available: boolean, reason: string | null,
 *   version: string | null, default: boolean, mode: string | null, logged_in: boolean | null,
 *   capabilities: { [name: string]: any }, model: string | null, approvals: string | null,
 * }} Provider
 *
 * @typedef {{
 *   daemon_health: string, version: string, pid: number, uptime_s: number, started_at: string,
 *   alive_workers: number, max_concurrency: number,
 *   machine: string | null, user: string | null, host: string | null, queue_counts: { queued_count: number, running_count: number, waiting_count: number },
 *   providers: Provider[], store: { [name: string]: any }, problems: any[], runs: any[], cwd: string | null, daemons: any[],
 * }} DaemonStatus
 *
 * @typedef {{
 *   key: string, kind: string, seq: number, at: string, run: string | null,
 *   rev: import("../vendor/signals.mjs").Signal<number>, [name: string]: any,
 * }} Item an entry of the story; `rev` changes whenever the item does
 *
 * @typedef {{ status: string, messageId: string | null, usage?: Usage, at: string }} RunState
 */

export {};
