/** The list of sessions by what they need. */

import { computed, html, signal, useEffect, useRef } from "./lib.js";
import { cursors, NEXT, readMore } from "./pages.js";
import { Age, Empty, Header, Icon, State } from "./parts.js";
import { route, to } from "./route.js";
import { seen } from "./seen.js";
import { hostOf, providerOf, stateOf, titleOf } from "./sessionfacts.js";
import { connection, isFresh, requests, sessions, toast, work } from "./state.js";
import { clean, counted, inWords, oneLine, plainLine } from "./text.js";

/** @import { List } from "./pages.js" */
/** @import { Session } from "./types.js" */

const search = signal("");
const isSearching = signal(false);
const hidesHelpers = signal(localStorage.getItem("agentd.helpers") === "hide");
const unfolded = signal(/** @type {Set<string>} */ (new Set()));

/**
 * The groups: the states that each shows, and the list that it reads more of. What is earlier comes from the
 * list of all sessions, so its end is the end of all, whatever the other groups have read.
 */
const GROUPS = /** @type {[string, string[], List][]} */ ([
  ["Needs you", ["needs"], "needs-you"],
  ["At work", ["running", "waiting"], "working"],
  ["Queued", ["queued"], "queued"],
  ["Failed", ["failed"], "failed"],
  ["Done since you looked", ["done"], "done"],
  ["Earlier", ["idle"], "all"],
]);

/** The number of rows that a group shows, if the user wanted more than the first. */
const lengths = signal(/** @type {{ [list: string]: number }} */ ({}));

/** The machines that agents run on: told in the list if there are several. */
const hosts = computed(() => new Set([...sessions.value.values()].map(hostOf).filter(Boolean)));

/** Whether something was done that the user has not seen. @param {Session} session */
const isUnread = (session) => work.value.has(session.id) && session.last_seq > (seen.value[session.id] ?? 0);

/** The state of a session as the daemon lists it, from what the events say. @param {Session} session */
function groupOf(session) {
  const state = stateOf(session);
  if (state === "needs" || state === "running" || state === "waiting" || state === "queued") return state;
  const last = work.value.get(session.id)?.status;
  if (!last || !isUnread(session)) return "idle";
  return last === "failed" ? "failed" : "done";
}

/** The sessions that are shown: those at the top of their tree, or all that match the search. */
const shown = computed(() => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const all = [...sessions.value.values()].sort((a, b) => b.updated_at.localeCompare(a.updated_at));
  if (!words.length) return all.filter((session) => !session.parent_session_id || !sessions.value.has(session.parent_session_id));
  return all.filter((session) => {
    const text = `${session.title ?? ""} ${session.cwd} ${session.provider ?? ""} ${session.id} ${session.last_line ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
});

const children = computed(() => {
  /** @type {Map<string, Session[]>} */ const found = new Map();
  for (const session of sessions.value.values()) {
    if (!session.parent_session_id) continue;
    const known = found.get(session.parent_session_id);
    if (known) known.push(session);
    else found.set(session.parent_session_id, [session]);
  }
  return found;
});

/** The most urgent state in the tree below a session: a folded helper that asks is not hidden. */
/** @param {Session} session @param {number} [depth] @returns {string} */
function urgent(session, depth = 0) {
  const own = groupOf(session);
  if (own === "needs" || depth > 20) return own;
  const below = (children.value.get(session.id) ?? []).map((child) => urgent(child, depth + 1));
  if (below.includes("needs")) return "needs";
  if (own === "running" || own === "waiting") return own;
  return below.includes("running") ? "running" : own;
}

/** Look on the daemon as well, once the user has stopped typing, unless all sessions are known here. */
function useSearch() {
  const words = search.value.trim();
  const isLive = connection.value === "live";
  useEffect(() => {
    if (!words || !isLive || !cursors.value.all) return undefined;
    let isWanted = true;
    isSearching.value = true;
    const look = async () => {
      try {
        await (await import("./searching.js")).readMatching(words, () => isWanted);
      } catch (error) {
        if (isWanted) toast(error instanceof Error ? error.message : String(error));
      }
      if (isWanted) isSearching.value = false;
    };
    const timer = setTimeout(look, 250);
    return () => {
      isWanted = false;
      isSearching.value = false;
      clearTimeout(timer);
    };
  }, [words, isLive]);
}

export function Sessions() {
  useSearch();
  /** @type {Map<string, Session[]>} */ const groups = new Map(GROUPS.map(([name]) => [name, []]));
  for (const session of shown.value) {
    const state = urgent(session);
    const name = GROUPS.find(([, states]) => states.includes(state))?.[0] ?? "Earlier";
    groups.get(name)?.push(session);
  }
  const toggle = () => {
    hidesHelpers.value = !hidesHelpers.value;
    localStorage.setItem("agentd.helpers", hidesHelpers.value ? "hide" : "show");
  };
  return html`
    <${Header} title="Sessions" actions=${html`<a class="button primary" href=${to("new")}><${Icon} name="plus" /><span>New</span></a>`} />
    <div class="scroll" data-screen="sessions">
      <div class="search"><label><span class="visually-hidden">Search sessions</span><${Icon} name="search" />
        <input type="search" placeholder="Search" value=${search.value} onInput=${(/** @type {any} */ event) => (search.value = event.target.value)} /></label>
        ${children.value.size > 0 && html`<button type="button" class="quiet small" aria-pressed=${hidesHelpers.value} onClick=${toggle}>${hidesHelpers.value ? "Show helpers" : "Hide helpers"}</button>`}
      </div>
      ${GROUPS.map(([name, , list]) => html`<${Group} key=${name} name=${name} list=${list} found=${groups.get(name)} />`)}
      ${!shown.value.length && html`<${Empty} title=${search.value ? (isSearching.value ? "Searching…" : "No session matches") : isFresh.value ? "No sessions yet" : "Reading…"}>
        ${!search.value && isFresh.value && html`<a class="button primary" href=${to("new")}>Start the first</a>`}<//>`}
    </div>`;
}

/** @param {{ name: string, list: List, found: Session[] }} props */
function Group({ name, list, found }) {
  const cursor = search.value ? undefined : cursors.value[list];
  const length = lengths.value[list] ?? NEXT;
  const hasMore = found.length > length || cursor !== undefined;
  if (!found.length && !(list === "all" && hasMore)) return null;
  const more = async () => {
    try {
      if (cursor && found.length < length + NEXT) await readMore(list);
      lengths.value = { ...lengths.value, [list]: length + NEXT };
    } catch (error) {
      toast(error instanceof Error ? error.message : String(error));
    }
  };
  return html`<section aria-label=${name}><h2 class="group">${name} <span class="muted">${found.length}${cursor && "+"}</span></h2>
    <ul class="rows">${found.slice(0, length).map((session) => html`<${Row} key=${session.id} session=${session} depth=${0} />`)}</ul>
    ${hasMore && html`<${MoreRows} place=${`${length} ${cursor}`} isAtEnd=${list === "all"} onMore=${more} />`}</section>`;
}

/**
 * The button for more rows. That of the last group presses itself when it is scrolled to.
 *
 * @param {{ place: string, isAtEnd: boolean, onMore: () => Promise<void> }} props place: changes with what was read
 */
function MoreRows({ place, isAtEnd, onMore }) {
  const button = useRef(/** @type {HTMLButtonElement | null} */ (null));
  const isLive = connection.value === "live";
  useEffect(() => {
    if (!isAtEnd || !isLive || !button.current) return undefined;
    const observer = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && void onMore(), {
      root: button.current.closest(".scroll"),
      rootMargin: "600px",
    });
    observer.observe(button.current);
    return () => observer.disconnect();
  }, [place, isAtEnd, isLive]);
  return html`<button type="button" class="quiet more-rows" ref=${button} disabled=${!isLive} onClick=${() => void onMore()}>More</button>`;
}

/** @param {{ session: Session, depth: number }} props */
function Row({ session, depth }) {
  const below = hidesHelpers.value || search.value ? [] : (children.value.get(session.id) ?? []);
  const isOpen = unfolded.value.has(session.id);
  const toggle = () => {
    const next = new Set(unfolded.value);
    if (!next.delete(session.id)) next.add(session.id);
    unfolded.value = next;
  };
  const needy = below.filter((child) => urgent(child) === "needs").length;
  const isCurrent = route.value.name === "s" && route.value.id === session.id;
  const found = work.value.get(session.id);
  const asks = [...requests.value.values()].find((request) => request.session_id === session.id);
  const line = asks ? oneLine(asks.text, 140) : found?.status === "failed" ? inWords(found.error ?? "") : plainLine(session.last_line, 200);
  return html`<li>
    <div class=${`row depth-${Math.min(depth, 4)} ${isCurrent ? "current" : ""}`}>
      <a href=${to(`s/${session.id}`)} aria-current=${isCurrent ? "page" : undefined}>
        <span class="row-top">${isUnread(session) && html`<span class="unread">new</span> `}<span class="row-title">${titleOf(session)}</span>
          <span class="muted"><${Age} at=${session.updated_at} /></span></span>
        <span class="row-state"><${State} state=${stateOf(session)} /> <span class="muted">${[providerOf(session), hosts.value.size > 1 && hostOf(session) && `on ${hostOf(session)}`, found?.cost !== undefined && `$${found.cost.toFixed(2)}`].filter(Boolean).map(clean).join(" · ")}</span></span>
        ${line && html`<span class="row-line muted">${line}</span>`}
      </a>
      ${below.length > 0 && html`<button type="button" class="quiet small fold-helpers" aria-expanded=${isOpen} onClick=${toggle}>${counted(below.length, "helper")}${needy > 0 && html`<${State} state="needs" label=${below.length > 1 ? `${needy} need you` : "needs you"} />`}</button>`}
    </div>
    ${isOpen && depth < 12 && html`<ul class="rows below">${below.map((child) => html`<${Row} key=${child.id} session=${child} depth=${depth + 1} />`)}</ul>`}
  </li>`;
}
