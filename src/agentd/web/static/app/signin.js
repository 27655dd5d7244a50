/** What a browser shows that the daemon does not let in. */

import { hasCredentials, keepToken } from "./api.js";
import { claim, claimError } from "./begin.js";
import { html, useEffect, useState } from "./lib.js";
import { refusal } from "./state.js";
import { start } from "./sync.js";
import { clean } from "./text.js";

export const LinkEnded = () => html`<main class="sign-in" data-screen="sign-in"><h1>Agents</h1>
  <p>This link has expired, or it was revoked. Ask for a new one.</p></main>`;

export function Refused() {
  const [code, setCode] = useState("");
  const [token, setToken] = useState("");
  const [remember, setRemember] = useState(true);
  const error = refusal.value;
  useEffect(() => document.querySelector("input")?.focus(), []);
  return html`<main class="sign-in" data-screen="sign-in"><h1>Agents</h1>
    <p>${error?.status !== 401 ? "The daemon refused this page." : hasCredentials() ? "This browser was let in before. Its access has been revoked, or has ended." : "This daemon does not know this browser yet."}</p>
    ${error?.status !== 401 && html`<p class="muted">${clean(error?.message)}</p>`}
    <form class="form" onSubmit=${(/** @type {SubmitEvent} */ event) => (event.preventDefault(), void claim(code.trim()))}>
      <label>Code<input type="text" autocomplete="one-time-code" autocapitalize="characters" autocorrect="off" spellcheck=${false} value=${code} onInput=${(/** @type {any} */ event) => setCode(event.target.value)} /></label>
      ${claimError.value && html`<p class="failed-note" role="alert">${clean(claimError.value)}</p>`}
      <button type="submit" class="primary" disabled=${!code.trim()}>Let this browser in</button>
      <p class="muted">Get a code on the daemon's machine: <code>agentctl device add</code></p>
    </form>
    <details class="fold"><summary>Use a token instead</summary>
      <form class="form" onSubmit=${(/** @type {SubmitEvent} */ event) => (event.preventDefault(), keepToken(token.trim(), remember), start())}>
        <label>Token<input type="password" autocomplete="current-password" value=${token} onInput=${(/** @type {any} */ event) => setToken(event.target.value)} /></label>
        <label class="choice"><input type="checkbox" checked=${remember} onChange=${() => setRemember(!remember)} /><span>Keep it on this device</span></label>
        <button type="submit" class="primary" disabled=${!token.trim()}>Open</button>
      </form></details></main>`;
}
